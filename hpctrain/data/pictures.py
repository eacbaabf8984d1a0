"""Encoded pictures of any size, from any source of them."""

import functools

import torch
from torch import Tensor

from hpctrain.config import schema
from hpctrain.config.datasets import Data, PictureArgs
from hpctrain.data import augment, crop, decode, draws, split
from hpctrain.data.batch import Buffer, Kind, Skipped, Task
from hpctrain.data.dataset import Dataset
from hpctrain.data.loader import read_or_next
from hpctrain.data.source import Source
from hpctrain.data.split import Chosen
from hpctrain.data.streamed import Streamed
from hpctrain.errors import DataError
from hpctrain.plan import Plan

MOMENTS = {"rgb": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "grey": ((0.449,), (0.226,))}
"""Mean and deviation of ImageNet's pixels in 0 to 1, as everyone uses them; for grey their averages."""


def load(
    data: Data,
    train: Source,
    test: Source | None,
    plan: Plan,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Dataset:
    """Make a dataset of sources of encoded pictures.

    Args:
        data: the config's section; its arguments are a `PictureArgs`.
        train: of the training pictures, of which `data.split` may set some apart.
        test: of the test pictures; None where `data.split.test` sets some apart.
        plan: names how many samples are used, and has the seed.
        device: where batches are made.
        dtype: of the inputs.

    Raises:
        DataError: the sources are not the planned ones, or the pictures are too small for how they are to be varied.
    """
    args: PictureArgs = schema.arguments(schema.DATASET_ARGS[data.dataset], data.args)
    chosen = split.choose(len(train), data.split, plan.seed)
    count = split.planned(chosen, plan.train_samples, data.dataset)
    if test is not None:
        _refuse_other_classes(data.dataset, train, test)
    shape = (len(MOMENTS[args.channels][0]), args.size, args.size)
    varying = augment.build(data.augment, seed=plan.seed, shape=shape, classes=len(train.names))

    def part(source: Source, which: Chosen, count: int, *, training: bool = False) -> Streamed:
        rows = Rows(source, which, count, data, args, plan.seed, training=training)
        mean, std = MOMENTS[args.channels]
        return Streamed(
            functools.partial(_same, rows),
            rows.kind,
            count=count,
            device=device,
            dtype=dtype,
            mean=args.mean or mean,
            std=args.std or std,
            workers=data.workers,
            augment=varying if training else None,
        )

    if data.split.test or test is None:
        tested = part(train, chosen["test"], chosen["test"].count)
    else:
        tested = part(test, Chosen(len(test), plan.seed, 0, len(test), permuted=False), len(test))
    validation = chosen["validation"]
    return Dataset(
        part(train, chosen["train"], count, training=True),
        tested,
        part(train, validation, validation.count) if validation.count else None,
        shape,
        len(train.names),
    )


def _refuse_other_classes(name: str, train: Source, test: Source) -> None:
    if test.names == train.names:
        return
    odd = sorted(set(test.names) ^ set(train.names))
    raise DataError(
        f"{name}: training and test pictures are not of the same classes; "
        f"{', '.join(odd[:5]) or 'their order'}{', ...' if len(odd) > 5 else ''} differs",
        "give each class a directory in both, even if it is empty in one",
    )


def _same(rows: "Rows", _buffers: list[Buffer]) -> "Rows":
    return rows  # it keeps no state: all threads may have the same


class Rows:
    """Decodes pictures into the rows of batches.

    Args:
        source: of the pictures.
        chosen: which of its samples belong to the part.
        count: use the first so many of them.
        data: the config's section.
        args: what is made of the pictures.
        seed: of random crops.
        training: random-resized crops, where `data.augment.crop` says so; else the middle.
    """

    def __init__(
        self,
        source: Source,
        chosen: Chosen,
        count: int,
        data: Data,
        args: PictureArgs,
        seed: int,
        *,
        training: bool,
    ) -> None:
        self._source, self._chosen, self._count, self._args, self._seed = source, chosen, count, args, seed
        self._augment, self._skip = data.augment, data.on_error == "skip"
        self._random = training and data.augment.crop in {"auto", "resized"}
        self.kind = Kind((len(MOMENTS[args.channels][0]), args.size, args.size), torch.uint8, channels_last=True)

    def fill(self, task: Task) -> list[Skipped]:
        """Fill the rows of a task, see `hpctrain.data.batch.Filler`."""
        numbers = task.wanted.ids[task.begin : task.end].numpy()
        places = self._chosen.ids(numbers).tolist()
        # Of the sample that was wanted, also where another one takes its place.
        drawn = (
            draws.uniform(self._seed, task.wanted.epoch, numbers, count=crop.DRAWS, what="crop").tolist()
            if self._random
            else [[]] * len(places)
        )
        labels = task.labels.numpy()  # of which single elements are set faster
        skipped: list[Skipped] = []
        for place, number in enumerate(numbers.tolist()):
            if task.stopping.is_set():
                break
            row = task.begin + place

            def read(sample: int, *, row: int = row, number: int = number, place: int = place) -> None:
                index = places[place] if sample == number else int(self._chosen.ids([sample])[0])
                labels[row] = self._read(task.inputs[row], index, drawn[place])

            skipped += read_or_next(number, self._count, read, skip=self._skip)
        return skipped

    def close(self) -> None:
        """Do nothing: there is nothing to end."""

    def _read(self, row: Tensor, index: int, drawn: list[float]) -> int:
        content, label = self._source.read(index)
        if not isinstance(content, bytes):
            raise AssertionError("a source of pictures gives encoded ones")  # noqa: TRY004 - a bug of ours
        args, where = self._args, self._source.where(index)
        if self._random:
            decode.random_resized(content, row, drawn, channels=args.channels,
                                  scale=self._augment.scale, ratio=self._augment.ratio, where=where)  # fmt: skip
        else:
            decode.central(content, row, channels=args.channels, resize=args.resize, where=where)
        return label
