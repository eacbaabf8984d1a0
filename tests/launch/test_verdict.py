import pytest

from hpctrain.config.schema import Restart
from hpctrain.launch.verdict import decide, outcome_of

STOPPED = {"verdict": "stopped", "cause": "time_limit"}
KILLED = {"verdict": "failed", "cause": "rank_killed"}
DONE = {"verdict": "completed"}


def test_completed_is_the_end():
    assert (decide([STOPPED, DONE], Restart()).again, decide([DONE], Restart()).exit_code) == (False, 0)


def test_a_user_error_is_never_tried_again():
    verdict = decide([{"verdict": "failed", "cause": "error", "message": "ValueError: x"}], Restart())
    assert (verdict.again, verdict.exit_code, verdict.message) == (False, 4, "ValueError: x")


def test_each_cause_has_a_budget_of_its_own():
    budgets = Restart(rank_killed=2, time_limit=1)
    assert decide([KILLED, KILLED], budgets).again
    assert not decide([KILLED, KILLED, KILLED], budgets).again
    assert decide([KILLED, KILLED, STOPPED], budgets).again
    assert decide([STOPPED, KILLED, STOPPED], budgets).message == (
        "ended by time_limit 2 times, restart.time_limit allows 1"
    )


def test_a_budget_of_zero_means_never():
    assert not decide([KILLED], Restart(rank_killed=0)).again


@pytest.mark.parametrize(
    ("code", "is_command", "verdict", "cause"),
    [
        (0, True, "completed", None),
        (0, False, "failed", "error"),
        (3, True, "failed", "error"),
        (-9, False, "failed", "rank_killed"),
        (-15, True, "failed", "preempted"),
        (-15, False, "failed", "rank_killed"),
    ],
)
def test_ranks_that_left_no_outcome_are_judged_by_their_exit_code(code, is_command, verdict, cause):
    outcome = outcome_of(code, is_command=is_command, rank=1)
    assert (outcome["verdict"], outcome.get("cause")) == (verdict, cause)
