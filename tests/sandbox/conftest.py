"""Every test here has a temporary directory and a state folder of its own, and must leave no file and no process."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from hpctrain.errors import UsageError
from hpctrain.sandbox.spec import Spec, require_packages


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path_factory):
    tmp_path_factory.getbasetemp()  # where it is by default, before TMPDIR changes
    # not tmp_path: unix sockets lie in here, and their paths must be short
    place = Path(tempfile.mkdtemp(prefix="hp-", dir="/tmp"))
    place.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))
    monkeypatch.delenv("HPCTRAIN_SANDBOX_ROOT", raising=False)
    yield place
    deadline = time.monotonic() + 10
    while (left := _left_in(place)) and time.monotonic() < deadline:
        time.sleep(0.02)
    shutil.rmtree(place)
    assert not left


@pytest.fixture(autouse=True)
def interruptible():
    # a shell without job control starts what it puts in the background with INT ignored, and we would hand that on
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def slurm():
    _need(Spec(nodes=1, gpus_per_node=0))


@pytest.fixture
def slurm_accounting():
    _need(Spec(nodes=1, gpus_per_node=0, accounting=True))


def _need(spec: Spec) -> None:
    try:
        require_packages(spec)
    except UsageError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def _left_in(place: Path) -> list[str]:
    return [str(path) for path in place.glob("hpctrain-sandbox-*")] + [
        process.name for process in Path("/proc").glob("[0-9]*") if _mentions(process, os.fsencode(place))
    ]


def _mentions(process: Path, place: bytes) -> bool:
    if int(process.name) == os.getpid():
        return False
    try:
        texts = [(process / name).read_bytes() for name in ("cmdline", "environ")]
    except OSError:
        return False
    return place in texts[0] or b"SLURM_CONF=" + place in texts[1]
