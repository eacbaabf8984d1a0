"""A batch in the making: the memory of its rows, and the pieces of work that fill them."""

import mmap
import os
import threading
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hpctrain.data.dataset import Wanted


class Kind(NamedTuple):
    """What one sample is in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False
    """Of `(C, H, W)`: the values of a pixel lie side by side."""

    @property
    def bytes(self) -> int:
        """Of one sample, and its label."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize + 8


class Skipped(NamedTuple):
    """A sample that another one took the place of."""

    sample: int
    """By its number within the part."""
    reason: str


class Buffer:
    """Memory for the rows of one batch; grows to the largest that was asked for.

    Args:
        kind: of the samples.
        pinned: lies where a GPU can fetch it by itself.
        shared: other processes may map it, by `fd`. Anonymous (memfd_create): nothing is left behind, whoever dies.
    """

    def __init__(self, kind: Kind, *, pinned: bool = False, shared: bool = False) -> None:
        self._kind, self._pinned, self._count = kind, pinned, -1
        self.fd = os.memfd_create("hpctrain batch") if shared else -1

    def rows(self, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs `(count, ...)` and labels int64 `(count,)`, with whatever stands there."""
        if count > self._count:
            with torch.inference_mode(mode=False):  # what evaluation makes, threads could not write to
                if self.fd < 0:
                    memory = torch.empty(max(count, 1) * self._kind.bytes, dtype=torch.uint8, pin_memory=self._pinned)
                else:
                    os.ftruncate(self.fd, max(count, 1) * self._kind.bytes)
                    memory = mapped(self.fd)
                self._inputs, self._labels = views(memory, self._kind)
            self._count = count
        return self._inputs[:count], self._labels[:count]

    def close(self) -> None:
        """Give up the memory that is shared."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def mapped(fd: int) -> Tensor:
    """Return the bytes of a shared buffer; they stay mapped as long as the tensor lives."""
    return torch.frombuffer(mmap.mmap(fd, 0), dtype=torch.uint8)


def views(memory: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Lay labels, and behind them inputs, over a buffer for as many samples as it holds."""
    count = len(memory) // kind.bytes
    labels, inputs = memory[: 8 * count].view(torch.int64), memory[8 * count : count * kind.bytes].view(kind.dtype)
    if not kind.channels_last:
        return inputs.view(count, *kind.shape), labels
    channels, height, width = kind.shape
    return inputs.view(count, height, width, channels).permute(0, 3, 1, 2), labels


class Task(NamedTuple):
    """Rows `begin` to `end` of a batch, to be filled."""

    batch: int
    """Number of the batch within its stream, from 0."""
    buffer: int
    """Number of the buffer."""
    wanted: Wanted
    begin: int
    end: int
    inputs: Tensor
    """Of the whole batch, `(B, ...)`."""
    labels: Tensor
    stopping: threading.Event
    """Is set when the batch is not wanted any more."""


class Filler(Protocol):
    """Reads samples into rows. Each worker has one of its own."""

    def fill(self, task: Task) -> list[Skipped]:
        """Fill the rows of a task.

        Raises:
            DataError: a sample cannot be read.
        """

    def close(self) -> None:
        """End at once what it has started; called from another thread, maybe while it fills."""
