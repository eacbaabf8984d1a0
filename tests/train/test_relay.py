"""The relay with a stand-in for torchrun and mpirun: what those do with signals is their own business."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hpctrain import plan as planning
from hpctrain.config.load import load
from hpctrain.dist.mpirun import Failure
from hpctrain.rundir import read_json
from hpctrain.train.hub import start
from hpctrain.train.watch import Watch, conclude

RANK = """
import os, pathlib, signal, sys, time
log = pathlib.Path(sys.argv[1])
caught = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda n, f: caught.append(signal.Signals(n).name))
log.write_text("ready")
while len(caught) < 2:
    time.sleep(0.01)
time.sleep(0.3)
log.write_text(" ".join(sorted(caught)))
"""
AGENT = """
import os, pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[1])
argv = [[sys.executable, folder / "rank.py", folder / f"rank{n}"] for n in range(2)]
ranks = [subprocess.Popen(argv[n], env={**os.environ, "RANK": str(n)}) for n in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""


def test_each_signal_reaches_each_rank_and_the_agent_lives_on(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "agent.py").write_text(AGENT)
    agent = [sys.executable, str(tmp_path / "agent.py"), str(tmp_path)]
    program = f"import sys\nfrom hpctrain.train.relay import _supervised\nsys.exit(_supervised({agent!r}))"
    wrapper = subprocess.Popen([sys.executable, "-c", program])
    logs = [tmp_path / f"rank{n}" for n in range(2)]
    try:
        until(lambda: all(log.exists() and log.read_text() == "ready" for log in logs))
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2):  # the second USR2 is not passed on
            wrapper.send_signal(number)
        assert wrapper.wait(20) == 0
    finally:
        wrapper.kill()
        wrapper.wait()
    assert [log.read_text() for log in logs] == ["SIGTERM SIGUSR2"] * 2


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_killed_agent_is_told_by_its_signal():
    program = (
        "import sys\nfrom hpctrain.train.relay import _supervised\n"
        "sys.exit(_supervised([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)']))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 137


@pytest.mark.parametrize("deaf", [True, False])
def test_a_launcher_is_deaf_to_what_its_ranks_hear(tmp_path, deaf):
    """One that installs handlers of its own, as mpirun does, is not reached either; one that is not deaf shows it."""
    program = (
        "import signal, sys\nsignal.signal(signal.SIGUSR2, lambda *_: sys.exit(3))\n"
        "print('ready', flush=True)\nimport time\ntime.sleep(0.5)\n"
    )
    argv = [sys.executable, "-c", program]
    if deaf:
        launcher = start(argv, dict(os.environ), stdout=subprocess.PIPE)
    else:
        launcher = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"ready\n"
    launcher.send_signal(signal.SIGUSR2)
    assert launcher.wait(10) == (0 if deaf else 3)
    launcher.stdout.close()


@pytest.mark.parametrize(
    ("says", "outcome", "grace_s"),
    [("Process 1 exit with status code 7.", None, 0), ("nothing", {"verdict": "failed"}, 0.2)],
)
def test_a_launcher_that_does_not_end_after_a_failure_is_ended(tmp_path, says, outcome, grace_s):
    if outcome:
        (tmp_path / "outcome.json").write_text(json.dumps(outcome))
    launcher = start(["sh", "-c", f"echo {says}; sleep 60"], dict(os.environ), stdout=subprocess.PIPE)
    watch = Watch(launcher, tmp_path / "outcome.json", grace_s=grace_s)
    until(lambda: watch.end_when_failed() or launcher.poll() is not None)
    assert launcher.returncode == -signal.SIGKILL
    assert says in watch.words()


@pytest.mark.parametrize(
    ("failure", "written", "expected"),
    [
        (Failure(3, "n2", 137), None, ("rank_killed", "rank 3 on n2 was killed by signal 9")),
        (Failure(3, None, 7), None, ("error", "rank 3 on n2 ended with exit code 7")),
        (Failure(None, "n1", 7), None, ("error", "a rank on n1 ended with exit code 7")),
        (Failure(3, None, 143), None, ("rank_killed", "rank 3 on n2 was killed by signal 15")),
        (Failure(3, None, 4), ("error", 3), ("error", "mine")),
        (Failure(3, None, 137), ("error", 1), ("rank_killed", "mine")),  # the echo of rank 1
        (Failure(3, None, 137), ("preempted", 1), ("preempted", "mine")),
    ],
)
def test_the_outcome_says_which_rank_failed_and_how(tmp_path, failure, written, expected):
    file, path = tmp_path / "config.yaml", tmp_path / "outcome.json"
    file.write_text("name: c\nslurm: {nodes: 2, ranks_per_node: 2}\ncommand: [x]\n")
    loaded = load(file)
    plan = planning.make(loaded, planning.layout_on_slurm(loaded), planning.Samples())
    if written:
        path.write_text(json.dumps({"cause": written[0], "rank": written[1], "message": "mine"}))
    conclude(path, plan, ["n1", "n2"], failure)
    outcome = read_json(path)
    assert (outcome["cause"], outcome["message"]) == expected
