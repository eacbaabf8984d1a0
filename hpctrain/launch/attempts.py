"""The ledger of a run for people and for `status --json`."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hpctrain.launch import ledger
from hpctrain.launch.status import aligned, nodes_text
from hpctrain.rundir import RunDir


def with_attempts(runs: Sequence[RunDir], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of `status` with the attempts of each run, as `ledger.Attempt` names their fields."""
    pairs = zip(runs, rows, strict=True)
    return [{**row, "attempts": msgspec.to_builtins(ledger.read(run))} for run, row in pairs]


def attempts_table(run: RunDir) -> str:
    """Return the ledger of a run as aligned columns for people; nothing before the first attempt."""
    lines = [["ATTEMPT", "START", "TOOK", "NODES", "STEPS", "GAINED", "LOST", "CAUSE", "WHAT FOLLOWED"]]
    for entry in ledger.read(run):
        started = "-" if entry.start is None else time.strftime("%m-%d %H:%M:%S", time.localtime(entry.start))
        took = "-" if entry.start is None or entry.end is None else f"{max(entry.end - entry.start, 0):.0f} s"
        steps = "-" if entry.first_step is None else f"{entry.first_step} to {entry.last_step}"
        counts = ["-" if count is None else str(count) for count in (entry.steps_gained, entry.work_lost)]
        where = "" if entry.host is None else f" on {entry.host}"
        cause = entry.verdict if entry.cause is None else f"{entry.cause}{where}"
        followed = "-" if entry.verdict == "completed" else entry.reason.partition("\n")[0]
        lines.append(
            [str(entry.attempt), started, took, nodes_text(entry.nodes), steps, *counts, cause or "runs", followed]
        )
    return aligned(lines) if len(lines) > 1 else ""
