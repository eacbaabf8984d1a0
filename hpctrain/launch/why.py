"""`hpctrain why`: the first cause of a run's end, not the noise of its teardown, and what to do about it."""

from pathlib import Path
from typing import Any

from hpctrain import causes
from hpctrain.launch import ledger
from hpctrain.launch.ledger import Attempt
from hpctrain.launch.status import status
from hpctrain.rundir import RunDir, read_json

_LINES = 20
_TRACEBACK = "Traceback (most recent call last)"
_BLOCK = 65536  # bytes at the end of a log


def why(run: RunDir) -> dict[str, Any]:
    """Explain where a run stands.

    Returns:
        run, state, attempt, cause, rank, host, message, lines (the end of that rank's log), reason (why there was no
        other attempt, or what Slurm says) and advice; None or empty where there is nothing to say.
    """
    row, attempts = status([run])[0], ledger.read(run)
    ended = [entry for entry in attempts if entry.verdict in {"failed", "stopped"}]
    found: dict[str, Any] = {
        "run": str(run.path), "state": row["state"], "attempt": None, "cause": None, "rank": None, "host": None,
        "message": "", "lines": [], "reason": row["reason"], "advice": "",
    }  # fmt: skip
    if row["state"] == "COMPLETED":
        return found | {"advice": f"nothing is wrong; {_longer(run)} goes on"}
    final = row["state"] in {"FAILED", "CANCELLED"}
    if ended and (final or row["state"] == "REQUEUED" or ended[-1].decision == "end"):
        entry = ended[-1]
        # The ranks cannot tell who sent TERM; that the run was cancelled is known here.
        is_cancelled = row["state"] == "CANCELLED" and entry.cause == "preempted"
        found |= {
            "attempt": entry.attempt,
            "cause": "cancelled" if is_cancelled else entry.cause,
            "rank": entry.rank,
            "host": entry.host,
            "message": entry.message,
            "lines": _lines(run, entry),
        }
    if final:
        found["reason"] = ended[-1].reason if ended and ended[-1].reason else row["reason"]
        found["advice"] = causes.advice(row["cause"] or found["cause"], run.path)
        if not ended and row["job_id"]:
            found["advice"] = f"no attempt began; look at {run.path}/slurm-{row['job_id']}.out"
    else:
        waits = {"PENDING": "it waits", "REQUEUED": "it will go on by itself"}
        found["advice"] = f"nothing to do: {waits.get(row['state'], 'it runs')}; hpctrain cancel {run.path} ends it"
    return found


def _longer(run: RunDir) -> str:
    """Return what to type for a complete run to go on: one that has stopped early would do so again."""
    numbers = run.attempt_numbers()
    early = str(read_json(run.outcome(numbers[-1])).get("message") or "") if numbers else ""
    if not early:
        return f"hpctrain resume {run.path} train.epochs=N"
    return f"it {early}; hpctrain resume {run.path} train.stop_early.patience=N, with more than before,"


def _lines(run: RunDir, entry: Attempt) -> list[str]:
    """Return the end of the log of the rank that failed first: from its last traceback on, or its last lines."""
    own = [] if entry.rank is None else [run.log(entry.attempt, entry.rank, "err")]
    for path in [*own, run.launch_log(entry.attempt)]:
        lines = _end_of(path)
        if lines:
            return lines
    return []


def _end_of(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _BLOCK))
            lines = file.read().decode(errors="replace").rstrip().splitlines()
    except OSError:
        return []
    begins = [number for number, line in enumerate(lines) if _TRACEBACK in line]
    shown = lines[begins[-1] :] if begins else lines
    return shown if len(shown) <= _LINES else ["...", *shown[-_LINES:]]


def text(found: dict[str, Any]) -> str:
    """Return what `why` found as lines for people."""
    run = RunDir(Path(found["run"]))
    head = f"{run.name}: {found['state']}"
    if found["attempt"] is None:
        reason = f": {found['reason']}" if found["reason"] else ""
        return f"{head}{reason}\n  {found['advice']}"
    who = "" if found["rank"] is None else f" on rank {found['rank']}"
    who += f" ({found['host']})" if found["host"] and who else f" on {found['host']}" if found["host"] else ""
    message = found["message"].split("\n", 1)[0]
    rows = [head, f"  first cause: {found['cause'] or 'unknown'} in attempt {found['attempt']}{who}: {message}"]
    meant = causes.meaning(found["cause"])
    rows += [f"  that means: {meant}"] if meant and meant != message else []
    if found["reason"] and found["reason"].split("\n", 1)[0] != message:
        rows.append(f"  now: {found['reason'].split(chr(10), 1)[0]}")
    if found["lines"]:
        log = found["rank"] if found["rank"] is not None else 0
        rows += [
            f"  from its log (hpctrain logs {run.path} --rank {log}):",
            *(f"    {line}" for line in found["lines"]),
        ]
    return "\n".join([*rows, f"  what to do: {found['advice']}"])
