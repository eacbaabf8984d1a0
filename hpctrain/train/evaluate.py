"""Evaluate on the validation or test set: every sample once, on any number of ranks, without padding."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from hpctrain.data.dataset import Part, Wanted
from hpctrain.dist.comm import Comm
from hpctrain.train.heartbeat import Phase
from hpctrain.train.objective import Objective
from hpctrain.train.precision import Precision
from hpctrain.train.scores import Tally

_BATCH = 256  # enough to keep a core or a GPU busy with small images, and little memory with large ones


class Result(NamedTuple):
    """One evaluation."""

    samples: int
    score: float
    """Right answers, or absolute errors, summed over the samples."""
    loss: float
    """Mean over the samples."""
    seconds: float
    metrics: dict[str, Any] = {}  # noqa: RUF012 - never written to
    """What `metrics` of the config asks for, by name."""


def share(samples: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return begin and end of the contiguous part of the samples that a rank evaluates; it may be empty."""
    return rank * samples // ranks, (rank + 1) * samples // ranks


def evaluate(
    model: nn.Module,
    part: Part,
    objective: Objective,
    *,
    comm: Comm,
    precision: Precision,
    beat: Callable[[Phase], None] = lambda _: None,
) -> Result:
    """Evaluate a model; every rank calls this and gets the same result.

    Samples and right answers are counted in whole numbers; the last digits of a loss or of an error alone depend on the
    number of ranks.

    Args:
        model: the module itself, not the wrapped one: each rank may run it any number of times.
        part: the samples.
        objective: gives loss, score and metrics.
        comm: the ranks.
        precision: of the arithmetic.
        beat: called before each batch, and before the ranks meet, to show that it goes on.
    """
    began = time.perf_counter()
    begin, end = share(part.count, comm.rank, comm.size)
    score: float = 0
    loss = 0.0
    tally = Tally(objective)
    training = model.training
    model.eval()
    with torch.inference_mode():
        batches = (Wanted(torch.arange(first, min(first + _BATCH, end))) for first in range(begin, end, _BATCH))
        beat(Phase.EVAL)
        for inputs, targets in part.stream(batches):
            beat(Phase.EVAL)
            with precision.arithmetic():
                outputs = model(inputs)
            outputs = outputs.to(precision.dtype)
            score += objective.score(outputs, targets)
            loss += float(objective.loss(outputs, targets).item())
            tally.add(outputs, targets)
    model.train(training)
    beat(Phase.COMM)
    samples, score = comm.sum(torch.tensor([end - begin, score], dtype=objective.score_dtype)).tolist()
    (loss,) = comm.sum(torch.tensor([loss], dtype=torch.float64)).tolist()
    metrics = tally.result(comm, int(samples))
    return Result(int(samples), score, loss / samples, time.perf_counter() - began, metrics)
