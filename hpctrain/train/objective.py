"""What training lowers, and what a model is judged by: made of the config's loss and of what the data ask for."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hpctrain.config.check_models import OF_NUMBERS, loss_of, loss_problems, metric_problem
from hpctrain.config.schema import Config
from hpctrain.data.dataset import Dataset
from hpctrain.errors import JobError, UsageError
from hpctrain.train import losses

AUXILIARY_WEIGHT = 0.3
"""What the loss of each further output of a model counts, where it has no `auxiliary_weight` of its own."""


class Objective:
    """The loss, and a score that people understand; both are sums over samples, so that shares of ranks add up.

    Args:
        task: what is predicted.
        classes: how many there are; of numbers 1.
        loss: its name, or the user's own function.
        sigmoid: the model's outputs are meant with a sigmoid behind them.
        metrics: what evaluations tell besides.
    """

    score_name: Literal["accuracy", "error"]
    """What the score, divided by the samples, is called in `metrics.jsonl`."""
    score_dtype: torch.dtype
    """In which scores are added up over ranks: whole numbers stay whole."""
    outputs: int
    """How many numbers the model gives for each sample: one for yes or no."""

    def __init__(
        self,
        task: Literal["classes", "number"],
        *,
        classes: int = 1,
        loss: str = "auto",
        sigmoid: bool = False,
        metrics: Sequence[str] = (),
    ) -> None:
        number = task == "number"
        loss = ("mse" if number else "cross_entropy") if loss == "auto" else loss
        whole = number or loss == "cross_entropy" or ":" in loss
        self.outputs = 1 if number or (classes == 2 and not whole) else classes
        self.metrics = tuple(metrics)
        self.classes = 0 if number else classes
        self.auxiliary_weight = AUXILIARY_WEIGHT
        self.score_name = "error" if number else "accuracy"
        self.score_dtype = torch.float64 if number else torch.int64
        self._sigmoid = sigmoid
        self._half = 0.0 if sigmoid or loss not in OF_NUMBERS else 0.5  # between no and yes
        if ":" in loss:
            self._loss = losses.users(loss, number=number)
        else:
            self._loss = losses.of_numbers(loss, sigmoid=sigmoid) if loss in OF_NUMBERS else losses.BY_NAME[loss]

    def heads(self, outputs: object, samples: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return what a model gave in training as one or more outputs `(B, K)`; the first is what it predicts.

        Args:
            outputs: of the model, one tensor or a tuple of them.
            samples: of the batch.
            dtype: wanted.

        Raises:
            JobError: they are something else.
        """
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = (samples, self.outputs)
        if not parts or not all(isinstance(part, Tensor) and part.shape == wanted for part in parts):
            got = " and ".join(shown(part) for part in parts) or "an empty tuple"
            raise JobError(f"model.name: in training the model gives {got} for {samples} samples", self.wanted())
        return tuple(part.to(dtype) for part in parts)

    def wanted(self) -> str:
        """Say what a model must return."""
        if not self.classes:
            return "it must return numbers of shape (B, 1), what it predicts for each sample"
        if self.outputs == 1:
            return (
                "it must return logits of shape (B, 1), for the second of the two classes; see loss in docs/config.md"
            )
        return f"it must return logits of shape (B, {self.outputs}), one for each class"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of one output, summed over the samples."""
        return self._loss(outputs, targets)

    def total(self, heads: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Return the loss of all outputs, summed over the samples; each but the first counts `auxiliary_weight`."""
        found = self._loss(heads[0], targets)
        for head in heads[1:]:
            found = found + self.auxiliary_weight * self._loss(head, targets)
        return found

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the right answers, or the absolute errors in float64, summed over the samples."""
        if not self.classes:
            return float((self.values(outputs).double() - targets.double()).abs().sum().item())
        return int((self.predicted(outputs) == likeliest(targets)).sum().item())

    def values(self, outputs: Tensor) -> Tensor:
        """Return the numbers `(B,)` that are predicted."""
        return outputs.squeeze(1).sigmoid() if self._sigmoid else outputs.squeeze(1)

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return the classes int64 `(B,)` that are predicted: of the largest output, or yes beyond the middle."""
        if self.outputs == 1:
            return (outputs.squeeze(1) > self._half).long()
        return outputs.argmax(1)


def shown(outputs: object) -> str:
    """Return shape or type of what a model gave, for messages."""
    return str(tuple(outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__


def likeliest(targets: Tensor) -> Tensor:
    """Return the class of each sample, or the likeliest one of probabilities `(B, K)`: int64 `(B,)`."""
    return targets if targets.ndim == 1 else targets.argmax(1)


def build(config: Config, data: Dataset) -> Objective:
    """Make the objective of a run.

    Raises:
        UsageError: there is one class, or loss or metrics do not fit the data; what the config alone tells was refused
            before.
        JobError: the module of the user's own loss raised.
    """
    classes = 0 if data.task == "number" else data.outputs
    if classes == 1:
        raise UsageError("data: there is one class, and nothing to tell apart", "give samples of two classes or more")
    found = [f"{key}: {message}" for key, message in loss_problems(config, classes)]
    found += [f"metrics: {problem}" for name in config.metrics if (problem := metric_problem(name, classes))]
    if found:
        raise UsageError("\n".join(found))
    return Objective(
        data.task,
        classes=data.outputs,
        loss=loss_of(config, number=data.task == "number"),
        sigmoid=config.model is not None and config.model.name == "logistic",
        metrics=config.metrics,
    )
