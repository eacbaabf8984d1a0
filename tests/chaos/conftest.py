"""Faults on purpose. What cannot run here is skipped, and fails in CI."""

import os
import shutil
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


@pytest.fixture(scope="session")
def strace() -> str:
    """Return the program that makes system calls fail; skip where it is not installed, fail there in CI."""
    found = shutil.which("strace")
    if found is None:
        how = "strace is not installed: apt-get install --no-install-recommends strace"
        if os.environ.get("CI") == "true":
            pytest.fail(how)
        pytest.skip(how)
    return found
