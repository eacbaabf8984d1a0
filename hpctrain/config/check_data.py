"""Rules between the fields of the section `data`, and what a config alone tells of a dataset."""

from collections.abc import Iterator
from typing import Any

import msgspec

from hpctrain.config.datasets import (
    DATASET_ARGS,
    Augment,
    CifarArgs,
    Data,
    FolderArgs,
    PictureArgs,
    PointsArgs,
    ShardsArgs,
    Split,
    SyntheticArgs,
    TableArgs,
)
from hpctrain.config.schema import arguments

_FILES = {
    "idx": "the directory of its IDX files, named as those of MNIST",
    "cifar10": "the directory of its .bin files",
    "cifar100": "the directory of its .bin files",
    "folder": "the directory of the pictures",
    "shards": "the directory of the shards",
    "table": "the CSV file",
}
"""Datasets that need `path`, and what it names."""

_IMAGE_SIZES = {"mnist": 28, "digits": 8, "cifar10": 32, "cifar100": 32}

_CHANNELS = {"mnist": 1, "idx": 1, "digits": 1, "cifar10": 3, "cifar100": 3}

KNOWN = frozenset(DATASET_ARGS)
"""The datasets that come along."""

_CLASSES = {"mnist": 10, "digits": 10, "cifar10": 10, "cifar100": 100}

Found = Iterator[tuple[str, str]]


def check(data: Data) -> Found:
    """Yield the dotted key to blame, and a message."""
    args = _args(data)
    yield from _path(data)
    yield from _split(data, args)
    yield from _reading(data, args)
    yield from _order(data)
    yield from _augment(data, args)
    if isinstance(args, TableArgs):
        from hpctrain.config import columns  # only a table pays for it

        for key, problem in columns.problems(args, args.columns):
            yield f"data.args.{key}", problem
    if isinstance(args, CifarArgs):
        yield from _only(args)


def _path(data: Data) -> Found:
    if data.path is not None and data.dataset in {"digits", "points", "synthetic"}:
        yield "data.path", f"{data.dataset} reads no files; remove path, or use dataset: mnist"
    if data.path is None and data.dataset in _FILES:
        yield "data.path", f"missing; give {_FILES[data.dataset]}"


def _split(data: Data, args: object) -> Found:
    """What is set apart: once, of what there is, and for datasets that have no test set of their own."""
    split = data.split
    if split.fold is not None:
        part, parts = map(int, split.fold.split("/"))
        if parts < 2 or part > parts:
            yield "data.split.fold", f"there is no fold {part} of {parts}; give k/K, K of at least 2 and k from 1 to K"
        if split.validation:
            yield "data.split.validation", "a fold is what is for validation; give one of fold and validation"
    if split.test + split.validation >= 1:
        yield "data.split.validation", "with split.test nothing is left for training; set fewer apart"
    if isinstance(args, PointsArgs) and split.test and "test_count" in data.args:
        yield "data.args.test_count", "split.test sets the test points apart; remove one of the two"
    if data.dataset == "synthetic" and (split.test or split.validation or split.fold):
        yield "data.split", "synthetic images are random, there is nothing to set apart; remove it"
    if not split.test and data.dataset == "table":
        yield "data.split.test", "missing; a table has no test set of its own, so set some apart, such as 0.1"
    if not split.test and isinstance(args, FolderArgs | ShardsArgs) and args.test is None:
        yield "data.split.test", "missing; with args.test: null set some apart, such as 0.1"


def _only(args: CifarArgs) -> Found:
    if len(args.only) == 1:
        yield "data.args.only", "one class leaves nothing to tell apart; name two or more"
    for name in sorted({name for name in args.only if args.only.count(name) > 1}):
        yield "data.args.only", f"{name!r} is named twice"


def _reading(data: Data, args: object) -> Found:
    own = ":" in str(data.dataset)  # None where what is given is no dataset, which is reported elsewhere
    if data.loader == "processes" and not own:
        yield "data.loader", f"{data.dataset} is read by threads; processes are for a dataset of your own"
    if not isinstance(args, PictureArgs):
        if data.on_error == "skip" and not own:
            yield "data.on_error", f"{data.dataset} is read as a whole, so nothing can be skipped; remove it"
        return
    if args.resize < args.size:
        yield "data.args.resize", f"{args.resize} is less than size, {args.size}, which is cut out of it"
    channels = 3 if args.channels == "rgb" else 1
    for key in ("mean", "std"):
        given = getattr(args, key)
        if given is not None and len(given) not in {1, channels}:
            yield f"data.args.{key}", f"has {len(given)} numbers; give one for each channel, {channels}, or one for all"


def _order(data: Data) -> Found:
    if data.shuffle == "blocks" and data.split != Split():
        yield "data.shuffle", "a split leaves no neighbours together; use shuffle: full, or remove split"


def _augment(data: Data, args: object) -> Found:
    augment = data.augment
    for key in ("scale", "ratio"):
        low, high = getattr(augment, key)
        if low > high:
            yield f"data.augment.{key}", f"runs from {low:g} down to {high:g}; give the smaller number first"
    if isinstance(args, TableArgs | PointsArgs):
        yield from _augment_rows(data)
        return
    if augment.crop == "resized" and not isinstance(args, PictureArgs):
        yield "data.augment.crop", f"resized is for encoded pictures, not for {data.dataset}; use padded or none"
    yield from ((f"data.augment.{key}", message) for key, message in too_large(augment, side(data)))


def _augment_rows(data: Data) -> Found:
    """Rows of numbers are no images; classes may be mixed and smoothed, numbers not."""
    default, what = Augment(), "a table" if data.dataset == "table" else data.dataset
    for key in Augment.__struct_fields__:
        if getattr(data.augment, key) == getattr(default, key):
            continue
        if key not in {"mixup", "label_smoothing"}:
            yield f"data.augment.{key}", f"is for images, not for {what}; remove it"
        elif classes(data) == 0:
            other = ", or use task: classification" if data.dataset == "table" else ""
            yield f"data.augment.{key}", f"is for classes, not for a regression; remove it{other}"


def too_large(augment: Augment, side: int | None) -> Found:
    """Say which options do not fit images whose shorter side has so many pixels; None: not known yet."""
    if side is None:
        return
    if augment.crop == "padded" and augment.padding >= side:
        yield "padding", f"{augment.padding} pixels can move all {side} out of sight; give at most {side - 1}"
    if augment.cutout >= side:
        yield "cutout", f"a square of {augment.cutout} blanks all {side} pixels; give at most {side - 1}"


def _args(data: Data) -> Any:
    """Return the arguments of a dataset that comes along; None for the user's own, or where one is missing."""
    if data.dataset not in DATASET_ARGS:
        return None
    try:
        return arguments(DATASET_ARGS[data.dataset], data.args)
    except msgspec.ValidationError:  # which was reported where it was read
        return None


def sides(data: Data) -> tuple[int, int] | None:
    """Return height and width of the images that the model gets, where the config tells."""
    args = _args(data)
    if isinstance(args, SyntheticArgs):
        return args.shape[1], args.shape[2]
    size = args.size if isinstance(args, PictureArgs) else _IMAGE_SIZES.get(data.dataset)
    return None if size is None else (size, size)


def side(data: Data) -> int | None:
    """Return the shorter side of the images that the model gets, where the config tells."""
    return min(sides(data) or [0]) or None


def channels(data: Data) -> int | None:
    """Return how many channels the images have, where the config tells."""
    args = _args(data)
    if isinstance(args, SyntheticArgs):
        return args.shape[0]
    if isinstance(args, PictureArgs):
        return 3 if args.channels == "rgb" else 1
    return _CHANNELS.get(data.dataset)


def classes(data: Data) -> int | None:
    """Return how many classes there are, where the config tells; 0: a number is predicted."""
    args = _args(data)
    if isinstance(args, SyntheticArgs):
        return args.classes
    if isinstance(args, CifarArgs) and args.only:
        return len(args.only)
    if isinstance(args, PointsArgs):
        return 0 if args.kind == "line" else 2
    if isinstance(args, TableArgs) and args.task == "regression":
        return 0
    return _CLASSES.get(data.dataset)


def mixes(data: Data) -> str:
    """Return the option that makes probabilities of classes; empty if there is none."""
    return next((key for key in ("mixup", "cutmix", "label_smoothing") if getattr(data.augment, key)), "")
