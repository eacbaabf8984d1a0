"""How many samples are for training, validation and testing; no numpy, for the login node."""

from typing import NamedTuple

from hpctrain.config.datasets import Split

LARGEST = 2**28
"""Bytes of one encoded sample: what claims to be larger is not read, so that no file can fill the memory."""
MOST_PIXELS = 178_956_970
"""Of one picture: larger ones are refused; the limit at which Pillow takes a picture for a decompression bomb."""


class Sizes(NamedTuple):
    """How many samples a set has for each purpose."""

    train: int
    validation: int
    test: int


def sizes(total: int, split: Split) -> Sizes:
    """Count, without any sample being looked at."""
    test, (low, high) = cuts(total, split)
    return Sizes(total - test - (high - low), high - low, test)


def cuts(total: int, split: Split) -> tuple[int, tuple[int, int]]:
    """Cut a permutation: so many positions at the front are for testing, those of the range for validation."""
    test = round(total * split.test)
    rest = total - test
    if split.fold is None:
        return test, (test, test + round(total * split.validation))
    part, parts = map(int, split.fold.split("/"))
    return test, (test + (part - 1) * rest // parts, test + part * rest // parts)


def more(name: str, total: int, split: Split) -> str:
    """Say how a part of which nothing is left gets samples."""
    if name == "training":
        return "set fewer apart: data.split"
    if name == "validation" and split.fold is not None:
        return "use fewer folds, or more samples"
    asked = split.test if name == "test" else split.validation
    if asked and total < 2:
        return "use more samples"
    return f"set {'more' if asked else 'some'} apart: data.split.{name}={max(1 / total, 0.1):.2g}"
