"""After an attempt: done, once more, or failed? The batch script asks the same questions in bash."""

import signal
from typing import Any

import msgspec

from hpctrain.config.schema import Restart


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from the end of an attempt."""

    again: bool
    exit_code: int
    message: str


def outcome_of(code: int, *, is_command: bool, rank: int) -> dict[str, Any]:
    """Work out the outcome of an attempt whose ranks wrote none, from the first exit code that was not 0.

    Args:
        code: as of `subprocess`: negative for a signal.
        is_command: the ranks ran the user's own program, which writes no outcome.
        rank: the one that ended so.
    """
    if code == 0:
        return {"verdict": "completed"} if is_command else _failed("error", code, "the ranks ended without an outcome")
    if code < 0:
        cause = "preempted" if is_command and -code == signal.SIGTERM else "rank_killed"
        return _failed(cause, 128 - code, f"rank {rank} was killed by {signal.Signals(-code).name}") | {"rank": rank}
    return _failed("error", code, f"rank {rank} ended with exit code {code}") | {"rank": rank}


def decide(outcomes: list[dict[str, Any]], budgets: Restart) -> Verdict:
    """Decide by the outcomes of all attempts so far, the last one at the end."""
    last = outcomes[-1]
    cause, verdict = last.get("cause"), last.get("verdict")
    if verdict == "completed":
        return Verdict(again=False, exit_code=0, message="completed")
    budget = getattr(budgets, cause, None) if isinstance(cause, str) else None
    if budget is None:
        return Verdict(again=False, exit_code=4, message=str(last.get("message") or cause or "failed"))
    used = sum(outcome.get("cause") == cause for outcome in outcomes)
    if used > budget:
        return Verdict(
            again=False, exit_code=4, message=f"ended by {cause} {used} times, restart.{cause} allows {budget}"
        )
    return Verdict(again=True, exit_code=75, message=f"ended by {cause}; restart {used} of {budget}")


def _failed(cause: str, code: int, message: str) -> dict[str, Any]:
    return {"verdict": "failed", "cause": cause, "exit_code": code, "message": message}
