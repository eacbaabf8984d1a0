import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctrain import plan as planning
from hpctrain.config.load import Loaded, load
from hpctrain.plan import Plan
from tests.launch.small import CONFIG

TRAINING = """
name: mini
data: {dataset: digits}
model: {name: mlp}
batch: {global: 48}
optim: {lr: 0.1}
train: {epochs: 1}
"""

Make = Callable[..., tuple[Loaded, Plan]]


@pytest.fixture
def make(tmp_path, monkeypatch) -> Make:
    """Load a config from text and overrides, and plan it."""
    monkeypatch.chdir(tmp_path)

    def load_and_plan(*overrides: str, text: str = TRAINING) -> tuple[Loaded, Plan]:
        Path("config.yaml").write_text(text)
        loaded = load(Path("config.yaml"), overrides)
        samples = planning.Samples(train=1000, test=100)
        return loaded, planning.make(loaded, planning.layout_on_slurm(loaded), samples)

    return load_and_plan


@pytest.fixture
def fake(tmp_path: Path, monkeypatch) -> Callable[[str, str], Path]:
    """Put a program on PATH, in front of everything, by its bash code; its calls are noted in NAME.calls."""
    folder = tmp_path / "fake-bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def program(name: str, code: str) -> Path:
        calls = folder / f"{name}.calls"
        (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>{calls}\n{code}\n')
        (folder / name).chmod(0o755)
        return calls

    return program


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory; what hpctrain remembers of other runs is out of sight."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hpctrain() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call hpctrain as a user does; the options are those of `subprocess.run`."""

    def call(*arguments, **options):
        argv = [sys.executable, "-m", "hpctrain", *map(str, arguments)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **options)

    return call


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("practice")
    (root / "c.yaml").write_text(CONFIG.format(runs=root / "runs"))
    return root / "c.yaml"
