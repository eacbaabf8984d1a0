"""How an attempt ended where no rank has said so; that the script asks for it, tests/launch/test_script.py shows."""

import json

import pytest

from hpctrain.launch import verdict
from hpctrain.rundir import RunDir, publish, read_json


@pytest.fixture
def run(tmp_path):
    """A run with one attempt."""
    made = RunDir.create(tmp_path / "runs", "net")
    made.begin_attempt({"job_id": "7", "hosts": ["n1", "n2"]})
    return made


@pytest.mark.parametrize(
    ("code", "is_command", "killed_for_memory", "ended", "cause"),
    [
        (0, True, False, "completed", None),
        (0, False, False, "failed", "error"),
        (3, True, False, "failed", "error"),
        (-9, False, False, "failed", "rank_killed"),
        (-9, False, True, "failed", "out_of_memory"),
        (-11, False, True, "failed", "rank_killed"),
        (-15, True, False, "failed", "preempted"),
        (-15, False, False, "failed", "rank_killed"),
    ],
)
def test_local_ranks_that_left_no_outcome_are_judged_by_their_exit_code(
    code, is_command, killed_for_memory, ended, cause
):
    outcome = verdict.of_local(code, is_command=is_command, rank=1, host="h", out_of_memory=killed_for_memory)
    assert (outcome["verdict"], outcome.get("cause")) == (ended, cause)
    if code:
        assert (outcome["rank"], outcome["host"]) == (1, "h")


@pytest.mark.parametrize(
    ("written", "cause", "rank"),
    [
        ({"cause": "rank_killed", "echo": True, "rank": 0}, "rank_killed", 1),
        ({"cause": "rendezvous_failed", "rank": 0}, "rank_killed", 1),
        ({"cause": "hang", "rank": 0}, "hang", 0),
        ({"cause": "error", "rank": 1}, "error", 1),  # it said so itself, and was killed later
        ({"cause": "data_error", "rank": 0}, "data_error", 0),
    ],
)
def test_an_echo_gives_way_to_the_rank_that_was_killed_and_a_cause_does_not(run, written, cause, rank):
    publish(run.outcome(1), json.dumps({"verdict": "failed", "message": "seen", **written}).encode())
    verdict.judge_local(run, 1, verdict.of_local(-9, is_command=False, rank=1, host="h"))
    found = read_json(run.outcome(1))
    assert (found["cause"], found["rank"], found.get("echo")) == (cause, rank, None)


SRUN = """\
1: slurmstepd-n2: error: a rank's own line
srun: error: n2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=3.0
srun: error: n1: task 0: Exited with exit code 4
"""


def judged(run, log, code=137, *, ending=False, is_task_rank=True, written=None):
    run.launch_log(1).write_text(log)
    if written:
        publish(run.outcome(1), json.dumps(written).encode())
    verdict.on_slurm(run, 1, code, ending=ending, is_command=False, is_task_rank=is_task_rank)
    return read_json(run.outcome(1))


def test_the_first_task_that_failed_is_named_with_its_host(run):
    assert judged(run, SRUN) == {
        "verdict": "failed", "cause": "rank_killed", "exit_code": 137, "message": "rank 1 on n2 was killed: Killed",
        "rank": 1, "host": "n2",
    }  # fmt: skip


def test_a_task_that_is_a_relay_is_not_called_a_rank(run):
    found = judged(run, SRUN, is_task_rank=False)
    assert (found["host"], found.get("rank"), found["message"]) == ("n2", None, "task 1 on n2 was killed: Killed")


def test_the_echo_of_a_killed_rank_is_replaced_by_that_rank(run):
    echo = {"verdict": "failed", "cause": "rank_killed", "echo": True, "rank": 0, "host": "n1", "message": "lost peer"}
    found = judged(run, SRUN, written=echo)
    assert (found["cause"], found["rank"], found["host"]) == ("rank_killed", 1, "n2")
    assert (found["message"], found["echoed"], "echo" in found) == ("rank 1 on n2: Killed", "lost peer", False)


NODE_LOST = """\
srun: error: Node failure on n2
0: slurmstepd-n1: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-11-20T19:45:18 DUE TO NODE FAILURE, SEE LOG ***
srun: error: n1: task 0: Terminated
srun: error: n2: task 1: Terminated
"""


@pytest.mark.parametrize("ending", [True, False])
@pytest.mark.parametrize("cause", [None, "error", "preempted", "rank_killed", "rendezvous_failed"])
def test_the_node_that_was_lost_is_blamed_and_not_those_that_were_left(run, ending, cause):
    left = {"verdict": "failed", "cause": cause, "rank": 0, "host": "n1"} if cause else None
    found = judged(run, NODE_LOST, ending=ending, written=left)
    assert (found["cause"], found["host"], found.get("rank")) == ("node_failure", "n2", None)


def test_an_attempt_that_was_cut_off_blames_the_node_of_its_script(run):
    run.launch_log(1).touch()
    verdict.cut_off(run, 1)
    found = read_json(run.outcome(1))
    assert (found["verdict"], found["cause"], found["host"]) == ("failed", "node_failure", "n1")


def test_an_attempt_that_was_cut_off_after_it_had_completed_stays_completed(run):
    run.launch_log(1).write_text(NODE_LOST)
    publish(run.outcome(1), b'{"verdict":"completed"}')
    verdict.cut_off(run, 1)
    assert read_json(run.outcome(1)) == {"verdict": "completed"}
