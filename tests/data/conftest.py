"""Real data, where HPCTRAIN_DATA names its folder."""

import os
from pathlib import Path

import pytest

from tests.conftest import missing


@pytest.fixture
def abalone() -> Path:
    """UCI's table of abalones."""
    path = Path(os.environ.get("HPCTRAIN_DATA", "/nowhere"), "abalone.data")
    if not path.is_file():
        missing("HPCTRAIN_DATA does not name a folder with abalone.data")
    return path
