"""What holds for all tests."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Undo what nohup, or a shell's `&`, leaves to all that is started here: tests send these signals."""
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def horovod():
    """Skip where Horovod is not installed; fail there in CI."""
    if importlib.util.find_spec("horovod") is None:
        how = "Horovod is not installed: bash jobs/build-horovod.sh builds a wheel"
        if os.environ.get("CI") == "true":
            pytest.fail(how)
        pytest.skip(how)


@pytest.fixture
def real_mnist() -> Path:
    """The folder of MNIST's files; without it skip, and fail in CI."""
    path = Path(os.environ.get("HPCTRAIN_DATA", "/nowhere"), "mnist")
    if not path.is_dir():
        how = "HPCTRAIN_DATA names no folder with mnist/; README.md says what lies there"
        pytest.fail(how) if os.environ.get("CI") == "true" else pytest.skip(how)
    return path
