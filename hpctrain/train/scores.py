"""What evaluations tell besides the score: each sample counts once, on any number of ranks.

Counts are whole numbers. Sums of errors are float64. The spread of the targets, which R^2 divides by, is gathered in
one pass as count, mean and sum of squares around the mean, and merged as Chan, Golub & LeVeque 1983 ("Algorithms for
computing the sample variance", section 2) do: the difference of two large sums would lose all digits.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpctrain.dist.comm import Comm
from hpctrain.train.objective import Objective, likeliest

_TOP = 5


class Tally:
    """The metrics of one evaluation on this rank.

    Args:
        objective: names them, and says what an output predicts.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective, self._names = objective, set(objective.metrics)
        self._classes = objective.classes
        counts = (1 if "top5" in self._names else 0) + (self._classes**2 if "confusion" in self._names else 0)
        self._counts = torch.zeros(counts, dtype=torch.int64)
        self._spread = Spread()
        self._errors = torch.zeros(2, dtype=torch.float64)  # squared, absolute
        self._numbers = bool(self._names & {"mse", "mae", "r2"})

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch: outputs `(B, K)`, targets as the dataset gives them."""
        if self._numbers:
            truth = targets.double()
            errors = self._objective.values(outputs).double() - truth
            self._errors += torch.stack([errors.square().sum(), errors.abs().sum()]).cpu()
            self._spread = merged(self._spread, spread(truth))
        if len(self._counts):
            labels = likeliest(targets)
            found = [in_top(outputs, labels, _TOP).sum()[None]] if "top5" in self._names else []
            if "confusion" in self._names:
                pairs = labels * self._classes + self._objective.predicted(outputs)
                found.append(torch.bincount(pairs, minlength=self._classes**2))
            self._counts += torch.cat(found).cpu()

    def result(self, comm: Comm, samples: int) -> dict[str, Any]:
        """Return the metrics by name, over all ranks; every rank must call this.

        Args:
            comm: the ranks.
            samples: over all of them.
        """
        found: dict[str, Any] = {}
        if len(self._counts):
            counts = comm.sum(self._counts)
            if "top5" in self._names:
                found["top5"] = int(counts[0]) / samples
            if "confusion" in self._names:
                found["confusion"] = counts[-(self._classes**2) :].view(self._classes, self._classes).tolist()
        if self._numbers:
            found |= self._of_numbers(comm, samples)
        return found

    def _of_numbers(self, comm: Comm, samples: int) -> dict[str, Any]:
        # Each rank fills its own row, so that all merge the same numbers in the same order.
        rows = torch.zeros(comm.size, 2 + len(Spread._fields), dtype=torch.float64)
        rows[comm.rank] = torch.tensor([*self._errors.tolist(), *self._spread], dtype=torch.float64)
        whole, squared, absolute = Spread(), 0.0, 0.0
        for more_squared, more_absolute, *part in comm.sum(rows).tolist():
            squared, absolute, whole = squared + more_squared, absolute + more_absolute, merged(whole, Spread(*part))
        # Of equal targets there is none; their mean is rounded, so that their squares alone do not tell.
        r2 = 1 - squared / whole.squares if whole.low < whole.high and whole.squares > 0 else None
        found = {"mse": squared / samples, "mae": absolute / samples, "r2": r2}
        return {name: value for name, value in found.items() if name in self._names}


class Spread(NamedTuple):
    """How numbers lie around their mean."""

    samples: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared distances from the mean."""
    low: float = 0.0
    high: float = 0.0


def spread(values: Tensor) -> Spread:
    """Return that of numbers, float64 `(B,)`."""
    if not len(values):
        return Spread()
    mean = values.mean()
    low, high = values.aminmax()
    found = torch.stack([mean, (values - mean).square().sum(), low, high]).tolist()  # one wait for the device
    return Spread(len(values), *found)


def merged(one: Spread, other: Spread) -> Spread:
    """Return that of both together (Chan et al. 1983, formula 2.1)."""
    samples = one.samples + other.samples
    if not one.samples or not other.samples:
        return one if one.samples else other
    apart = other.mean - one.mean
    between = apart * apart * one.samples * other.samples / samples
    return Spread(
        samples,
        one.mean + apart * other.samples / samples,
        one.squares + other.squares + between,
        min(one.low, other.low),
        max(one.high, other.high),
    )


def in_top(outputs: Tensor, labels: Tensor, most: int) -> Tensor:
    """Say for each sample whether fewer than `most` classes are before its own, bool `(B,)`; of equals the lower is."""
    own = outputs.gather(1, labels[:, None])
    lower = torch.arange(outputs.shape[1], device=outputs.device) < labels[:, None]
    before = (outputs > own) | ((outputs == own) & lower)
    return (before.sum(1) < most) & ~own.squeeze(1).isnan()
