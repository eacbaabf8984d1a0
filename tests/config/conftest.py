"""Configs as text: `load` them, or see what is wrong with them."""

from pathlib import Path

import pytest

from hpctrain.config import load as loading
from hpctrain.errors import ConfigError

GOOD = """\
name: run
data: {dataset: mnist}
model: {name: mlp}
batch: {global: 128}
optim: {lr: 0.1}
train: {epochs: 3}
"""


@pytest.fixture
def good():
    return GOOD


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load text as the file run.yaml, with overrides."""
    monkeypatch.chdir(tmp_path)

    def load(text, *overrides):
        Path("run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return loading.load(Path("run.yaml"), overrides)

    return load


@pytest.fixture
def problems(load):
    """Return the problems of a text that is no config."""

    def problems(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return list(caught.value.problems)

    return problems
