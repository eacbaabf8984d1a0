"""Which ranks are slow: from what the watchdogs of the nodes write now and then of an attempt."""

import statistics
from typing import Any

import msgspec

from hpctrain.rundir import RunDir, read_json

_FACTOR = 1.3
_SHARE = 0.1  # of a step that a slow rank must cost: below, nobody waits for it


class Slow(msgspec.Struct, frozen=True, kw_only=True):
    """A rank whose own work, outside of the sums over all ranks, takes longer than that of most."""

    rank: int
    host: str
    factor: float
    """Its seconds of own work in a step by the median over all ranks."""
    phase: str
    """In which most of the difference lies: data or forward."""

    def __str__(self) -> str:
        """One sentence for people."""
        return f"rank {self.rank} on {self.host} is {self.factor:.1f} x slower than the median ({self.phase})"


def slow_ranks(run: RunDir, attempt: int) -> list[Slow]:
    """Return the slow ranks of an attempt, the slowest first; none where there are fewer than two to compare."""
    rows = [
        (str(record.get("host")), row)
        for path in sorted(run.ranks(attempt, "any").parent.glob("[!.]*.json"))
        for record in [read_json(path)]
        for row in record.get("ranks", [])
    ]
    if len(rows) < 2:
        return []
    median = statistics.median_low([_own_s(row) for _, row in rows])
    phases = rows[0][1]["own_s"]
    usual = {phase: statistics.median_low([row["own_s"][phase] for _, row in rows]) for phase in phases}
    found = []
    for host, row in rows:
        more = _own_s(row) - median
        if median > 0 and _own_s(row) > _FACTOR * median and more > _SHARE * row["step_s"]:
            excess = {phase: row["own_s"][phase] - usual[phase] for phase in phases}
            phase = max(excess, key=lambda name: excess[name])
            found.append(Slow(rank=row["rank"], host=host, factor=round(_own_s(row) / median, 1), phase=phase))
    return sorted(found, key=lambda slow: -slow.factor)


def _own_s(row: dict[str, Any]) -> float:
    return float(sum(row["own_s"].values()))
