"""A dataset of the user's own: `package.module:function`, called with `split` and `data.args`.

The function returns a map-style dataset: its length, and for each number an input and a class. An input is a tensor or
an array of bytes or floating-point numbers, or a PIL image; all have the same shape. Images of bytes are `(C, H, W)`,
and become numbers in 0 to 1; all else reaches the model as it is.

With `loader: threads` all workers share the dataset. With `loader: processes` each has one of its own, and the global
generators of `random`, `numpy.random` and `torch` are keyed by (seed, epoch, sample) before each sample is read: what
it draws depends neither on the number of ranks or workers nor on where a run was resumed. Threads share those
generators, so nothing could be keyed there.
"""

import functools
import hashlib
import random
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hpctrain import function
from hpctrain.config.datasets import Augment, Data
from hpctrain.data import augment, split
from hpctrain.data.batch import Buffer, Filler, Kind, Skipped, Task
from hpctrain.data.dataset import Dataset
from hpctrain.data.loader import read_or_next
from hpctrain.data.remote import Remote
from hpctrain.data.split import Chosen
from hpctrain.data.streamed import Streamed
from hpctrain.errors import DataError, HpctrainError, JobError
from hpctrain.plan import Plan

Split = Literal["train", "test"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All that a process needs to make the rows of a part."""

    data: Data
    split: Split
    """What the function is asked for."""
    chosen: Chosen
    """Which of those samples belong to the part."""
    count: int
    """Use the first so many of them."""
    classes: int
    seed: int
    shape: tuple[int, ...]
    dtype: str
    keyed: bool = False
    """Key the global generators of random numbers by the sample."""

    @property
    def kind(self) -> Kind:
        """Of the samples."""
        return Kind(self.shape, getattr(torch, self.dtype))


def count(data: Data) -> tuple[int, int | None]:
    """Return how many samples the function has for training and for testing; None: its own are not asked for.

    Raises:
        UsageError: the function cannot be found.
        JobError: it raised, or returned no map-style dataset.
    """
    return len(_open(data, "train")), None if data.split.test else len(_open(data, "test"))


def load(data: Data, plan: Plan, *, device: torch.device, dtype: torch.dtype) -> Dataset:
    """Open a dataset of the user's own.

    Args:
        data: the config's section.
        plan: names how many samples are used, and has the seed.
        device: where batches are made.
        dtype: of the inputs.

    Raises:
        UsageError: the function cannot be found.
        JobError: it raised, or returned no map-style dataset.
        DataError: its samples are not as planned, or not as they must be.
    """
    train = _open(data, "train")
    test = None if data.split.test else _open(data, "test")
    chosen = split.choose(len(train), data.split, plan.seed)
    used = split.planned(chosen, plan.train_samples, data.dataset)
    classes = _classes(train, data.dataset)
    first, _ = _sample(train, 0, _where(data, "train", 0))
    processes = data.loader == "processes"
    varying = _varying(data, plan.seed, first, classes)

    def part(dataset: Any, name: Split, which: Chosen, count: int, *, training: bool = False) -> Streamed:
        recipe = Recipe(
            data=data, split=name, chosen=which, count=count, classes=classes, seed=plan.seed,
            shape=tuple(first.shape), dtype=str(first.dtype).removeprefix("torch."), keyed=processes,
        )  # fmt: skip
        return Streamed(
            functools.partial(_remote, recipe) if processes else functools.partial(_local, Rows(recipe, dataset)),
            recipe.kind,
            count=count,
            device=device,
            dtype=dtype,
            workers=data.workers,
            shared=processes,
            augment=varying if training else None,
        )

    validation = chosen["validation"]
    if test is None:
        tested = part(train, "train", chosen["test"], chosen["test"].count)
    else:
        tested = part(test, "test", Chosen(len(test), plan.seed, 0, len(test), permuted=False), len(test))
    return Dataset(
        part(train, "train", chosen["train"], used, training=True),
        tested,
        part(train, "train", validation, validation.count) if validation.count else None,
        tuple(first.shape),
        classes,
    )


def _varying(data: Data, seed: int, first: Tensor, classes: int) -> augment.Augmentation | None:
    """Return what varies training batches; pixels are varied only where inputs are images of bytes."""
    plain = Augment()
    asked = [key for key in ("crop", "flip", "jitter", "cutout") if getattr(data.augment, key) != getattr(plain, key)]
    if asked and (first.dtype != torch.uint8 or first.ndim != 3):
        raise DataError(
            f"data.augment.{asked[0]}: is for images of bytes, {data.dataset} gives {first.dtype} {tuple(first.shape)}",
            "vary them in the dataset itself; mixup, cutmix and label_smoothing work here",
        )
    return augment.build(data.augment, seed=seed, shape=tuple(first.shape), classes=classes)


def _local(rows: "Rows", _buffers: list[Buffer]) -> Filler:
    return rows


def _remote(recipe: Recipe, buffers: list[Buffer]) -> Filler:
    return Remote(msgspec.json.encode(recipe), buffers)


def _open(data: Data, name: Split) -> Any:
    """Call the user's function."""
    made = function.find(data.dataset, "data.dataset")
    arguments = {"split": name, **data.args}
    called = function.call(data.dataset, arguments)
    try:
        dataset: Any = made(**arguments)
    except HpctrainError:
        raise
    except Exception as error:
        raise JobError(
            f"data.dataset: {called} raised {type(error).__name__}: {error}\n{function.frames(error)}",
            "correct the function or data.args",
        ) from error
    kind = type(dataset)
    if not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")) or len(dataset) == 0:
        empty = hasattr(kind, "__len__") and len(dataset) == 0
        raise JobError(
            f"data.dataset: {called} returned {'an empty' if empty else 'a'} {kind.__module__}.{kind.__qualname__}, "
            "not a map-style dataset",
            "let it return what has __len__ and __getitem__, which gives an input and a class "
            f"({function.where(made)})",
        )
    return dataset


def _classes(dataset: Any, name: str) -> int:
    """Return the number of classes, as datasets of torchvision name it."""
    for attribute in ("classes", "num_classes", "targets"):
        found = getattr(dataset, attribute, None)
        if found is None:
            continue
        if attribute == "targets":
            return int(max(found)) + 1
        return found if isinstance(found, int) else len(found)
    raise JobError(
        f"data.dataset: {name} does not say how many classes there are",
        "give the dataset an attribute `classes` with their names, or `num_classes`",
    )


def _where(data: Data, name: Split, index: int) -> str:
    return f"data.dataset: sample {index} of {function.call(data.dataset, {'split': name})}"


def _sample(dataset: Any, index: int, where: str) -> tuple[Tensor, int]:
    """Read a sample and make a tensor of its input.

    Raises:
        DataError: the user's code raised, or gave something else.
    """
    try:
        found, label = dataset[index]
        value = _tensor(found)
        number = int(label)
    except Exception as error:
        raise DataError(f"{where} raised {type(error).__name__}: {error}\n{function.frames(error)}") from error
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise DataError(f"{where} has an input of {value.dtype}", "let it be bytes (uint8) or floating-point numbers")
    return value, number


def _tensor(found: Any) -> Tensor:
    if isinstance(found, Tensor):
        return found.detach()
    if isinstance(found, Image.Image):
        pixels = np.array(found if found.mode in {"RGB", "L"} else found.convert("RGB"))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    return torch.as_tensor(np.asarray(found))


class Rows:
    """Reads the user's samples into the rows of batches.

    Args:
        recipe: which samples.
        dataset: what the user's function returned; it is called if None.
    """

    def __init__(self, recipe: Recipe, dataset: Any = None) -> None:
        self._recipe = recipe
        self._dataset = _open(recipe.data, recipe.split) if dataset is None else dataset

    def fill(self, task: Task) -> list[Skipped]:
        """Fill the rows of a task, see `hpctrain.data.batch.Filler`."""
        skipped: list[Skipped] = []
        for row in range(task.begin, task.end):
            if task.stopping.is_set():
                break
            read = functools.partial(self._read, task, row)
            recipe = self._recipe
            number = int(task.wanted.ids[row])
            skipped += read_or_next(number, recipe.count, read, skip=recipe.data.on_error == "skip")
        return skipped

    def close(self) -> None:
        """Do nothing: there is nothing to end."""

    def _read(self, task: Task, row: int, number: int) -> None:
        recipe = self._recipe
        if recipe.keyed:
            key(recipe.seed, task.wanted.epoch, int(task.wanted.ids[row]))
        index = int(recipe.chosen.ids([number])[0])
        where = _where(recipe.data, recipe.split, index)
        value, label = _sample(self._dataset, index, where)
        target = task.inputs[row]
        if value.shape != target.shape or value.dtype != target.dtype:
            raise DataError(
                f"{where} has an input of shape {tuple(value.shape)} and {value.dtype}; the first one has "
                f"{tuple(target.shape)} and {target.dtype}",
                "let all have the same",
            )
        if not 0 <= label < recipe.classes:
            raise DataError(f"{where} has the class {label}; there are {recipe.classes}, from 0")
        target.copy_(value)
        task.labels[row] = label


def key(seed: int, epoch: int, sample: int) -> None:
    """Key the global generators of this process by a sample."""
    text = f"hpctrain sample {seed} {epoch} {sample}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - the one that a user's code may draw from
    torch.default_generator.manual_seed(number)
