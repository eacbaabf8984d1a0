"""What training lowers, and what a model is judged by."""

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hpctrain.train.metrics import correct


class Objective(Protocol):
    """The loss, and a score that people understand; both are sums over samples, so that shares of ranks add up."""

    score_name: Literal["accuracy", "error"]
    """What the score, divided by the samples, is called in `metrics.jsonl`."""
    score_dtype: torch.dtype
    """In which scores are added up over ranks: whole numbers stay whole."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, summed over the samples."""

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the score, summed over the samples."""


class Classes:
    """Cross entropy, and right answers: outputs are logits `(B, K)`, targets int64 `(B,)` or probabilities `(B, K)`."""

    score_name: Literal["accuracy", "error"] = "accuracy"
    score_dtype = torch.int64

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy, summed over the samples."""
        return functional.cross_entropy(outputs, targets, reduction="sum")

    def score(self, outputs: Tensor, targets: Tensor) -> int:
        """Count the right answers."""
        return correct(outputs, targets)


class Numbers:
    """Squared error, and absolute error in the unit of the target: outputs `(B, 1)`, targets `(B,)`."""

    score_name: Literal["accuracy", "error"] = "error"
    score_dtype = torch.float64

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the squared errors, summed over the samples."""
        return functional.mse_loss(outputs.squeeze(1), targets, reduction="sum")

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the absolute errors, summed over the samples in float64."""
        return float((outputs.squeeze(1).double() - targets.double()).abs().sum().item())


OBJECTIVES: dict[Literal["classes", "number"], Objective] = {"classes": Classes(), "number": Numbers()}
"""By what a dataset asks to predict, `hpctrain.data.dataset.Dataset.task`."""
