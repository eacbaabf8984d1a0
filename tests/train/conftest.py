"""Runs of a few ranks, forked from one server that has imported torch once: a rank starts in milliseconds."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if str(Path(__file__).parents[2]) not in sys.path:  # the ranks import the helper by its name
    sys.path.insert(0, str(Path(__file__).parents[2]))

from hpctrain.rundir import RunDir
from tests.train.ranks import Ranks


@pytest.fixture
def ranks(tmp_path) -> Iterator[Ranks]:
    started = Ranks(tmp_path)
    yield started
    started.end()


@pytest.fixture
def run(tmp_path) -> RunDir:
    """An empty run directory."""
    made = RunDir(tmp_path / "run")
    for part in (made.attempts, made.ckpt, made.stage):
        part.mkdir(parents=True)
    return made
