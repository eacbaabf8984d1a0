"""A part of a dataset whose samples are read while training goes on."""

from collections.abc import Callable, Generator, Iterable

import torch
from torch import Tensor

from hpctrain.data.batch import Buffer, Filler, Kind
from hpctrain.data.dataset import Wanted
from hpctrain.data.loader import Loader
from hpctrain.data.memory import Augment, Normalise


class Streamed:
    """A part of a dataset.

    Args:
        make: makes the filler of a worker from the buffers.
        kind: of the samples; those of bytes are normalised.
        count: number of samples.
        device: where batches are made.
        dtype: of the batches.
        mean: per channel, of pixels in 0 to 1.
        std: per channel, of pixels in 0 to 1.
        workers: how many, see `config.datasets.Data`.
        shared: the workers are processes.
        augment: varies what is trained on.
    """

    def __init__(
        self,
        make: Callable[[list[Buffer]], Filler],
        kind: Kind,
        *,
        count: int,
        device: torch.device,
        dtype: torch.dtype,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        workers: str = "auto",
        shared: bool = False,
        augment: Augment | None = None,
    ) -> None:
        self.count, self._dtype, self._augment = count, dtype, augment
        self._normalise = Normalise(mean, std, 255, device, dtype) if kind.dtype == torch.uint8 else None
        self._images = len(kind.shape) == 3
        self._loader = Loader(make, kind, count=count, device=device, workers=workers, shared=shared)

    def stream(self, wanted: Iterable[Wanted]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Give the batches that are wanted, see `hpctrain.data.dataset.Part`."""
        return self._loader.stream(wanted, self._finish)

    def _finish(self, batch: Wanted, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Augment and normalise; copies, because the loader fills its buffers again."""
        augment, targets = self._augment, targets.clone()
        if self._normalise is None:
            inputs = inputs.to(self._dtype, copy=True)
        else:
            if augment is not None and self._images:
                inputs = augment.pixels(inputs, batch)
            inputs = self._normalise(inputs)
        return (inputs, targets) if augment is None else augment.batch(inputs, targets, batch)
