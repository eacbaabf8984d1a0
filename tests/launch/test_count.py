import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpctrain.config.schema import Data
from hpctrain.data import listing
from hpctrain.data.locate import locate
from hpctrain.errors import UsageError
from hpctrain.launch.count import count

CONFIG = """
name: pictures
data: {dataset: folder, path: DATA}
model: {name: mlp}
batch: {global: 16}
optim: {lr: 0.1}
train: {epochs: 2}
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """More pictures than are listed on the login node at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    for split, each in (("train", listing.SMALL // 2 + 1), ("val", 2)):
        for name in ("cat", "dog"):
            directory = tmp_path / "data" / split / name
            directory.mkdir(parents=True)
            for number in range(each):
                (directory / f"{number}.jpg").touch()
    (tmp_path / "config.yaml").write_text(CONFIG.replace("DATA", str(tmp_path / "data")))
    return tmp_path / "data"


def hpctrain(*words):
    return subprocess.run(
        [sys.executable, "-m", "hpctrain", *words], capture_output=True, text=True, check=False, env=os.environ
    )


def test_a_large_folder_is_counted_in_a_child_and_then_known(tree):
    data = Data(dataset="folder", path=str(tree))
    assert locate(data).train is None
    counted = count(data)
    assert (counted.train, counted.test, counted.path) == (listing.SMALL + 2, 4, str(tree))
    for directory, _, _ in os.walk(tree):
        os.utime(directory, (1e9, 1e9))  # settled: the listing is kept from now on
    assert count(data) == counted
    assert locate(data) == counted


def test_check_and_dry_run_do_not_count(tree):
    shown = hpctrain("check", "config.yaml", "--scheduler", "local")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("unknown until counted") == 2
    script = hpctrain("submit", "config.yaml", "--dry-run")
    assert script.returncode == 0, script.stderr
    assert script.stdout.startswith("#!")


def test_eject_counts(tree):
    done = hpctrain("eject", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert '"train_samples": 10002' in done.stdout
    assert '"data_digest": "' in done.stdout


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
