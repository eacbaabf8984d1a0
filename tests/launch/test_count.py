import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpctrain.cli import cli
from hpctrain.config.schema import Data
from hpctrain.data import listing
from hpctrain.data.locate import locate
from hpctrain.errors import UsageError
from hpctrain.launch.count import count

CONFIG = """
name: pictures
data: {dataset: folder, path: DATA}
model: {name: mlp}
batch: {global: 2}
optim: {lr: 0.1}
train: {epochs: 2}
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """More pictures than are listed on the login node at once, in a directory with a config and an empty cache."""
    monkeypatch.setattr(listing, "SMALL", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (data / split / name).mkdir(parents=True)
            for number in range(2 if split == "train" else 1):
                (data / split / name / f"{number}.jpg").touch()
    (tmp_path / "config.yaml").write_text(CONFIG.replace("DATA", str(data)))
    return data


def hpctrain(*words):
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_large_folder_is_counted_in_a_child_and_then_known(tree):
    data = Data(dataset="folder", path=str(tree))
    assert locate(data).train is None
    counted = count(data)
    assert (counted.train, counted.test, counted.path) == (4, 2, str(tree))
    for directory, _, _ in os.walk(tree):
        os.utime(directory, (1e9, 1e9))  # settled: the listing is kept from now on
    assert count(data) == counted
    assert locate(data) == counted


def test_check_and_dry_run_do_not_count(tree):
    assert hpctrain("check", "config.yaml", "--scheduler", "local").count("unknown until counted") == 2
    assert hpctrain("submit", "config.yaml", "--dry-run").startswith("#!")


def test_eject_counts(tree):
    script = hpctrain("eject", "config.yaml")
    assert '"train_samples": 4' in script
    assert f'"data_digest": "{count(Data(dataset="folder", path=str(tree))).digest}"' in script


def test_what_cannot_be_counted_is_an_error_before_the_queue(tree):
    (tree / "train/dog/x.webp").touch()
    with pytest.raises(UsageError) as caught:
        count(Data(dataset="folder", path=str(tree)))
    assert caught.value.message == f"{tree}/train/dog/x.webp is no .jpg, .jpeg or .png"
    assert "convert it" in caught.value.hint


def test_foreign_shards_that_are_damaged_are_an_error_before_the_queue(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "train-0.tar").write_bytes(b"x" * 1024)
    data = Data(dataset="shards", path=str(tmp_path), args={"test": None})
    with pytest.raises(UsageError, match=r"train-0\.tar: byte 0: there is no tar header"):
        count(data)
