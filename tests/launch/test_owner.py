"""One owner per run directory, with real processes; jobs are those that a stand-in for squeue knows."""

import json
import os
import platform
import subprocess
import sys
import time

import pytest

from hpctrain.errors import OwnedError
from hpctrain.launch import owner
from hpctrain.processes import start_time
from hpctrain.rundir import RunDir, publish, read_json


@pytest.fixture
def run(tmp_path):
    made = RunDir.create(tmp_path / "runs", "net")
    publish(made.config, b"name: net")
    return made


@pytest.fixture
def job(fake):
    """Let squeue know job 7 in a state, or no job."""

    def answers(state=None):
        fake("sacct", "exit 1")
        line = f"7\\x1f{state}\\x1fNone\\x1f1\\x1fn1\\x1f0\\x1f0\\n" if state else ""
        return fake("squeue", f"printf '{line}'")

    return answers


def put(run, number, **record):
    run.owners.mkdir(exist_ok=True)
    publish(run.owner(number), json.dumps(record).encode())


def a_process(pid, shift=0, host=None):
    started = (start_time(pid) or 0) + shift
    return {"scheduler": "local", "job_id": f"local-{pid}", "host": host or platform.node(), "pid": pid,
            "pid_start": started, "since": 10}  # fmt: skip


def test_the_first_owns_it_and_may_claim_it_again(run):
    me = owner.of_process()
    assert [owner.claim(run, me), owner.claim(run, me)] == [1, 1]


def test_a_living_process_is_not_pushed_aside(run):
    put(run, 1, **a_process(os.getppid()))
    before = sorted(run.path.rglob("*"))
    with pytest.raises(OwnedError, match=f"belongs to process {os.getppid()} on ") as caught:
        owner.claim(run, owner.of_process())
    assert caught.value.exit_code == 3
    assert f"hpctrain cancel {run.path}" in caught.value.hint
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize(("pid", "shift"), [(2**22 + 1, 0), (os.getppid(), 1)], ids=["gone", "its id is used again"])
def test_a_dead_process_is_taken_over(run, pid, shift):
    put(run, 3, **a_process(pid, shift))
    assert owner.claim(run, owner.of_process()) == 4


def test_a_process_of_another_machine_is_not_called_dead_from_here(run):
    put(run, 1, **a_process(2**22 + 1, host="login2"))
    with pytest.raises(OwnedError, match="a process of login2; whether it still runs can be seen only there"):
        owner.claim(run, owner.of_process())


def test_what_was_released_is_free_although_its_process_lives(run):
    put(run, 1, **a_process(os.getppid()))
    owner.release(run, 1)
    assert owner.claim(run, owner.of_process()) == 2
    assert read_json(run.owner(1))["released"] > 0


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING", "SUSPENDED"])
def test_a_job_that_slurm_has_not_ended_keeps_its_run(run, job, state):
    job(state)
    put(run, 1, **owner.of_job("7", ""))
    with pytest.raises(OwnedError, match=rf"belongs to job 7 since .* \({state}\)"):
        owner.claim(run, owner.of_job("8", ""))


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", None])
def test_a_job_that_has_ended_is_taken_over(run, job, state):
    job(state)
    put(run, 1, **owner.of_job("7", ""))
    assert owner.claim(run, owner.of_job("8", "")) == 2


def test_the_requeues_of_a_job_keep_its_run(run, job):
    calls = job("RUNNING")
    assert [owner.claim(run, owner.of_job("7", "")) for _ in range(3)] == [1, 1, 1]
    assert not calls.exists(), "there is nothing to ask"


def test_a_slurm_that_does_not_answer_does_not_free_a_run(run, fake):
    fake("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    put(run, 1, **owner.of_job("7", ""))
    with pytest.raises(OwnedError, match="whether that job still runs cannot be asked"):
        owner.claim(run, owner.of_job("8", ""))


def test_the_job_of_a_sandbox_that_is_gone_has_ended(run, tmp_path):
    put(run, 1, **owner.of_job("7", f"{tmp_path}/hpctrain-sandbox-x/etc/slurm.conf"))
    assert owner.claim(run, owner.of_process()) == 2


def test_who_comes_between_an_outcome_and_its_verdict_waits(run):
    """The supervisor before has one more line to write; whoever resumes now need not try twice."""
    put(run, 1, **a_process(os.getppid()))
    run.begin_attempt({"job_id": f"local-{os.getppid()}"})
    publish(run.outcome(1), b'{"verdict":"completed"}')
    with subprocess.Popen([sys.executable, "-c", LATE, str(run.path)]):
        assert owner.claim(run, owner.of_process()) == 2


def test_an_owner_that_will_try_again_is_not_waited_for(run):
    put(run, 1, **a_process(os.getppid()))
    run.begin_attempt({"job_id": f"local-{os.getppid()}"})
    publish(run.outcome(1), b'{"verdict":"failed","cause":"rank_killed"}')
    publish(run.verdict(1), b'{"again":true}')
    began = time.monotonic()
    with pytest.raises(OwnedError):
        owner.claim(run, owner.of_process())
    assert time.monotonic() - began < 20, "it would wait for 30 s"


def test_a_claim_that_is_handed_over_passes_by_one_that_lives(run):
    put(run, 1, **a_process(os.getppid()))
    assert owner.claim(run, owner.of_process(), handed_over=1) == 2
    put(run, 3, **a_process(os.getppid()))
    with pytest.raises(OwnedError):
        owner.claim(run, owner.of_process(), handed_over=1)  # not the number that was handed over


LATE = """
import sys, time
from pathlib import Path
from hpctrain.launch import owner
from hpctrain.rundir import RunDir
time.sleep(0.5)
owner.release(RunDir(Path(sys.argv[1])), 1)
"""

RACER = """
import sys, time
from pathlib import Path
from hpctrain.errors import OwnedError
from hpctrain.launch import owner
from hpctrain.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    print(owner.claim(run, owner.of_process()), flush=True)
    sys.stdin.readline()
except OwnedError:
    print("owned", flush=True)
"""


@pytest.mark.parametrize("turn", range(5))
def test_of_many_that_claim_at_once_one_wins(run, turn):
    put(run, 1, **a_process(2**22 + 1))  # a dead owner, whom all of them find
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(run.path)], **pipes) for _ in range(6)]
    try:
        assert all(racer.stdout.readline() == "ready\n" for racer in racers)
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.stdout.readline().strip() for racer in racers]
    finally:
        for racer in racers:
            racer.communicate()
    assert sorted(answers) == ["2", *["owned"] * 5]
