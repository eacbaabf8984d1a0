"""Where a run stands: what Slurm or the local supervisor says of it, joined with what its attempts have written.

A verdict that a rank has written counts more than Slurm's COMPLETED or FAILED, which only know the script's exit code.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpctrain.causes import CAUSES, meaning
from hpctrain.errors import ClusterError, UsageError
from hpctrain.launch import ledger, owner, slurm, states
from hpctrain.launch.find import find, has_ended, listing, name_of, recent
from hpctrain.launch.slow import slow_ranks
from hpctrain.launch.states import FINAL, State
from hpctrain.processes import is_alive
from hpctrain.rundir import RunDir, read_json

__all__ = ["FINAL", "find", "find_live", "listing", "name_of", "recent", "status", "table"]


def find_live(ref: str, roots: Sequence[Path]) -> RunDir:
    """Find a run as `find` does, but by a name only among those that have not ended, if there is one.

    Raises:
        UsageError: several runs of the name have not ended.
    """
    found = find(ref, roots)
    if found.name == ref or name_of(found) != ref:
        return found
    named = [run for run in listing(roots) if name_of(run) == ref]
    live = [run for run, row in zip(named, status(named), strict=True) if row["state"] not in FINAL]
    if len(live) > 1:
        raise UsageError(
            f"{len(live)} runs named {ref} have not ended", f"give one of {', '.join(run.name for run in live)}"
        )
    return live[0] if live else found


class _Facts(msgspec.Struct, kw_only=True):
    """What the files of a run say."""

    run: RunDir
    job_id: str
    scheduler: str
    job: dict[str, Any]
    sandbox: str
    """The sandbox whose job it is; '' for a real Slurm."""
    attempt: int
    """The newest attempt; 0 before the first."""
    own: int
    """The newest attempt of the current job; 0 before its first."""
    begin: dict[str, Any]
    outcome: dict[str, Any]
    """Of the current job's newest attempt."""
    verdict: dict[str, Any]
    """What followed from it."""


def _facts(run: RunDir) -> _Facts:
    job, numbers = read_json(run.job), run.attempt_numbers()
    attempt = numbers[-1] if numbers else 0
    begin = read_json(run.begin(attempt)) if attempt else {}
    submitted = job.get("submitted") or job.get("started") or 0
    # A script may also be queued by hand, `sbatch RUN/job.sbatch`: then its attempts are newer than job.json.
    by_hand = bool(begin) and (not job or begin.get("started", 0) > submitted)
    current = begin if by_hand else job
    own = attempt if begin.get("job_id") == current.get("job_id") else 0
    return _Facts(
        run=run,
        job_id=str(current.get("job_id", "")),
        scheduler=str(current.get("scheduler", "")),
        job=job,
        sandbox=str(current.get("sandbox", "")),
        attempt=attempt,
        own=own,
        begin=begin,
        outcome=read_json(run.outcome(own)) if own else {},
        verdict=read_json(run.verdict(own)) if own else {},
    )


def status(runs: Iterable[RunDir]) -> list[dict[str, Any]]:
    """Return a row for each run, in their order; Slurm is asked once for all of them.

    Each row has run, name, job_id, state, reason, attempt, step, total_steps, cause, nodes (host names of the newest
    attempt) and slow (ranks slower than most).
    A Slurm that does not answer is no error here: the reason says so.
    """
    gathered = [_facts(run) for run in runs]
    asked = [facts.job_id for facts in gathered if _is_slurms(facts) and not _is_completed(facts)]
    known: Mapping[str, slurm.Job] = {}
    unanswered = ""
    if asked:
        try:
            known = slurm.jobs(asked)
        except ClusterError as error:
            unanswered = f"Slurm cannot be asked: {error.message.splitlines()[0]}"
        # A job that ended meanwhile has written its outcome since: what Slurm said must not be older than what is read.
        gathered = [_facts(facts.run) if facts.job_id in asked else facts for facts in gathered]
    return [_row(facts, known.get(facts.job_id) if _is_slurms(facts) else None, unanswered) for facts in gathered]


def _is_slurms(facts: _Facts) -> bool:
    """Say whether the Slurm that answers here is the one that knows this run's job."""
    return facts.scheduler == "slurm" and facts.sandbox == slurm.sandbox()


def _row(facts: _Facts, job: slurm.Job | None, unanswered: str) -> dict[str, Any]:
    state, reason = _state(facts, job, unanswered)
    slow = slow_ranks(facts.run, facts.own) if state == "RUNNING" and facts.own else []
    return {
        "run": str(facts.run.path),
        "name": name_of(facts.run),
        "job_id": facts.job_id,
        "state": state,
        "reason": reason or "; ".join(map(str, slow[:2])),
        "attempt": facts.attempt,
        "step": _last_step(facts.run, facts.attempt),
        "total_steps": read_json(facts.run.plan).get("total_steps"),
        "cause": facts.verdict.get("cause") or facts.outcome.get("cause") or None,
        "nodes": list(facts.begin.get("hosts", [])),
        "slow": msgspec.to_builtins(slow),
    }


def _is_completed(facts: _Facts) -> bool:
    return facts.outcome.get("verdict") == "completed"


def _state(facts: _Facts, job: slurm.Job | None, unanswered: str) -> tuple[State, str]:
    if _is_completed(facts):
        return "COMPLETED", str(facts.outcome.get("message") or "").partition(":")[0]
    if facts.scheduler != "slurm":
        return _local_state(facts)
    if job is not None:
        return _slurm_state(facts, job)
    if facts.sandbox and not _is_slurms(facts):
        return _ended(facts, "the sandbox in which it ran is gone")
    if unanswered and not has_ended(facts.run):
        return ("RUNNING" if facts.own else "PENDING"), unanswered
    return _ended(facts, "Slurm no longer knows this job and it left no outcome")


def _local_state(facts: _Facts) -> tuple[State, str]:
    """Look for the supervisor, which can be seen on its own machine only."""
    holder = owner.newest(facts.run)[1]
    known = holder if holder.get("job_id") == facts.job_id else facts.job
    host = known.get("host", os.uname().nodename)
    if host != os.uname().nodename and not facts.outcome:
        return "RUNNING", f"it was started on {host}; whether it still runs can be seen only there"
    if is_alive(int(known.get("pid", 0)), known.get("pid_start")):
        return "RUNNING", ""
    gone = "the process that ran it is gone and left no outcome"
    return _ended(facts, gone if facts.scheduler else "it was never handed to a scheduler")


def _slurm_state(facts: _Facts, job: slurm.Job) -> tuple[State, str]:
    """Weigh Slurm's word against the outcome of the newest attempt."""
    state, said = states.our_state(job.state), states.sentence(job.state, job.reason)
    if state == "PENDING" and facts.own:
        why = meaning(facts.outcome.get("cause")) or "a node was lost"
        return "REQUEUED", f"attempt {facts.own} ended: {why}; now: {said}"
    if state not in FINAL or state == "CANCELLED" or (state == "COMPLETED" and not facts.outcome):
        return state, said
    return _ended(facts, f"{said}; see {facts.run.path}/slurm-{job.job_id}.out")


def _ended(facts: _Facts, without_outcome: str) -> tuple[State, str]:
    """State and reason of a run of which nothing runs any more."""
    outcome = facts.outcome
    cause = str(outcome.get("cause", ""))
    if cause == "cancelled" or (facts.job_id and facts.job.get("cancelled") == facts.job_id):
        return "CANCELLED", "it was cancelled"
    if not outcome:
        return "FAILED", without_outcome
    message = str(outcome.get("message") or "").split("\n", 1)[0]
    text = message or meaning(cause) or "it failed"
    if outcome.get("verdict") == "stopped":
        text = f"{meaning(cause) or 'it was stopped'}, and it was not started again"
    if facts.verdict.get("again") is False and cause in CAUSES and CAUSES[cause].has_budget:
        return "FAILED", f"{facts.verdict.get('reason')}; the last time: {text}"  # the ledger ended it
    return "FAILED", text


def _last_step(run: RunDir, attempt: int) -> int | None:
    """Return the step of the newest line of metrics, from the newest attempt that has one."""
    steps = (ledger.last_metric(run, number) for number in range(attempt, 0, -1))
    return next((step for step in steps if step is not None), None)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of `status` as aligned columns for people."""
    if not rows:
        return "no runs"
    lines = [("RUN", "JOB", "STATE", "ATTEMPT", "STEP", "NODES", "REASON")]
    for row in rows:
        total = row["total_steps"]
        step = "-" if row["step"] is None else f"{row['step']}/{total}" if total else str(row["step"])
        lines.append((
            Path(row["run"]).name, row["job_id"] or "-", row["state"], str(row["attempt"]), step,
            nodes_text(row["nodes"]), row["reason"],
        ))  # fmt: skip
    return aligned(lines)


def nodes_text(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return (" ".join(names[:4]) + (f" +{len(names) - 4}" if len(names) > 4 else "")) or "-"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines with their columns below each other; the last one is as long as it is."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )
