"""Evaluate on the test set: every sample once, on any number of ranks, without padding."""

import time
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from hpctrain.data.dataset import Part, Wanted
from hpctrain.dist.comm import Comm
from hpctrain.train.metrics import correct
from hpctrain.train.precision import Precision

_BATCH = 256  # enough to keep a core or a GPU busy with small images, and little memory with large ones


class Result(NamedTuple):
    """One evaluation."""

    samples: int
    correct: int
    loss: float
    """Mean over the samples."""
    seconds: float

    @property
    def accuracy(self) -> float:
        """Fraction of right answers."""
        return self.correct / self.samples


def share(samples: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return begin and end of the contiguous part of the samples that a rank evaluates; it may be empty."""
    return rank * samples // ranks, (rank + 1) * samples // ranks


def evaluate(model: nn.Module, part: Part, *, comm: Comm, precision: Precision) -> Result:
    """Evaluate a model; every rank calls this and gets the same result.

    Counts are summed as whole numbers, the loss in float64: its last digits alone depend on the number of ranks.

    Args:
        model: the module itself, not the wrapped one: each rank may run it any number of times.
        part: the samples.
        comm: the ranks.
        precision: of the arithmetic.
    """
    began = time.perf_counter()
    begin, end = share(part.count, comm.rank, comm.size)
    right, loss = 0, 0.0
    training = model.training
    model.eval()
    with torch.inference_mode():
        batches = (Wanted(torch.arange(first, min(first + _BATCH, end))) for first in range(begin, end, _BATCH))
        for images, labels in part.stream(batches):
            with precision.arithmetic():
                logits = model(images)
            logits = logits.to(precision.dtype)
            right += correct(logits, labels)
            loss += float(functional.cross_entropy(logits, labels, reduction="sum").item())
    model.train(training)
    samples, right = (int(count) for count in comm.sum(torch.tensor([end - begin, right])).tolist())
    loss = float(comm.sum(torch.tensor([loss], dtype=torch.float64)).item())
    return Result(samples, right, loss / samples, time.perf_counter() - began)
