"""A dataset of the user's own, from the config to a trained model."""

import json

import pytest

pytestmark = pytest.mark.torch

MINE = """
import torch

class Points:
    classes = ["left", "right"]

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        label = index % 2
        return torch.tensor([2.0 * label - 1, 0.01 * index]), label

def build(split, size):
    return Points(size if split == "train" else 10)
"""
CONFIG = """
name: own
data: {dataset: "mine:build", args: {size: 60}}
model: {name: mlp}
batch: {global: 12}
optim: {lr: 0.5}
train: {epochs: 4, eval_every: 4 epochs}
"""


@pytest.fixture
def own(project):
    (project / "mine.py").write_text(MINE)
    (project / "c.yaml").write_text(CONFIG)
    return project


@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_it_is_counted_planned_and_trained_on(own, hpctrain, loader):
    done = hpctrain("run", "c.yaml", "--ranks", 2, f"data.loader={loader}", "data.workers=2")
    assert done.returncode == 0, done.stderr
    assert "60 train, 10 test; 30 per rank and epoch" in done.stderr
    [outcome] = own.glob("runs/*/attempts/1/outcome.json")
    assert json.loads(outcome.read_text())["accuracy"] == 1


def test_a_debugged_run_reads_without_threads(own, hpctrain):
    (own / "mine.py").write_text(
        MINE.replace("import torch", "import threading, torch").replace(
            "label = index % 2", "label = index % 2; assert threading.current_thread() is threading.main_thread()"
        )
    )
    assert hpctrain("run", "c.yaml", "--debug", "train.epochs=1").returncode == 0
    assert hpctrain("run", "c.yaml", "train.epochs=1").returncode == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine:biuld", "mine.py has no function biuld; did you mean build?"),
        ("yours:build", "there is no module yours in"),
    ],
)
def test_one_that_is_not_there_is_named_with_its_line(own, hpctrain, name, said):
    done = hpctrain("check", "c.yaml", "--scheduler", "local", f"data.dataset={name}")
    assert done.returncode == 2
    assert f"data.dataset={name}: " in done.stderr
    assert said in done.stderr
    assert hpctrain("run", "c.yaml", f"data.dataset={name}").returncode == 2
    assert not (own / "runs").exists()


def test_one_that_fails_when_it_is_counted_says_so_before_the_run(own, hpctrain):
    done = hpctrain("run", "c.yaml", "data.args={}")
    assert done.returncode != 0
    assert "build() missing 1 required positional argument: 'size'" in done.stderr
    assert not (own / "runs").exists()
