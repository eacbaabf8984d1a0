"""What holds for all tests."""

import importlib.util
import os
import signal

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
