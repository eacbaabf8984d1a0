"""The relays of two nodes, and the agent that mpirun takes for ssh: real processes, one machine."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hpctrain.errors import UsageError, WorldError
from hpctrain.rundir import RunDir
from hpctrain.train.agent import order_of
from hpctrain.train.hub import Hub

NODE = """
import os, sys
from pathlib import Path
from hpctrain.rundir import RunDir
from hpctrain.train.hub import obey
env = {**os.environ, "WHERE": "n2"}
sys.exit(obey(RunDir(Path(sys.argv[1])), 1, "n2", env, timeout_s=10, look=lambda: None))
"""


@pytest.fixture
def run(tmp_path):
    run = RunDir.create(tmp_path / "runs", "hub")
    run.begin_attempt({})
    return run


@pytest.fixture
def hub(run):
    hub = Hub(run, 1, ["n1", "n2"], {**os.environ, "WHERE": "n1"})
    hub.open("127.0.0.1")
    node = subprocess.Popen([sys.executable, "-c", NODE, run.path])
    yield hub
    hub.close()
    assert node.wait(10) == 0


def agent(run, *arguments):
    env = {**os.environ, "HPCTRAIN_RUN": str(run.path), "HPCTRAIN_ATTEMPT": "1"}
    return subprocess.Popen([run.agent(1), *arguments], env=env)


@pytest.mark.parametrize("host", ["n1", "n2", "n2.cluster.example.org"])
def test_a_command_runs_where_the_launcher_wants_it(run, hub, tmp_path, host):
    hub.await_nodes(10)
    note = tmp_path / "note"
    call = agent(run, "-o", "StrictHostKeyChecking=no", host, "-q", f"echo $WHERE 'a  b' >{note};", "exit", "7")
    assert call.wait(10) == 7
    assert note.read_text() == f"{host[:2]} a  b\n"


def test_an_unknown_host_and_a_killed_command_are_reported(run, hub):
    hub.await_nodes(10)
    assert agent(run, "n3", "true").wait(10) == 255
    assert agent(run, "n2", "kill -9 $$").wait(10) == 137


def test_what_runs_elsewhere_ends_with_its_agent_but_not_by_the_signals_of_the_ranks(run, hub, tmp_path):
    hub.await_nodes(10)
    note = tmp_path / "note"
    call = agent(run, "n2", f"(echo $BASHPID >{note}; exec sleep 60); true")
    until(lambda: note.exists() and note.read_text().strip())
    for number in (signal.SIGTERM, signal.SIGUSR2):
        call.send_signal(number)
    time.sleep(0.3)
    assert call.poll() is None
    call.kill()
    call.wait()
    until(lambda: not os.path.exists(f"/proc/{note.read_text().strip()}"))  # noqa: PTH110


def test_a_stranger_is_turned_away(run, hub, tmp_path, capfd):
    hub.await_nodes(10)
    run.secret(1).rename(tmp_path / "secret")
    run.secret(1).write_text("a guess")
    assert agent(run, "n2", f"touch {tmp_path}/done").wait(10) == 255
    assert "turned away a stranger from 127.0.0.1" in capfd.readouterr().err
    assert not (tmp_path / "done").exists()


def test_a_node_that_does_not_come_is_named(run):
    hub = Hub(run, 1, ["n1", "n2", "n3"], {})
    hub.open("127.0.0.1")
    with pytest.raises(WorldError, match=r"after 0\.1 s nothing has started on n2, n3"):
        hub.await_nodes(0.1)


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        (["n2", "orted", "-mca", "ess", "env"], ("n2", "orted -mca ess env")),
        (["-x", "n2", '"/opt/proxy"', "--port", "n1:3"], ("n2", '"/opt/proxy" --port n1:3')),
        (["-o", "A=no", "-q", "n2", "-p", "22", "-o", "ConnectTimeout=10", "true"], ("n2", "true")),
    ],
)
def test_the_words_of_ssh_are_understood(arguments, order):
    assert order_of(arguments) == order


@pytest.mark.parametrize("arguments", [[], ["n2"], ["-o", "A=no", "n2"]])
def test_a_call_without_host_or_command_is_refused(arguments):
    with pytest.raises(UsageError, match="neither host nor command"):
        order_of(arguments)
