"""Models as users would write them, for the tests."""

import random

import numpy as np
import torch
from torch import Tensor, nn


def dropout() -> nn.Module:
    """Random numbers in every pass."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 10))


class _Drawing(nn.Module):
    """Draws from every global generator there is, in the passes of training and of evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        noise = random.gauss(0, 0.1) + float(np.random.standard_normal()) * 0.1  # noqa: NPY002
        logits: Tensor = self.body(images) * (1 + noise + 0.1 * torch.rand(()))
        return logits


def drawing() -> nn.Module:
    """Return a net that depends on what Python, numpy and torch draw."""
    return _Drawing()


class _Steep(nn.Module):
    """In every fourth pass of training its gradient is too large for float16."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += self.training
        logits: Tensor = self.body(images)
        return logits.float() * (1e7 if self.training and self.passes % 4 == 0 else 1)


def steep() -> nn.Module:
    """Return a net some of whose steps are skipped by the scaler."""
    return _Steep()


BUILT: list[nn.Module] = []
"""What this process trains, for tests that look at the weights of every rank."""


class _SteepAt(nn.Module):
    """For some rows of `tests.train.faulty:rows` the gradient overflows float16; outputs and loss are ordinary."""

    def __init__(self, rows: list[int], factor: float) -> None:
        super().__init__()
        self.body = nn.Linear(4, 10)
        self.rows, self.factor = torch.tensor(rows), factor

    def forward(self, inputs: Tensor) -> Tensor:
        steep = torch.isin((inputs[:, :1] * 600).round().long(), self.rows) & self.training
        logits: Tensor = self.body(inputs)
        return logits + torch.where(steep, self.factor, 0.0) * (logits.float() - logits.detach().float())


def steep_at(rows: list[int], factor: float = 1e7) -> nn.Module:
    """Return a net that overflows on the rank that has one of these rows."""
    BUILT.append(_SteepAt(rows, factor))
    return BUILT[-1]


class _Averaging(nn.Module):
    """Running averages, a parameter without gradient, and a mean that an empty batch would turn into NaN."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        normed = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), normed, nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits.sub(images.mean())


def averaging(norm: bool = True) -> nn.Module:
    """Return a net with batch norm, if wanted, and an unused parameter."""
    return _Averaging(norm)


def normed_images(channels_last: bool = False) -> nn.Module:
    """Return a net of digits with batch norm over images and over rows."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(), nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 10),
    )  # fmt: skip
    BUILT.append(net.to(memory_format=torch.channels_last) if channels_last else net)  # type: ignore[call-overload]
    return BUILT[-1]


def exploding() -> nn.Module:
    """Return a net whose loss overflows within a few steps."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 10))
    with torch.no_grad():
        for part in net.parameters():
            part.mul_(1e30)
    return net


def one_logit() -> nn.Module:
    """Return a net that gives one number per image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


def wrong_size() -> nn.Module:
    """Return a net for other images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))


def two_numbers() -> nn.Module:
    """Return a net that gives two numbers for each row of a table."""
    return nn.Linear(4, 2)


def normed() -> nn.Module:
    """Return a net for rows of four numbers, with running averages and random numbers."""
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10))


def dense() -> nn.Module:
    """Return a net for rows of four numbers."""
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 10))


class _Auxiliary(nn.Module):
    """A classifier in the middle speaks in training, as Inception's do."""

    auxiliary_weight = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head, self.last = nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle = self.body(images)
        outputs: Tensor = self.last(middle)
        return (outputs, self.head(middle)) if self.training else outputs


def auxiliary() -> nn.Module:
    """Return a net of two outputs in training, one in evaluation."""
    return _Auxiliary()


class _InTraining(nn.Module):
    """In training it gives what no one expects of it, in evaluation logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.kind = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), kind

    def forward(self, images: Tensor) -> object:
        logits = self.body(images)
        given = {"list": [logits], "dict": {"out": logits}, "other": (logits, logits[:, :5]), "flat": logits[:, 0]}
        return given[self.kind] if self.training else logits


def in_training(kind: str) -> nn.Module:
    """Return a net whose outputs in training are a list, a dict, of other classes, or of one dimension."""
    return _InTraining(kind)
