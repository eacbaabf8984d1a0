import os

import pytest

from hpctrain.errors import UsageError
from hpctrain.sandbox import cluster, spec
from hpctrain.sandbox.spec import Spec, require_packages


def test_a_spec_survives_json():
    asked = Spec(nodes=3, gpus_per_node=1, accounting=True, partitions=("a", "b"))
    assert Spec.from_json(asked.to_json()) == asked


def test_node_names():
    assert Spec(nodes=3, gpus_per_node=0).node_names == ("n1", "n2", "n3")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": 0}, "sandbox: nodes is 0; it must be 1 to 64"),
        ({"nodes": 65}, "sandbox: nodes is 65; it must be 1 to 64"),
        ({"cpus_per_node": 0}, "sandbox: cpus_per_node is 0; it must be 1 to 256"),
        ({"network": "10.1"}, "sandbox: network is '10.1'; it must be three numbers such as 10.231.7"),
        ({"network": "10.1.2\n"}, "sandbox: network is '10.1.2\\n'; it must be three numbers such as 10.231.7"),
        ({"network": "10.1.256"}, "sandbox: network is '10.1.256'; it must be three numbers such as 10.231.7"),
        (
            {"network": "127.0.0"},
            "sandbox: network is '127.0.0'; no host can have an address there; take one such as 10.231.7",
        ),
        (
            {"partitions": ("a b",)},
            "sandbox: partition 'a b': a name is letters, digits, - and _, and starts with a letter",
        ),
        ({"partitions": ()}, "sandbox: partitions: name at least one, and none twice"),
        ({"partitions": ("a", "a")}, "sandbox: partitions: name at least one, and none twice"),
    ],
)
def test_what_cannot_be_started_is_refused(wrong, message):
    with pytest.raises(UsageError) as caught:
        Spec(**{"nodes": 2, "gpus_per_node": 0, **wrong}).check()
    assert str(caught.value) == message


def test_all_problems_are_told_at_once():
    with pytest.raises(UsageError) as caught:
        Spec(nodes=0, gpus_per_node=-1, network="x").check()
    assert len(str(caught.value).splitlines()) == 3


def test_an_ordinary_user_has_as_many_gpus_as_devices_to_borrow(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=f"gpus_per_node is 16; it must be 0 to {len(spec.borrowed_devices())}"):
        Spec(nodes=1, gpus_per_node=16).check()


@pytest.mark.parametrize(
    ("accounting", "packages"),
    [
        (False, "iproute2 munge slurm-wlm util-linux"),
        (True, "iproute2 mariadb-server munge slurm-wlm slurm-wlm-mysql-plugin slurmdbd util-linux"),
    ],
)
def test_missing_packages_are_told_with_the_command_that_installs_them(monkeypatch, accounting, packages):
    monkeypatch.setattr(spec, "tool", lambda name: name)
    monkeypatch.setattr(spec, "_MYSQL_PLUGINS", ("/nowhere", "*"))
    with pytest.raises(UsageError) as caught:
        require_packages(Spec(nodes=1, gpus_per_node=0, accounting=accounting))
    assert caught.value.message.startswith("sandbox: not installed: slurmctld, slurmd, sbatch,")
    assert caught.value.hint == f"apt-get install --no-install-recommends {packages}"


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("command", [[], ["no-such-command-anywhere"]])
def test_a_command_that_is_not_there_is_refused_before_anything_starts(command, place):
    with pytest.raises(UsageError, match=r"nothing to run|no such command: no-such-command-anywhere"):
        cluster.run(command, nodes=1, gpus_per_node=0)
    assert not list(place.iterdir())


def test_a_node_verb_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"no verb 'burn'; there are crash, cut, join, up, kill-slurmd, start-slurmd"):
        cluster.node("burn", "n1")


def test_without_a_sandbox_there_is_nothing_to_ask():
    assert cluster.status() == {"up": False, "nodes": [], "jobs": []}
    assert cluster.down() is False
    with pytest.raises(UsageError, match="no sandbox is up"):
        cluster.node("crash", "n1")
