"""The restart ledger: what each attempt of a run did and why it ended, and whether there is another one.

Nothing here is kept; all of it is worked out from the files that each attempt has left, and both the batch script (by
`launch.batch`) and the local supervisor decide by it. Pure but for reading.

- Budgets are counted over the attempts of one job, or of one supervisor: who starts a run again by hand begins anew.
- Steps gained are steps saved: where the next attempt went on, less where this one did. Work lost is what it had done
  beyond that.
"""

import struct
from collections import Counter
from typing import Any

import msgspec

from hpctrain.causes import CAUSES, meaning
from hpctrain.config.schema import Restart
from hpctrain.rundir import RunDir, publish, read_json

_BLOCK = 16384  # bytes at the end of metrics.jsonl: dozens of lines
_BLAMES = 2  # so often a host may be blamed before it is left out


class Attempt(msgspec.Struct, kw_only=True):
    """One line of the ledger; None where it is not known, as the steps of a `command` never are."""

    attempt: int
    job_id: str = ""
    start: float | None = None
    """Seconds since 1970."""
    end: float | None = None
    nodes: list[str] = []
    first_step: int | None = None
    """Steps that were done when it began to train."""
    last_step: int | None = None
    """Steps that were done when it ended."""
    steps_gained: int | None = None
    work_lost: int | None = None
    """Steps done after the last save that the next attempt could use."""
    verdict: str | None = None
    """completed, stopped or failed, as in outcome.json; None while it runs."""
    cause: str | None = None
    message: str = ""
    rank: int | None = None
    host: str | None = None
    """Of the rank or node that failed first."""
    decision: str | None = None
    """again or end: what followed."""
    reason: str = ""
    """Why there was another attempt, or none."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from the end of an attempt; `verdict.json` holds it."""

    again: bool
    exit_code: int
    """Of the batch script, or of the supervisor if it ends: 0, 4 or 75."""
    cause: str | None
    """Why the run ended or is tried again: that of the attempt, or no_progress."""
    reason: str
    exclude: tuple[str, ...] = ()
    """Hosts that the next attempt shall leave out."""


def read(run: RunDir) -> list[Attempt]:
    """Return the attempts of a run, the oldest first."""
    attempts = [_attempt(run, number) for number in run.attempt_numbers()]
    saved = max(run.checkpoints(), default=0)
    for entry in reversed(attempts):
        if entry.first_step is None:  # it did not come so far: nothing gained, nothing lost
            trains = read_json(run.plan).get("total_steps") is not None
            entry.steps_gained = entry.work_lost = 0 if trains and entry.verdict is not None else None
            continue
        if entry.verdict is not None:
            entry.steps_gained = max(saved - entry.first_step, 0)
            entry.work_lost = max((entry.last_step or 0) - saved, 0)
        saved = entry.first_step
    return attempts


def _attempt(run: RunDir, number: int) -> Attempt:
    begin, outcome, verdict = map(read_json, (run.begin(number), run.outcome(number), run.verdict(number)))
    first, done = steps_of(run, number)
    known = [step for step in (done, last_metric(run, number), outcome.get("step")) if isinstance(step, int)]
    return Attempt(
        attempt=number,
        job_id=str(begin.get("job_id", "")),
        start=begin.get("started"),
        end=_ended(run, number) if outcome else None,
        nodes=list(begin.get("hosts", [])),
        first_step=first,
        last_step=max(known) if known and first is not None else None,
        verdict=outcome.get("verdict"),
        cause=outcome.get("cause"),
        message=str(outcome.get("message") or ""),
        rank=outcome.get("rank"),
        host=None if outcome.get("echo") else outcome.get("host"),
        decision=("again" if verdict["again"] else "end") if "again" in verdict else None,
        reason=str(verdict.get("reason", "")),
    )


def _ended(run: RunDir, number: int) -> float | None:
    try:
        return run.outcome(number).stat().st_mtime
    except OSError:
        return None


def steps_of(run: RunDir, number: int) -> tuple[int | None, int | None]:
    """Return the step that an attempt went on from and the last one it has done, as rank 0 notes them."""
    try:
        first, done = struct.unpack("=qq", run.steps(number).read_bytes())
    except (OSError, struct.error):
        return None, None
    return first, done


def last_metric(run: RunDir, number: int) -> int | None:
    """Return the step of the newest line of an attempt's metrics."""
    try:
        with run.metrics(number).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _BLOCK))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError:  # empty, cut by the block's start, or torn by a crash
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return int(row["step"])
    return None


def of_same_job(attempts: list[Attempt]) -> list[Attempt]:
    """Return the attempts of the job, or supervisor, that made the last one."""
    return [entry for entry in attempts if entry.job_id == attempts[-1].job_id]


def decide(attempts: list[Attempt], budgets: Restart) -> Decision:
    """Decide by all attempts of one job so far, the one that has just ended last.

    Args:
        attempts: as `of_same_job` returns them.
        budgets: `restart` of the config.
    """
    last = attempts[-1]
    if last.verdict == "completed":
        return Decision(again=False, exit_code=0, cause=None, reason="completed")
    cause = last.cause
    known = CAUSES.get(cause) if cause else None
    if known is None or not known.has_budget or cause is None:
        return _end(cause, last.message or meaning(cause) or "it left no outcome")
    if last.verdict == "failed" and cause == "time_limit" and not last.steps_gained:
        # a command that outlives its time limit would start from the beginning each time
        return _end(cause, "the time limit ended it before it had saved anything; slurm.time sets it")
    used = sum(entry.cause == cause for entry in attempts)
    budget = int(getattr(budgets, cause))
    if used > budget:
        return _end(cause, f"ended by {cause} {used} times, restart.{cause} allows {budget}")
    if len(attempts) > 1 and [entry.steps_gained for entry in attempts[-2:]] == [0, 0]:
        before = attempts[-2].cause
        ends = f"twice by {cause}" if before == cause else f"by {before}, then by {cause}"
        return _end("no_progress", f"two attempts in a row gained no step (ended {ends}): not trying again")
    blaming = {name for name, meant in CAUSES.items() if meant.blames_host}
    blamed = Counter(entry.host for entry in attempts if entry.cause in blaming)
    return Decision(
        again=True,
        exit_code=75,
        cause=cause,
        reason=f"ended by {cause}; restart {used} of {budget}",
        exclude=tuple(sorted(host for host, times in blamed.items() if host and times >= _BLAMES)),
    )


def _end(cause: str | None, reason: str) -> Decision:
    return Decision(again=False, exit_code=4, cause=cause, reason=reason)


def conclude(run: RunDir, budgets: Restart) -> Decision:
    """Decide after the newest attempt has its outcome, and write that down as its verdict."""
    attempts = read(run)
    decision = decide(of_same_job(attempts), budgets)
    write(run, attempts[-1].attempt, decision)
    return decision


def write(run: RunDir, number: int, decision: Decision) -> None:
    """Publish `verdict.json`; a disk that is full costs the record, not the decision."""
    try:
        publish(run.verdict(number), msgspec.json.encode(decision))
    except OSError as error:
        import sys

        print(f"hpctrain: {run.verdict(number)} cannot be written: {error.strerror}", file=sys.stderr)


def last_decision(run: RunDir, job_id: str) -> dict[str, Any]:
    """Return the verdict on the newest attempt of a job, or nothing."""
    for number in reversed(run.attempt_numbers()):
        if read_json(run.begin(number)).get("job_id") == job_id:
            return read_json(run.verdict(number))
    return {}
