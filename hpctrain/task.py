"""What a run directory does instead of training: trials, and the evaluation of another run.

The launcher writes `task.json` beside the frozen config; the ranks start as for any run, and rank 0 writes what came
out of it as `attempts/N/result.json`. Such directories are temporary: nothing of them stays, and they save nothing.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from hpctrain.errors import WorldError
from hpctrain.rundir import RunDir, publish, read_json


class Overfit(Struct, frozen=True, kw_only=True, tag="overfit"):
    """Learn the same few batches by heart."""

    batches: int
    steps: int
    """At most so many."""


class FindLr(Struct, frozen=True, kw_only=True, tag="find-lr"):
    """Train with ever larger learning rates until the loss diverges."""

    low: float
    high: float
    steps: int
    """From `low` to `high`, on a logarithmic grid."""
    picture: str | None = None
    """File for a picture, by matplotlib."""


class TryBatch(Struct, frozen=True, kw_only=True, tag="try-batch"):
    """See whether the batch of the config fits into memory."""

    memory: int | None = None
    """Bytes that a rank on CPUs may take; None: on GPUs, which have their own."""


class Evaluate(Struct, frozen=True, kw_only=True, tag="evaluate"):
    """Evaluate a checkpoint of another run."""

    checkpoint: str
    """Its directory; only the manifest and the weights need to be there."""
    step: int
    split: Literal["train", "validation", "test"]


Task = Overfit | FindLr | TryBatch | Evaluate


def write(run: RunDir, task: Task) -> None:
    """Make a run directory one of this task."""
    publish(run.task, msgspec.json.encode(task))


def read(run: RunDir) -> Task | None:
    """Return the task of a run directory; None if it trains.

    Raises:
        WorldError: the file cannot be read.
    """
    try:
        found: Task = msgspec.json.decode(run.task.read_bytes(), type=Task)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise WorldError(f"{run.task} cannot be read: {error}") from None
    return found


def write_result(run: RunDir, attempt: int, result: dict[str, Any]) -> None:
    """Publish what came out of a task."""
    publish(run.result(attempt), msgspec.json.encode(result))


def result(run: RunDir, attempt: int) -> dict[str, Any]:
    """Return what came out of a task; `{}` if nothing did."""
    return read_json(run.result(attempt))
