"""What training asks of a dataset: parts that give batches in the order in which they are wanted."""

from collections.abc import Generator, Iterable
from typing import Literal, NamedTuple, Protocol

from torch import Tensor


class Wanted(NamedTuple):
    """A batch to come: one micro-batch of a step."""

    ids: Tensor
    """Its samples, int64 `(B,)` on the CPU, by their number within the part."""
    epoch: int = 0
    """Pass over the training set."""
    step: int = 0
    """Optimizer step, from 0."""
    micro: int = 0
    """Number of the micro-batch within the step, over all ranks."""


class Part(Protocol):
    """The training, the validation or the test samples."""

    count: int
    """Number of samples."""

    def stream(self, wanted: Iterable[Wanted]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Give the batches that are wanted, in their order: inputs `(B, ...)`, and targets.

        Inputs are normalised, in the dtype of the arithmetic, on the device. Targets are the classes, int64 `(B,)`; or
        their probabilities `(B, K)`, where augmentation mixes them; or numbers `(B,)` in the dtype of the arithmetic.
        What is wanted may be asked for ahead of time, from another thread. Whoever stops early closes the generator,
        which ends what it has started.

        Raises:
            DataError: a sample cannot be read.
        """


class Dataset(NamedTuple):
    """A dataset, split."""

    train: Part
    test: Part
    validation: Part | None
    shape: tuple[int, ...]
    """Shape of one input: channels, height and width; or the number of inputs."""
    outputs: int
    """Number of classes, or 1 for a number."""
    task: Literal["classes", "number"] = "classes"
    """What is predicted."""
    notes: tuple[str, ...] = ()
    """What the user should know of the data; rank 0 prints it."""
