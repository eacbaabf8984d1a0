from hpctrain.train.proof import Joined
from hpctrain.train.script import environment
from hpctrain.world import World

WORLD = World(rank=3, size=4, local_rank=1, local_size=2, launcher="srun", host="n2")
JOINED = Joined("10.0.0.1", 4242, None)


def test_a_script_gets_what_torchrun_would_give_it(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    given = environment(WORLD, JOINED, "eth0")
    assert [given[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")] == [
        "3", "4", "1", "2", "1",
    ]  # fmt: skip
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "4242")
    assert given["GLOO_SOCKET_IFNAME"] == given["NCCL_SOCKET_IFNAME"] == "eth0"


def test_the_interface_that_the_site_has_set_stays(monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    given = environment(WORLD, JOINED, "eth0")
    assert "NCCL_SOCKET_IFNAME" not in given
    assert given["GLOO_SOCKET_IFNAME"] == "eth0"
