"""The ranks of `tests/train`, for the tests of what they talk through."""

import importlib.util
import os
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


@pytest.fixture
def horovod():
    """Skip where Horovod is not installed; fail there in CI."""
    if importlib.util.find_spec("horovod") is None:
        how = "Horovod is not installed: bash jobs/build-horovod.sh builds a wheel"
        if os.environ.get("CI") == "true":
            pytest.fail(how)
        pytest.skip(how)
