"""What is special about mpirun and horovodrun; what all launchers share is in test_runs.py."""

import json
import os
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

# no torch: it starts at once, so that each case takes seconds
SCRIPT = """
import os, pathlib, signal, sys, time
rank, act = int(os.environ["RANK"]), sys.argv[1]
attempt = int(os.environ["HPCTRAIN_ATTEMPT"])
told = []
if act == "save" and attempt == 1:
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda n, f: told.append(signal.Signals(n).name))
pathlib.Path(f"up{rank}.{attempt}").write_text(os.environ["TOKEN"])
while not all(pathlib.Path(f"up{other}.{attempt}").exists() for other in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.01)
if act == "save" and attempt == 1:
    while not told:
        time.sleep(0.01)
    time.sleep(1)
    pathlib.Path(f"saved{rank}").write_text(told[0])
    if rank == 0:
        pathlib.Path(os.environ["HPCTRAIN_RUN"], "attempts/1/outcome.json").write_text(
            '{"verdict":"stopped","cause":"time_limit"}'
        )
if act == "exit" and rank == 3:
    sys.exit(7)
if act in {"exit", "sleep"}:
    time.sleep(120)
"""
CONFIG = """
name: script
slurm: {nodes: 2, ranks_per_node: 2, time: 00:30:00}
command: [python, script.py, ACT]
env: {setup: [export TOKEN=hunter2]}
restart: {rank_killed: 0}
"""
TOOLS = "bash sh srun scontrol scancel env od tr grep mkdir ln rm mv sleep"  # what the batch script calls, and no MPI
RUNNERS = ["mpirun", "horovodrun"]


@pytest.fixture
def submit(cluster, tmp_path, request):
    """Submit the script under a launcher; return job id and run directory."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def call(launcher: str, act: str, *overrides: str) -> tuple[str, Path]:
        request.getfixturevalue("open_mpi")
        options = [f"dist.launcher={launcher}", *overrides]
        if launcher == "horovodrun":
            if find_spec("horovod") is None:
                pytest.skip("Horovod is not installed: bash jobs/build-horovod.sh")
            options.append("dist.strategy=horovod")
        (tmp_path / "script.yaml").write_text(CONFIG.replace("ACT", act))
        argv = [sys.executable, "-m", "hpctrain", "submit", "script.yaml", *options]
        done = cluster.run(argv, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        job, run = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()[:2]]
        return job, Path(run)

    yield call
    cluster.run(["scancel", "--me"])
    until(lambda: not cluster.run(["squeue", "-h"]).stdout.strip(), 30)
    until(lambda: not left_of(tmp_path), 10)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def left_of(folder):
    """Command lines of the processes of runs below a folder: relays, daemons, agents, ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            if str(folder / "runs").encode() in text and b"HPCTRAIN_ATTEMPT" in text:
                found[int(path.name)] = (path / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def await_ranks(run, attempt=1):
    until(lambda: len(list(run.glob(f"code/up*.{attempt}"))) == 4)


def outcome(run, attempt=1, seconds=30):
    path = run / f"attempts/{attempt}/outcome.json"
    until(path.exists, seconds)
    return json.loads(path.read_text())


@pytest.mark.parametrize("launcher", RUNNERS)
@pytest.mark.parametrize("options", [["--signal=USR2"], ["--batch", "--signal=USR2"], ["--signal=TERM"]])
def test_ranks_that_are_told_to_stop_can_save_and_are_requeued(submit, cluster, launcher, options):
    job, run = submit(launcher, "save")
    await_ranks(run)
    cluster.run(["scancel", *options, job])
    assert outcome(run)["verdict"] == "stopped"
    name = {"USR2": "SIGUSR2", "TERM": "SIGTERM"}[options[-1].split("=")[1]]
    until(lambda: len(list(run.glob("code/saved*"))) == 4, 10)  # rank 0 writes the outcome, and not as the last
    assert [(run / f"code/saved{rank}").read_text() for rank in range(4)] == [name] * 4
    assert outcome(run, 2, 90)["verdict"] == "completed"


@pytest.mark.parametrize("launcher", RUNNERS)
def test_a_rank_that_fails_is_named_and_ends_the_others(submit, launcher):
    _, run = submit(launcher, "exit")
    await_ranks(run)
    host = json.loads((run / "attempts/1/begin.json").read_text())["hosts"][1]
    assert outcome(run, seconds=10) == {
        "verdict": "failed",
        "cause": "error",
        "exit_code": 7,
        "rank": 3,
        "host": host,
        "message": f"rank 3 on {host} ended with exit code 7",
    }


@pytest.mark.parametrize(
    ("launcher", "victim", "who"),
    [
        ("mpirun", b"script.py", "rank"),
        ("mpirun", b"orted\0", "task 0 on n"),
        ("mpirun", b"mpirun\0", "task 0 on n"),
        ("mpirun", b"hpctrain.train.relay", "task"),
        ("horovodrun", b"script.py", "rank"),
        ("horovodrun", b"hpctrain.train.horovodrun", "task 0 on n"),
    ],
)
def test_whatever_is_killed_the_attempt_ends_and_nothing_is_left(submit, tmp_path, launcher, victim, who):
    _, run = submit(launcher, "sleep")
    await_ranks(run)
    pids = [pid for pid, cmdline in left_of(tmp_path).items() if victim in cmdline.split(b"-np")[0][:200]]
    os.kill(pids[-1], signal.SIGKILL)
    ended = outcome(run, seconds=10)
    assert (ended["verdict"], ended["cause"]) == ("failed", "rank_killed")
    assert ended["message"].startswith(who)
    until(lambda: not left_of(tmp_path), 15)


@pytest.mark.parametrize("launcher", RUNNERS)
def test_a_cancelled_run_leaves_no_process_and_no_secret_in_sight(submit, cluster, tmp_path, launcher):
    job, run = submit(launcher, "sleep")
    await_ranks(run)
    until(lambda: [(run / f"code/up{rank}.1").read_text() for rank in range(4)] == ["hunter2"] * 4, 10)
    running = left_of(tmp_path)
    assert len(running) > 8
    assert not [cmdline for cmdline in running.values() if b"hunter2" in cmdline]
    cluster.run(["scancel", job])
    until(lambda: not left_of(tmp_path), 15)
    assert outcome(run)["cause"] == "cancelled"


def test_a_job_without_mpirun_says_how_to_get_one(submit, cluster, tmp_path_factory):
    tools = tmp_path_factory.mktemp("tools")
    for name in TOOLS.split():
        (tools / name).symlink_to(shutil.which(name, path=cluster.env["PATH"]))
    _, run = submit("mpirun", "sleep", f"env.setup=['export PATH={tools}']")
    ended = outcome(run)
    assert ended["cause"] == "error"
    assert "there is no mpirun on PATH on n" in ended["message"]
    assert "env.modules=[openmpi]" in ended["message"]
    assert "dist.launcher=srun" in ended["message"]
