"""Tables: a CSV file becomes inputs `(N, F)` in memory, split by the seed.

Numbers are standardised, and words become one input each (1 where the sample has it, else 0). Means, deviations and
the words that count are those of the training samples alone: what is kept for testing must not shape what is trained.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hpctrain.config import schema
from hpctrain.config.datasets import TableArgs
from hpctrain.data import augment, columns, split
from hpctrain.data.columns import Columns
from hpctrain.data.dataset import Dataset
from hpctrain.data.memory import Augment, InMemory
from hpctrain.errors import DataError, UsageError

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Fitted(NamedTuple):
    """What the training samples say of the inputs."""

    mean: Floats
    std: Floats
    words: tuple[Ids, ...]
    """Of each column of words, the numbers of those that count, in the words' alphabetical order."""


def load(
    data: schema.Data, *, path: str | None, train_samples: int, seed: int, device: torch.device, dtype: torch.dtype
) -> Dataset:
    """Read a table into memory.

    Args:
        data: the config's section.
        path: the file.
        train_samples: use the first so many of the training samples.
        seed: of the split.
        device: where batches are made.
        dtype: of inputs, and of targets that are numbers.

    Raises:
        DataError: the file cannot be read, or its columns are not what the config says; names file, line and column.
    """
    args: TableArgs = schema.arguments(TableArgs, data.args)
    file = Path(path or "")
    try:
        held = columns.read(file, args)
    except UsageError as error:  # the rest of the file is read here for the first time
        raise DataError(error.message, error.hint) from None
    chosen = split.choose(len(held.lines), data.split, seed)
    count = split.planned(chosen, train_samples, str(file))
    ids = {name: part.ids(np.arange(part.count)) for name, part in chosen.items()}
    ids["train"] = ids["train"][:count]
    regression = args.task == "regression"
    numbers = np.asarray(held.numbers).reshape(len(held.lines), -1)
    inputs = numbers[:, : numbers.shape[1] - regression]
    targets, outputs = (numbers[:, -1] + args.offset, 1) if regression else _classes(file, args, held)
    fitted = _fit(file, held, inputs, ids["train"], len(held.words) - (not regression))

    def part(name: str, varied: Augment | None = None) -> InMemory:
        made = torch.from_numpy(_make(file, held, inputs, ids[name], fitted)).to(device, dtype)
        answers = torch.from_numpy(targets[ids[name]]).to(device, dtype if regression else torch.int64)
        return InMemory(made, answers, count=len(made), dtype=dtype, augment=varied)

    train = part("train", None if regression else augment.build(data.augment, seed=seed, shape=(), classes=outputs))
    return Dataset(
        train,
        part("test"),
        part("validation") if len(ids["validation"]) else None,
        tuple(train.inputs.shape[1:]),
        outputs,
        "number" if regression else "classes",
        tuple(_unknown_words(file, held, ids, fitted)),
    )


def _classes(file: Path, args: TableArgs, held: Columns) -> tuple[Ids, int]:
    """Number the target's words in their order: that of numbers where all are whole numbers, else the alphabet's."""
    vocabulary = held.vocabularies[-1]
    if len(vocabulary) < 2:
        raise DataError(f"{file}: column {args.target!r} has one class only: {next(iter(vocabulary))!r}")
    whole = all(word.lstrip("+-").isdecimal() for word in vocabulary)
    ranked = sorted(vocabulary, key=(lambda word: (int(word), word)) if whole else None)
    label = np.empty(len(ranked), np.int64)
    label[[vocabulary[word] for word in ranked]] = np.arange(len(ranked))
    return label[np.asarray(held.words[-1])], len(ranked)


def _fit(file: Path, held: Columns, inputs: Floats, train: Ids, word_columns: int) -> _Fitted:
    """Take means, deviations and words from the training samples; a constant column has deviation 1."""
    known = inputs[train]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = known.mean(axis=0), known.std(axis=0)
    # The deviation of equal numbers may be a rounding error instead of 0, and dividing by it would make noise an input.
    constant = (known == known[:1]).all(axis=0)
    mean[constant], std[constant | (std == 0)] = known[0, constant], 1.0
    for place in np.flatnonzero(~(np.isfinite(mean) & np.isfinite(std)))[:1]:
        raise DataError(
            f"{file}: column {held.roles.names[held.roles.numbers[place]]!r} holds numbers too large for a mean",
            "scale it, or leave it out: data.args.leave_out",
        )
    words = []
    for codes, vocabulary in zip(held.words[:word_columns], held.vocabularies, strict=False):
        there = set(np.unique(np.asarray(codes)[train]).tolist())
        words.append(np.array([code for _, code in sorted(vocabulary.items()) if code in there], np.int64))
    return _Fitted(mean, std, tuple(words))


def _make(file: Path, held: Columns, inputs: Floats, ids: Ids, fitted: _Fitted) -> npt.NDArray[np.float64]:
    """Return the inputs of samples `(P, F)`."""
    with np.errstate(over="ignore"):
        standard = (inputs[ids] - fitted.mean) / fitted.std
    # Beyond this a number is infinite in float32, and so is all that follows from it.
    for row, place in np.argwhere(~(np.abs(standard) < np.finfo(np.float32).max))[:1]:
        raise DataError(
            f"{file}:{held.lines[ids[row]]}: column {held.roles.names[held.roles.numbers[place]]!r} is "
            f"{inputs[ids[row], place]:g}, which is beyond all measure: the training samples have "
            f"{fitted.mean[place]:g} +- {fitted.std[place]:g}",
            "correct it, or leave the column out: data.args.leave_out",
        )
    hot = [np.asarray(codes)[ids, None] == words for codes, words in zip(held.words, fitted.words, strict=False)]
    return np.concatenate([standard, *hot], axis=1)


def _unknown_words(file: Path, held: Columns, ids: dict[str, Ids], fitted: _Fitted) -> list[str]:
    """Say which samples have words that no training sample has."""
    notes = []
    for place, codes, words in zip(held.roles.words, held.words, fitted.words, strict=False):
        for name in ("validation", "test"):
            strange = ids[name][~np.isin(np.asarray(codes)[ids[name]], words)]
            if len(strange):
                first = min(held.lines[row] for row in strange)
                notes.append(
                    f"{file}: column {held.roles.names[place]!r}: {len(strange)} of {len(ids[name])} {name} samples "
                    f"have words that no training sample has (first in line {first}): all its inputs are 0 there"
                )
    return notes
