"""Samples that fit into memory: on the device as bytes, gathered by index, normalised there.

One `index_select` gathers a batch; no Python runs per sample.
"""

from collections.abc import Generator, Iterable
from typing import Protocol

import torch
from torch import Tensor

from hpctrain.data.dataset import Wanted


class Augment(Protocol):
    """What is done to training batches, see `hpctrain.data.augment`."""

    def pixels(self, images: Tensor, wanted: Wanted) -> Tensor:
        """Vary uint8 images `(B, C, H, W)`."""

    def batch(self, inputs: Tensor, targets: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """Mix normalised inputs `(B, ...)`, and their targets."""


class InMemory:
    """A part of a dataset.

    Args:
        inputs: uint8 images `(P, C, H, W)`, or numbers `(P, F)` as the model gets them.
        targets: int64 or floating-point `(P,)`.
        count: number of samples; sample i is input i modulo P.
        mean: per channel, of pixels divided by `white`.
        std: per channel, of pixels divided by `white`.
        white: the largest pixel value.
        dtype: of the batches.
        augment: varies what is trained on.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        count: int,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        white: int = 1,
        dtype: torch.dtype,
        augment: Augment | None = None,
    ) -> None:
        self.inputs, self.targets, self.count, self._dtype, self._augment = inputs, targets, count, dtype, augment
        self._normalise = Normalise(mean, std, white, inputs.device, dtype) if inputs.dtype == torch.uint8 else None

    def stream(self, wanted: Iterable[Wanted]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Give the batches that are wanted, see `hpctrain.data.dataset.Part`."""
        augment = self._augment
        for batch in wanted:
            index = batch.ids.to(self.inputs.device, non_blocking=True)
            if self.count > len(self.targets):
                index = index % len(self.targets)
            inputs, targets = self.inputs.index_select(0, index), self.targets.index_select(0, index)
            if augment is not None and self._normalise is not None:
                inputs = augment.pixels(inputs, batch)
            inputs = inputs.to(self._dtype) if self._normalise is None else self._normalise(inputs)
            yield (inputs, targets) if augment is None else augment.batch(inputs, targets, batch)


class Normalise:
    """Makes (x / white - mean) / std of pixels, as one factor and one summand.

    Args:
        mean: per channel, of pixels divided by `white`.
        std: per channel, of pixels divided by `white`.
        white: the largest pixel value.
        device: of the batches.
        dtype: of the result.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], white: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._dtype = dtype
        channels = () if len(mean) == 1 else (1, len(mean), 1, 1)  # one number is the fast path
        exact = {"dtype": torch.float64, "device": "cpu"}
        mean64, std64 = (torch.tensor(part, **exact).reshape(channels) for part in (mean, std))  # type: ignore[arg-type]
        self._factor = (1 / (white * std64)).to(device, dtype)
        self._summand = (-mean64 / std64).to(device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images `(B, C, H, W)`."""
        return images.to(self._dtype).mul_(self._factor).add_(self._summand)
