"""`up`, `down`, `status` and `node`: a sandbox that lives until it is told to end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hpctrain
from hpctrain.errors import ClusterError, UsageError
from hpctrain.sandbox import cluster, state
from hpctrain.sandbox.root import Root, sweep

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


@pytest.fixture
def sandbox():
    yield cluster.up(nodes=2, gpus_per_node=2)
    cluster.down()


def client(sandbox: state.Sandbox, name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a client of Slurm from outside."""
    argv = [str(sandbox.bin / name), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, **options)


def eventually(question: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def n1_reaches_n2(sandbox: state.Sandbox) -> bool:
    knock = "timeout 1 bash -c 'exec 3<>/dev/tcp/n2/6818'"
    return client(sandbox, "srun", "-w", "n1", "bash", "-c", knock).returncode == 0


def states() -> dict[str, str]:
    return {node["name"]: node["state"] for node in cluster.status()["nodes"]}


def test_all_nodes_are_idle_when_up_returns(sandbox):
    assert state.current() == sandbox
    assert (sandbox.nodes, sandbox.gpus_per_node) == (2, 2)
    assert cluster.status() == {
        "up": True,
        "root": str(sandbox.root),
        "nodes": [
            {"name": "n1", "state": "idle", "cpus": "8", "gres": "gpu:2"},
            {"name": "n2", "state": "idle", "cpus": "8", "gres": "gpu:2"},
        ],
        "jobs": [],
    }
    assert state.state_file().stat().st_mode & 0o777 == 0o600


def test_clients_from_outside_see_the_callers_files(sandbox, tmp_path):
    (tmp_path / "job.sh").write_text("#!/bin/bash\npwd; hostname; srun -N2 hostname | sort; which srun\n")
    submitted = client(sandbox, "sbatch", "--parsable", "-N2", "-o", "out", "job.sh", cwd=tmp_path)
    job = submitted.stdout.strip()
    assert job.isdigit(), submitted.stderr
    eventually(lambda: "COMPLETED" in client(sandbox, "scontrol", "-o", "show", "job", job).stdout)
    assert (tmp_path / "out").read_text().split()[:4] == [str(tmp_path), "n1", "n1", "n2"]
    assert client(sandbox, "srun", "-N2", "hostname", cwd=tmp_path).returncode == 0


def test_clients_relay_arguments_and_exit_codes(sandbox):
    done = client(sandbox, "srun", "printf", "%s|", "two words", "", "$HOME", "*")
    assert done.stdout == "two words||$HOME|*|"
    assert client(sandbox, "srun", "bash", "-c", "exit 5").returncode == 5
    assert client(sandbox, "scancel", "--no-such-option").returncode != 0


def test_clients_work_on_the_nodes_and_below_salloc(sandbox):
    path = {**os.environ, "PATH": f"{sandbox.bin}:{os.environ['PATH']}"}
    ask = ["srun", "env", "--unset=HPCTRAIN_SANDBOX_ENTERED", "squeue", "-h", "-o", "%D"]
    done = client(sandbox, "salloc", "-Q", "-N2", *ask, env=path)
    assert done.stdout.split() == ["2", "2"], done.stderr


def test_jobs_are_listed(sandbox):
    client(sandbox, "sbatch", "-N1", "-J", "a name", "-o", "/dev/null", "--wrap", "sleep 60")
    eventually(lambda: [job["state"] for job in cluster.status()["jobs"]] == ["RUNNING"])
    (job,) = cluster.status()["jobs"]
    assert {key: job[key] for key in ("id", "name", "nodes", "partition")} == {
        "id": "1",
        "name": "a name",
        "nodes": "n1",
        "partition": "main",
    }


def test_a_second_one_is_refused(sandbox):
    with pytest.raises(UsageError, match="one is up already") as caught:
        cluster.up(nodes=1, gpus_per_node=0)
    assert caught.value.hint == "hpctrain sandbox down"
    assert states() == {"n1": "idle", "n2": "idle"}


def test_down_ends_and_removes_everything(sandbox):
    client(sandbox, "sbatch", "-N2", "-o", "/dev/null", "--wrap", "srun sleep 60")
    assert cluster.down() is True
    assert not sandbox.root.exists()
    assert not state.state_file().exists()
    assert state.current() is None
    assert cluster.down() is False


@pytest.mark.parametrize("of", ["holder", "process 1"])
def test_after_kill_9_of_the_holder_a_new_one_starts(sandbox, of):
    pid = sandbox.holder_pid
    if of == "process 1":
        (pid,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: state.current() is None)
    new = cluster.up(nodes=1, gpus_per_node=0)
    assert not sandbox.root.exists()
    assert state.current() == new


def test_it_outlives_the_process_that_called_up():
    code = "from hpctrain.sandbox import cluster; cluster.up(nodes=1, gpus_per_node=0)"
    env = {**os.environ, "PYTHONPATH": str(Path(hpctrain.__file__).parents[1])}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, check=True)
    assert states() == {"n1": "idle"}
    assert cluster.down() is True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("after_s", [0.02, 0.04, 0.06, 0.08, 0.1, 0.15])
def test_an_interrupted_start_leaves_nothing(number, after_s, place):
    code = "from hpctrain.sandbox import cluster; print(flush=True); cluster.up(nodes=8, gpus_per_node=0)"
    env = {**os.environ, "PYTHONPATH": str(Path(hpctrain.__file__).parents[1])}
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(number)
    if process.returncode == 0 or state.current() is not None:
        # It was quicker; the signal may also have come between the end of `up` and that of the process. Then the
        # sandbox is whole: one that is up by half is what must never be.
        assert set(states().values()) == {"idle"}
        assert cluster.down() is True
    assert state.current() is None
    if number == signal.SIGKILL:  # before there was a holder, what it left is for the next start to remove
        eventually(lambda: not any(Root(left).is_alive() for left in place.glob("hpctrain-sandbox-*")))
        for left in place.glob("hpctrain-sandbox-*"):
            os.utime(left, (0, 0))
        sweep()


def test_a_start_that_fails_leaves_no_state(tmp_path, monkeypatch):
    fake = tmp_path / "munged"
    fake.write_text("#!/bin/sh\necho 'no entropy' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClusterError, match=r"munged did not start\nmunged\.out\.log: no entropy"):
        cluster.up(nodes=1, gpus_per_node=0)
    assert not state.state_file().exists()


def test_a_state_folder_that_cannot_be_made_is_told(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    with pytest.raises(UsageError) as caught:
        cluster.up(nodes=1, gpus_per_node=0)
    assert caught.value.hint == "export XDG_STATE_HOME=/a/folder/of/yours"


def test_a_crashed_node_takes_its_processes_along_and_comes_back(sandbox):
    job = client(sandbox, "sbatch", "--parsable", "-w", "n2", "--requeue", "-o", "/dev/null", "--wrap", "sleep 60")
    eventually(lambda: states()["n2"] == "mixed")
    cluster.node("crash", "n2")
    with pytest.raises(UsageError, match="n2 has crashed"):
        cluster.node("kill-slurmd", "n2")
    cluster.node("up", "n2")
    with pytest.raises(UsageError, match="n2 is up"):
        cluster.node("up", "n2")
    number = job.stdout.strip()
    # a reboot that quick would go unnoticed, and the job hang
    eventually(lambda: "Restarts=1" in client(sandbox, "scontrol", "-o", "show", "job", number).stdout)
    eventually(lambda: client(sandbox, "srun", "--overlap", "-w", "n2", "hostname").stdout == "n2\n")


def test_a_cut_node_hears_nothing_until_its_cable_is_mended(sandbox):
    assert n1_reaches_n2(sandbox)
    cluster.node("cut", "n2")
    assert not n1_reaches_n2(sandbox)
    cluster.node("join", "n2")
    eventually(lambda: n1_reaches_n2(sandbox))


def test_a_rebooted_node_is_known_to_its_neighbours_at_once(sandbox):
    assert n1_reaches_n2(sandbox)
    cluster.node("crash", "n2")
    cluster.node("up", "n2")
    eventually(lambda: states()["n2"] == "idle")
    assert n1_reaches_n2(sandbox)


def test_kill_slurmd_leaves_the_jobs_alive(sandbox, tmp_path):
    beat = f"while sleep 0.05; do date +%N > {tmp_path}/beat; done"
    client(sandbox, "sbatch", "-w", "n2", "-o", "/dev/null", "--wrap", beat)
    eventually((tmp_path / "beat").exists)
    cluster.node("kill-slurmd", "n2")
    with pytest.raises(UsageError, match="slurmd of n2 does not run"):
        cluster.node("kill-slurmd", "n2")
    before = (tmp_path / "beat").read_text()
    eventually(lambda: (tmp_path / "beat").read_text() not in ("", before), seconds=5)
    cluster.node("start-slurmd", "n2")
    with pytest.raises(UsageError, match="slurmd of n2 runs already"):
        cluster.node("start-slurmd", "n2")
    eventually(lambda: client(sandbox, "srun", "-w", "n2", "hostname").stdout == "n2\n")


def test_an_unknown_node_is_refused(sandbox):
    with pytest.raises(UsageError, match=r"there is no node 'n9'; the nodes are n1, n2"):
        cluster.node("crash", "n9")


def test_verbs_and_status_work_inside_run():
    code = (
        "from hpctrain.sandbox import cluster; cluster.node('crash', 'n1'); cluster.node('up', 'n1'); "
        "print(cluster.status()['up'])"
    )
    outer = (
        f"from hpctrain.sandbox import cluster; cluster.run({[sys.executable, '-c', code]}, nodes=1, gpus_per_node=0)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(hpctrain.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", outer], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    "order", [b"", b"\n", b"[]\n", b'{"verb": "crash"}\n', b'{"verb": 1, "node": "n1"}\n', b"\xff\n"]
)
def test_a_garbled_order_does_not_end_it(order, sandbox):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(sandbox.root / "run" / "control"))
        connection.sendall(order)
        connection.shutdown(socket.SHUT_WR)
        connection.makefile().read()
    assert states() == {"n1": "idle", "n2": "idle"}
