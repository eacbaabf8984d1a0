"""The ledger's rules as a table of histories, and as properties of all of them; then what it reads from a run."""

import itertools
import json
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrain.causes import CAUSES
from hpctrain.config.schema import Restart
from hpctrain.launch import ledger
from hpctrain.launch.ledger import Attempt, decide
from hpctrain.rundir import RunDir, publish

BUDGETED = Restart.__struct_fields__
NEVER = sorted(set(CAUSES) - set(BUDGETED))


def ended(cause, gained=1, host=None, verdict="failed"):
    return Attempt(attempt=1, verdict=verdict, cause=cause, steps_gained=gained, host=host, message="what it said")


KILLED, STUCK, STOPPED = ended("rank_killed"), ended("rank_killed", 0), ended("time_limit", verdict="stopped")
TABLE = {
    "completed": ([STOPPED, ended(None, verdict="completed")], (False, 0, None), "completed"),
    "killed once": ([KILLED], (True, 75, "rank_killed"), "ended by rank_killed; restart 1 of 2"),
    "killed to the budget": ([KILLED] * 2, (True, 75, "rank_killed"), "restart 2 of 2"),
    "killed beyond it": ([KILLED] * 3, (False, 4, "rank_killed"), "3 times, restart.rank_killed allows 2"),
    "another cause has its own": ([KILLED, KILLED, STOPPED], (True, 75, "time_limit"), "restart 1 of 1"),
    "a budget of none": ([ended("hang")], (False, 4, "hang"), "1 times, restart.hang allows 0"),
    "nothing gained once": ([KILLED, STUCK], (True, 75, "rank_killed"), "restart 2 of 2"),
    "nothing gained twice": ([STUCK, STUCK], (False, 4, "no_progress"), "gained no step (ended twice by rank_killed)"),
    "nothing gained, then something": ([STUCK, KILLED], (True, 75, "rank_killed"), "restart 2 of 2"),
    "a warned stop counts if it gained nothing": (
        [STUCK, ended("time_limit", 0, verdict="stopped")], (False, 4, "no_progress"),
        "by rank_killed, then by time_limit",
    ),
    "a command's steps are not known": ([ended("rank_killed", None)] * 2, (True, 75, "rank_killed"), "restart 2 of 2"),
    "late, nothing saved": ([ended("time_limit", 0)], (False, 4, "time_limit"), "before it had saved anything"),
    "late, a command": ([ended("time_limit", None)], (False, 4, "time_limit"), "before it had saved anything"),
    "late, after a save": ([ended("time_limit", 3)], (True, 75, "time_limit"), "restart 1 of 1"),
    "no outcome at all": ([Attempt(attempt=1)], (False, 4, None), "it left no outcome"),
    "a cause that nobody knows": ([ended("sunspots")], (False, 4, "sunspots"), "what it said"),
    **{f"never after {cause}": ([ended(cause)], (False, 4, cause), "what it said") for cause in NEVER},
}  # fmt: skip


@pytest.mark.parametrize(("history", "decision", "reason"), TABLE.values(), ids=TABLE.keys())
def test_each_history_has_its_decision(history, decision, reason):
    found = decide(history, Restart(rank_killed=2, time_limit=1, hang=0))
    assert (found.again, found.exit_code, found.cause) == decision
    assert reason in found.reason


HISTORIES = st.lists(
    st.tuples(st.sampled_from(sorted(CAUSES)), st.sampled_from([None, 0, 1, 50]), st.sampled_from(["n1", "n2", None])),
    min_size=1,
    max_size=30,
)
BUDGETS = st.fixed_dictionaries({name: st.integers(0, 5) for name in BUDGETED})


@settings(max_examples=300, deadline=None)
@given(HISTORIES, BUDGETS)
def test_no_history_is_continued_beyond_a_budget_or_after_an_error(history, budgets):
    """Live through a history as a scheduler would: no more attempts start than the rules allow."""
    allowed, lived = Restart(**budgets), []
    for cause, gained, host in history:
        lived.append(ended(cause, gained, host))
        if not decide(lived, allowed).again:
            break
    restarts = [attempt.cause for attempt in lived[:-1]]  # each was followed by another attempt
    for name in CAUSES:
        assert restarts.count(name) <= budgets.get(name, 0)
    zeros = [attempt.steps_gained == 0 for attempt in lived[:-1]]
    assert not any(first and second for first, second in itertools.pairwise(zeros))


@pytest.mark.parametrize(
    ("blames", "excluded"),
    [
        (["n1", "n2"], ()),
        (["n1", "n2", "n1"], ("n1",)),
        (["n1", "n1", "n2", "n2"], ("n1", "n2")),
        ([None, None], ()),
    ],
)
def test_a_host_that_is_blamed_twice_is_left_out(blames, excluded):
    causes = ["rank_killed", "node_failure", "hang", "rendezvous_failed"]
    history = [ended(cause, 1, host) for cause, host in zip(causes, blames, strict=False)]
    assert decide(history, Restart()).exclude == excluded


@pytest.mark.parametrize("cause", ["preempted", "time_limit", "out_of_memory"])
def test_what_is_no_fault_of_a_host_does_not_blame_it(cause):
    assert decide([ended(cause, 1, "n1")] * 2, Restart(out_of_memory=9)).exclude == ()


# --- reading


@pytest.fixture
def new(tmp_path):
    """Make a run from attempts (first, done, outcome) and the steps of its checkpoints; first None: it never began."""

    def make(attempts, checkpoints=(), total=100):
        run = RunDir.create(tmp_path / "runs", "net")
        publish(run.plan, json.dumps({"total_steps": total}).encode())
        for first, done, outcome in attempts:
            number = run.begin_attempt({"job_id": "7", "hosts": ["n1", "n2"], "started": 10.0})
            if first is not None:
                run.steps(number).write_bytes(struct.pack("=qq", first, done))
            if outcome is not None:
                publish(run.outcome(number), json.dumps(outcome).encode())
                os.utime(run.outcome(number), (25, 25))
        for step in checkpoints:
            run.checkpoint(step).mkdir()
        return run

    return make


FAILED = {"verdict": "failed", "cause": "rank_killed", "rank": 1, "host": "n2", "message": "rank 1 was killed"}


def columns(run, *names):
    return [tuple(getattr(entry, name) for name in names) for entry in ledger.read(run)]


def test_steps_gained_and_lost_follow_from_where_the_next_attempt_went_on(new):
    attempts = [(0, 57, FAILED), (40, 90, FAILED), (None, None, FAILED), (80, 93, FAILED)]
    run = new(attempts, checkpoints=[80, 90])
    assert columns(run, "first_step", "last_step", "steps_gained", "work_lost") == [
        (0, 57, 40, 17),
        (40, 90, 40, 10),
        (None, None, 0, 0),
        (80, 93, 10, 3),
    ]


def test_a_damaged_checkpoint_counts_as_lost_work(new):
    """The second attempt saved step 50, but the third could only go on from 40."""
    run = new([(0, 40, FAILED), (40, 55, FAILED), (40, 41, None)], checkpoints=[40])
    assert columns(run, "steps_gained", "work_lost")[:2] == [(40, 0), (0, 15)]


def test_a_running_attempt_has_gained_and_lost_nothing_yet(new):
    run = new([(0, 5, None)], checkpoints=[4])
    assert columns(run, "last_step", "steps_gained", "work_lost", "verdict", "end") == [(5, None, None, None, None)]


def test_what_a_node_took_with_it_is_made_up_for_by_metrics(new):
    run = new([(0, 0, FAILED)])
    run.metrics(1).write_text('{"step":30,"split":"train"}\n{"ste')
    assert columns(run, "last_step", "work_lost") == [(30, 30)]


def test_a_commands_steps_are_not_known(new):
    assert columns(new([(None, None, FAILED)], total=None), "steps_gained", "work_lost") == [(None, None)]


def test_the_record_of_an_attempt_is_whole(new):
    run = new([(0, 7, FAILED)])
    decision = ledger.conclude(run, Restart())
    [entry] = ledger.read(run)
    assert decision.again
    assert (entry.attempt, entry.job_id, entry.start, entry.end, entry.nodes) == (1, "7", 10.0, 25.0, ["n1", "n2"])
    assert (entry.verdict, entry.cause, entry.rank, entry.host) == ("failed", "rank_killed", 1, "n2")
    assert (entry.decision, entry.reason) == ("again", "ended by rank_killed; restart 1 of 3")


def test_the_host_that_heard_an_echo_is_not_blamed(new):
    run = new([(0, 1, FAILED | {"echo": True})] * 2, checkpoints=[1])
    assert columns(run, "host") == [(None,), (None,)]


def test_budgets_are_those_of_one_job(new):
    run = new([(0, 1, FAILED), (1, 2, FAILED)], checkpoints=[2])
    publish(run.begin(1), b'{"job_id":"6"}')
    assert ledger.conclude(run, Restart(rank_killed=1)).again


def test_torn_files_are_no_crash(new):
    run = new([(0, 1, FAILED)])
    run.steps(1).write_bytes(b"torn")
    run.outcome(1).write_bytes(b'{"verdict":"fai')
    run.metrics(1).write_bytes(b"\0" * 64)
    assert columns(run, "first_step", "verdict", "cause") == [(None, None, None)]
    assert not ledger.conclude(run, Restart()).again
