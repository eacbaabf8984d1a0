"""The ranks of `tests/train`, for the tests of what they talk through."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if str(Path(__file__).parents[2]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def ranks(tmp_path) -> Iterator[object]:
    from tests.train.ranks import Ranks  # only those who ask for ranks need torch

    started = Ranks(tmp_path)
    yield started
    started.end()
