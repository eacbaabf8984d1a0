"""Image datasets that fit into memory: MNIST and its family, CIFAR, the digits that come along, and synthetic ones."""

import math
from pathlib import Path

import numpy as np
import torch

from hpctrain.config import schema
from hpctrain.config.datasets import CifarArgs
from hpctrain.data import augment, cifar, idx, split
from hpctrain.data.cifar_files import LAYOUTS
from hpctrain.data.dataset import Dataset
from hpctrain.data.locate import DIGITS, DIGITS_TRAIN, MNIST, idx_file
from hpctrain.data.memory import Augment, InMemory
from hpctrain.data.raw import Bytes, Raw
from hpctrain.errors import DataError, UsageError

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
"""Of the 60,000 training images with pixels in 0 to 1; the figures that everyone uses."""

_SYNTHETIC_BYTES = 64 * 2**20
"""Synthetic images beyond this many bytes repeat, so that a benchmark may have any number of samples."""


def load(
    data: schema.Data,
    *,
    path: str | None,
    train_samples: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Dataset:
    """Read a dataset into memory.

    Args:
        data: the config's section.
        path: its directory as the plan has it; None for those that come along.
        train_samples: use the first so many of the training samples.
        seed: of the split, and of synthetic images.
        device: where the images lie and batches are made.
        dtype: of the batches.

    Raises:
        DataError: a file is missing or damaged, images and labels do not belong together, or the images are too small
            for how they are to be varied.
    """
    if data.dataset == "synthetic":
        return _synthetic(data, train_samples, seed, device, dtype)
    raw = _read(data, path)
    chosen = split.choose(len(raw.train[1]), data.split, seed)
    count = split.planned(chosen, train_samples, data.dataset)

    def take(name: str, count: int) -> tuple[Bytes, Bytes]:
        if not chosen[name].permuted:
            return raw.train[0][:count], raw.train[1][:count]
        ids = chosen[name].ids(np.arange(count))
        return raw.train[0][ids], raw.train[1][ids]

    train = take("train", count)
    mean, std = raw.moments or moments(train[0], raw.white)
    shape = tuple(train[0].shape[1:])
    varying = augment.build(data.augment, seed=seed, shape=shape, classes=raw.classes, white=raw.white)

    def part(found: tuple[Bytes, Bytes], varied: Augment | None = None) -> InMemory:
        images, labels = torch.from_numpy(found[0]).to(device), torch.from_numpy(found[1]).to(device, torch.int64)
        return InMemory(
            images, labels, count=len(labels), mean=mean, std=std, white=raw.white, dtype=dtype, augment=varied
        )

    return Dataset(
        part(train, varying),
        part(take("test", chosen["test"].count) if data.split.test else raw.test),
        part(take("validation", chosen["validation"].count)) if chosen["validation"].count else None,
        shape,
        raw.classes,
    )


def _read(data: schema.Data, path: str | None) -> Raw:
    if data.dataset == "digits":
        images, labels = (idx.read(DIGITS / f"{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
        images = images[:, None]
        train, test = (images[:DIGITS_TRAIN], labels[:DIGITS_TRAIN]), (images[DIGITS_TRAIN:], labels[DIGITS_TRAIN:])
        return Raw(train, test, 10, white=16)
    directory = Path(path or "")
    if data.dataset in LAYOUTS:
        args: CifarArgs = schema.arguments(CifarArgs, data.args)
        return cifar.read(directory, data.dataset, args.only)
    mnist = data.dataset == "mnist"
    train, test = (_pair(directory, *MNIST[name], most=9 if mnist else 255) for name in ("train", "test"))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{directory}: training images are {train[0].shape[1:]}, test images {test[0].shape[1:]}")
    classes = 10 if mnist else int(max(train[1].max(), test[1].max())) + 1
    return Raw(train, test, classes, moments=((MNIST_MEAN,), (MNIST_STD,)) if mnist else None)


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


def _pair(directory: Path, image_name: str, label_name: str, *, most: int) -> tuple[Bytes, Bytes]:
    try:
        images, labels = (idx.read(idx_file(directory, name)) for name in (image_name, label_name))
    except UsageError as error:  # it was there when the job was submitted
        raise DataError(error.message, error.hint) from None
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise DataError(f"{directory}: {image_name} {images.shape} and {label_name} {labels.shape} do not match")
    if labels.size and int(labels.max()) > most:
        raise DataError(f"{directory}: {label_name} holds the label {labels.max()}; MNIST has 0 to {most}")
    return images[:, None], labels


def _synthetic(
    data: schema.Data,
    train_samples: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Dataset:
    """Make random images and labels, the same on every rank."""
    args: schema.SyntheticArgs = schema.arguments(schema.DATASET_ARGS[data.dataset], data.args)
    pool = max(_SYNTHETIC_BYTES // math.prod(args.shape), 1)

    def part(number: int, count: int, varied: Augment | None = None) -> InMemory:
        random = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), number]))
        kept = min(count, pool)
        images = torch.from_numpy(random.integers(0, 256, (kept, *args.shape), np.uint8)).to(device)
        labels = torch.from_numpy(random.integers(0, args.classes, kept, np.int64)).to(device)
        half = (0.5,) * args.shape[0]
        return InMemory(images, labels, count=count, mean=half, std=half, white=255, dtype=dtype, augment=varied)

    test = part(1, max(train_samples // 5, 1))
    varying = augment.build(data.augment, seed=seed, shape=args.shape, classes=args.classes)
    return Dataset(part(0, train_samples, varying), test, None, args.shape, args.classes)
