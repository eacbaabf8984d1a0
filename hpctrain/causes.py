"""Why an attempt ended: the one vocabulary of ranks, watchdog, supervisor and batch script. No torch.

Whoever knows the cause first writes it to `attempts/N/outcome.json`. A cause with a budget has a field of its name in
`config.schema.Restart`; the others end the run.
"""

from types import MappingProxyType
from typing import Literal, NamedTuple

Name = Literal[
    "time_limit", "preempted", "node_failure", "rank_killed", "hang", "out_of_memory", "rendezvous_failed",
    "error", "data_error", "disk_full", "cancelled", "no_progress",
]  # fmt: skip


class Cause(NamedTuple):
    """What a cause means."""

    meaning: str
    """Half a sentence that follows "attempt 3 ended: "."""
    advice: str
    """What to do when the run has ended by it; `{run}` is its directory."""
    has_budget: bool = False
    """Another attempt may follow, as often as `restart` allows."""
    blames_host: bool = False
    """The host may be at fault: one that is blamed twice is excluded."""


_GO_ON = "hpctrain resume {run} goes on from the last checkpoint"

CAUSES: MappingProxyType[str, Cause] = MappingProxyType(
    {
        "time_limit": Cause(
            "the time limit was near",
            "give it more time: hpctrain resume {run} slurm.time=HH:MM:SS",
            has_budget=True,
        ),
        "preempted": Cause(
            "it was told to stop (preempted, or cancelled by other means than hpctrain)",
            _GO_ON,
            has_budget=True,
        ),
        "node_failure": Cause(
            "a node was lost",
            "ask the site about the node, or leave it out: hpctrain resume {run} slurm.exclude=NODE",
            has_budget=True,
            blames_host=True,
        ),
        "rank_killed": Cause(
            "a rank was killed",
            "a signal that nobody sent is a crash of native code, see its log, or memory that ran out (slurm.mem); "
            + _GO_ON,
            has_budget=True,
            blames_host=True,
        ),
        "hang": Cause(
            "a rank made no progress and the others waited for it",
            "the report of the hang names rank, phase and line; " + _GO_ON,
            has_budget=True,
            blames_host=True,
        ),
        "out_of_memory": Cause(
            "memory ran out",
            "use less of it: a smaller batch of each rank with the same global batch, hpctrain resume {run} "
            "batch.accumulate=N; for memory of the host also slurm.mem, fewer data.workers",
            has_budget=True,
        ),
        "rendezvous_failed": Cause(
            "a rank did not come to the world",
            "look whether every node sees the run directory and reaches the others (launch.log, dist.interface); "
            + _GO_ON,
            has_budget=True,
            blames_host=True,
        ),
        "error": Cause(
            "a rank ended with an error", "mend it, then go on with the new code: hpctrain resume {run} --code"
        ),
        "data_error": Cause("the data cannot be read, or is not what was planned", "mend the data; " + _GO_ON),
        "disk_full": Cause("the disk or a quota is full", "make room; " + _GO_ON),
        "cancelled": Cause("it was cancelled", _GO_ON),
        "no_progress": Cause(
            "two attempts in a row gained no step",
            "another attempt would end like the last two: mend what ended them, then: hpctrain resume {run}",
        ),
    }
)
"""Each cause by its name in `outcome.json`."""


def meaning(cause: object) -> str:
    """Say in half a sentence what a cause means; '' for what is none."""
    known = CAUSES.get(cause) if isinstance(cause, str) else None
    return known.meaning if known else ""


def advice(cause: object, run: object) -> str:
    """Say what to do about a run that ended by a cause."""
    known = CAUSES.get(cause) if isinstance(cause, str) else None
    return (known.advice if known else _GO_ON).format(run=run)
