import pytest

from hpctrain import plan as planning
from hpctrain.config.load import load
from hpctrain.train.proof import Joined
from hpctrain.train.script import environment
from hpctrain.world import World

WORLD = World(rank=3, size=4, local_rank=1, local_size=2, launcher="srun", host="n2")
JOINED = Joined("10.0.0.1", 4242, None)


@pytest.fixture
def given(tmp_path):
    def make(*overrides):
        (tmp_path / "c.yaml").write_text("name: c\ncommand: [python, train.py]\n")
        loaded = load(tmp_path / "c.yaml", overrides)
        plan = planning.make(loaded, planning.Layout(nodes=2, ranks_per_node=2), planning.Samples())
        return environment(loaded.config, plan, WORLD, JOINED, "eth0")

    return make


def test_a_script_gets_what_torchrun_would_give_it(given, monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    given = given()
    assert [given[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")] == [
        "3", "4", "1", "2", "1",
    ]  # fmt: skip
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "4242")
    assert given["GLOO_SOCKET_IFNAME"] == given["NCCL_SOCKET_IFNAME"] == "eth0"


def test_the_interface_that_the_site_has_set_stays(given, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    given = given()
    assert "NCCL_SOCKET_IFNAME" not in given
    assert given["GLOO_SOCKET_IFNAME"] == "eth0"


def test_a_horovod_script_finds_its_rendezvous(given, monkeypatch):
    monkeypatch.delenv("HOROVOD_GLOO_IFACE", raising=False)
    found = given("dist.strategy=horovod", "dist.horovod.fusion_mb=0", "dist.horovod.cycle_ms=2.5", "dist.timeout=40")
    assert {name.removeprefix("HOROVOD_"): value for name, value in found.items() if name.startswith("HOROVOD_")} == {
        "CONTROLLER": "gloo", "CPU_OPERATIONS": "gloo", "HOSTNAME": "node1", "RANK": "3", "SIZE": "4",
        "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "1", "CROSS_SIZE": "2",
        "GLOO_RENDEZVOUS_ADDR": "10.0.0.1", "GLOO_RENDEZVOUS_PORT": "4242", "GLOO_IFACE": "eth0",
        "GLOO_TIMEOUT_SECONDS": "40", "STALL_CHECK_TIME_SECONDS": "20", "STALL_SHUTDOWN_TIME_SECONDS": "40",
        "FUSION_THRESHOLD": "0", "CYCLE_TIME": "2.5",
    }  # fmt: skip
    assert found["RANK"] == "3"
    assert "MASTER_PORT" not in found


def test_under_mpi_horovod_needs_no_rendezvous(given):
    found = given("dist.strategy=horovod", "dist.backend=mpi")
    assert found["HOROVOD_CONTROLLER"] == "mpi"
    assert not any("RENDEZVOUS" in name or name == "HOROVOD_RANK" for name in found)
