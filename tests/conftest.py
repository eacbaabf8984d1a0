"""What holds for all tests."""

import importlib.util
import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest


def pytest_configure() -> None:
    """Undo what nohup, or a shell's `&`, leaves to all that is started here: tests send these signals."""
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def missing(how: str) -> NoReturn:
    """Fail in CI, where nothing may be missing; skip elsewhere, and say how to get it."""
    if os.environ.get("CI") == "true":
        pytest.fail(how)
    pytest.skip(how)


@pytest.fixture
def horovod():
    """Skip where Horovod is not installed; fail there in CI."""
    if importlib.util.find_spec("horovod") is None:
        missing("Horovod is not installed: bash jobs/build-horovod.sh builds a wheel")


@pytest.fixture
def real_mnist() -> Path:
    """The folder of MNIST's files; without it skip, and fail in CI."""
    path = Path(os.environ.get("HPCTRAIN_DATA", "/nowhere"), "mnist")
    if not path.is_dir():
        missing("HPCTRAIN_DATA names no folder with mnist/; README.md says what lies there")
    return path


@pytest.fixture(scope="module")
def library():
    """Say whether torchvision or timm is here: without it skip, and fail in CI.

    torchvision on PyPI is built for CUDA; beside a torch for CPUs its operators for detection are missing, and it
    cannot be imported until they have a name. Models that classify do not use them.
    """
    import torch

    operators = torch.library.Library("torchvision", "FRAGMENT")
    for text in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets) -> Tensor"):
        try:
            getattr(torch.ops.torchvision, text.partition("(")[0])
        except AttributeError:
            operators.define(text)

    def found(name):
        for needed in {"torchvision", name}:
            if importlib.util.find_spec(needed) is None:
                missing(f"no {needed}: python -m pip install --no-deps -c tests/constraints.txt {needed}")

    yield found
    operators._destroy()
