"""Image datasets that fit into memory: uint8 on the device, gathered by index, normalised there.

One `index_select` gathers a batch; no Python runs per sample.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpctrain.config import schema
from hpctrain.data import idx
from hpctrain.data.locate import DIGITS, DIGITS_TRAIN, MNIST, idx_file
from hpctrain.errors import DataError, UsageError

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
"""Of the 60,000 training images with pixels in 0 to 1; the figures that everyone uses."""

_SYNTHETIC_BYTES = 64 * 2**20
"""Synthetic images beyond this many bytes repeat, so that a benchmark may have any number of samples."""

Bytes = npt.NDArray[np.uint8]


class Split:
    """The training or the test part of a dataset.

    Args:
        images: uint8 `(P, C, H, W)`.
        labels: int64 `(P,)`.
        count: number of samples; sample i is image i modulo P.
        mean: per channel, of pixels divided by `white`.
        std: per channel, of pixels divided by `white`.
        white: the largest pixel value.
        dtype: of the batches.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        count: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        white: int,
        dtype: torch.dtype,
    ) -> None:
        self.images, self.labels, self.count, self._dtype = images, labels, count, dtype
        # (x / white - mean) / std as one factor and one summand; a single channel as a number, which is the fast path.
        channels = () if len(mean) == 1 else (1, len(mean), 1, 1)
        exact = {"dtype": torch.float64, "device": "cpu"}
        mean64, std64 = (torch.tensor(part, **exact).reshape(channels) for part in (mean, std))  # type: ignore[arg-type]
        self._factor = (1 / (white * std64)).to(images.device, dtype)
        self._summand = (-mean64 / std64).to(images.device, dtype)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples of an int64 `(B,)` index: normalised images `(B, C, H, W)` and labels `(B,)`."""
        if self.count > len(self.labels):
            index = index % len(self.labels)
        images = self.images.index_select(0, index).to(self._dtype)
        return images.mul_(self._factor).add_(self._summand), self.labels.index_select(0, index)


class Dataset(NamedTuple):
    """A dataset in memory."""

    train: Split
    test: Split
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int


def load(
    data: schema.Data, *, path: str | None, train_samples: int, seed: int, device: torch.device, dtype: torch.dtype
) -> Dataset:
    """Read a dataset into memory.

    Args:
        data: the config's section.
        path: its directory as the plan has it; None for those that come along.
        train_samples: use the first so many of the training samples.
        seed: of synthetic images.
        device: where the images lie and batches are made.
        dtype: of the batches.

    Raises:
        DataError: a file is missing or damaged, or images and labels do not belong together.
    """
    if data.dataset == "synthetic":
        return _synthetic(data, train_samples, seed, device, dtype)
    if data.dataset == "digits":
        images, labels = (idx.read(DIGITS / f"{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
        train, test = (images[:DIGITS_TRAIN], labels[:DIGITS_TRAIN]), (images[DIGITS_TRAIN:], labels[DIGITS_TRAIN:])
        white = 16
    else:
        directory = Path(path or "")
        train, test = _read(directory, *MNIST["train"]), _read(directory, *MNIST["test"])
        white = 255
    if train_samples > len(train[0]):
        raise DataError(
            f"{data.dataset} has {len(train[0])} training samples, the plan has {train_samples}",
            "the files changed after the run was submitted; submit it again",
        )
    train = (train[0][:train_samples], train[1][:train_samples])
    mean, std = ((MNIST_MEAN,), (MNIST_STD,)) if data.dataset == "mnist" else moments(train[0][:, None], white)

    def split(part: tuple[Bytes, Bytes]) -> Split:
        images = torch.from_numpy(part[0]).unsqueeze(1).to(device)
        labels = torch.from_numpy(part[1]).to(device, torch.int64)
        return Split(images, labels, count=len(labels), mean=mean, std=std, white=white, dtype=dtype)

    classes = 10 if data.dataset == "mnist" else int(labels.max()) + 1
    return Dataset(split(train), split(test), (1, *train[0].shape[1:]), classes)


def moments(images: Bytes, white: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of `(N, C, H, W)`, of pixels divided by `white`.

    Computed from the counts of the 256 values with whole numbers, so that no order of summation can change a bit. A
    constant channel has deviation 1.
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = [int(count) for count in np.bincount(images[:, channel].reshape(-1), minlength=256)]
        n = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        means.append(first / (n * white))
        deviations.append(math.sqrt((n * second - first * first) / (n * n)) / white or 1.0)
    return tuple(means), tuple(deviations)


def _read(directory: Path, image_name: str, label_name: str) -> tuple[Bytes, Bytes]:
    try:
        images, labels = (idx.read(idx_file(directory, name)) for name in (image_name, label_name))
    except UsageError as error:  # it was there when the job was submitted
        raise DataError(error.message, error.hint) from None
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{directory}: {image_name} {images.shape} and {label_name} {labels.shape} do not match")
    if labels.size and int(labels.max()) > 9:
        raise DataError(f"{directory}: {label_name} holds the label {labels.max()}; MNIST has 0 to 9")
    return images, labels


def _synthetic(data: schema.Data, train_samples: int, seed: int, device: torch.device, dtype: torch.dtype) -> Dataset:
    """Make random images and labels, the same on every rank."""
    args: schema.SyntheticArgs = schema.arguments(schema.DATASET_ARGS[data.dataset], data.args)
    pool = max(_SYNTHETIC_BYTES // math.prod(args.shape), 1)

    def split(number: int, count: int) -> Split:
        random = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), number]))
        kept = min(count, pool)
        images = torch.from_numpy(random.integers(0, 256, (kept, *args.shape), np.uint8)).to(device)
        labels = torch.from_numpy(random.integers(0, args.classes, kept, np.int64)).to(device)
        half = (0.5,) * args.shape[0]
        return Split(images, labels, count=count, mean=half, std=half, white=255, dtype=dtype)

    return Dataset(split(0, train_samples), split(1, max(train_samples // 5, 1)), args.shape, args.classes)
