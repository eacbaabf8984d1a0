"""k-fold cross-validation: real runs, each of which leaves out another part of the training samples."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from hpctrain.config.load import load
from hpctrain.launch.folds import scores
from hpctrain.rundir import RunDir

CONFIG = """
name: small
data: {dataset: digits}
model: {name: mlp, args: {hidden: [8]}}
batch: {global: 100}
optim: {lr: 0.1}
train: {epochs: 1}
"""


@pytest.fixture
def hpctrain(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "c.yaml").write_text(CONFIG)

    def call(*words):
        argv = [sys.executable, "-m", "hpctrain", *words]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)

    return call


@pytest.mark.torch
def test_each_fold_is_a_run_of_its_own_and_the_scores_are_summarised(hpctrain):
    """That the folds set each sample apart once is shown in tests/data/test_split.py."""
    done = hpctrain("run", "c.yaml", "folds=3", "--ranks", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    runs = [RunDir.open(Path(path)) for path in found["runs"]]
    assert [load(run.config).config.data.split.fold for run in runs] == ["1/3", "2/3", "3/3"]
    assert [load(run.config).config.name for run in runs] == ["small-fold1", "small-fold2", "small-fold3"]
    plans = [json.loads(run.plan.read_text()) for run in runs]
    assert [(plan["train_samples"], plan["validation_samples"]) for plan in plans] == [(1000, 500)] * 3

    rows = [[json.loads(line) for line in run.metrics(1).read_text().splitlines()] for run in runs]
    for split in ("validation", "test"):
        values = [next(row["accuracy"] for row in reversed(one) if row["split"] == split) for one in rows]
        told = found[split]["accuracy"]
        assert told == {"mean": statistics.mean(values), "std": statistics.stdev(values), "values": values}
        assert f"{split:10} of 3 folds  accuracy {told['mean']:.4f} +- {told['std']:.4f}" in done.stderr
    assert done.stderr.count("(last evaluations)") == 2


@pytest.mark.torch
def test_a_fold_that_fails_ends_them_all_with_its_exit_code(hpctrain):
    done = hpctrain("run", "c.yaml", "folds=3", "optim.lr=1e30")
    assert done.returncode == 4
    assert "fold 1 of 3" in done.stderr
    assert "fold 2 of 3" not in done.stderr


@pytest.mark.torch
def test_after_a_fold_that_fails_those_before_are_told_and_how_to_go_on(hpctrain, tmp_path):
    (tmp_path / "model.py").write_text(
        "import torch\nfrom pathlib import Path\n"
        "def build():\n"
        "    if 'fold2' in Path.cwd().parent.name: raise ValueError('not this one')\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    done = hpctrain("run", "c.yaml", "folds=3", "model={name: 'model:build'}")
    assert done.returncode == 4
    first, second, third = done.stderr.splitlines()[-3:]
    assert first.startswith("hpctrain: fold 2 of 3 did not complete: hpctrain resume /")
    assert "folds=null data.split.fold=3/3 name=small-fold3" in second
    (run,) = (tmp_path / "runs").glob("small-fold1-*")
    found = {split: scores(RunDir(run), split)["accuracy"] for split in ("validation", "test")}
    assert third.startswith(f"hpctrain: fold 1 is done: validation accuracy {found['validation']:.4f}, ")
    assert f"test accuracy {found['test']:.4f}" in third
    assert third.endswith(str(run))


def test_what_a_restarted_fold_found_is_what_its_last_attempt_did(tmp_path):
    run = RunDir(tmp_path)
    for number, text in (
        (2, b'{"split":"test","step":4,"loss":2.0}\n{"split":"test","step":8,"loss":1.0}\n'),
        (3, b'{"split":"test","step":8,"loss":0.5,"accuracy":0.9}\n{"split":"test","st'),
    ):
        run.metrics(number).parent.mkdir(parents=True)
        run.metrics(number).write_bytes(text)
    (tmp_path / "attempts/1").mkdir()  # a rank was killed before the first line
    assert scores(run, "test") == {"accuracy": 0.9, "loss": 0.5}
    assert scores(run, "validation") == {}


def test_folds_are_not_queued_as_one_job(hpctrain):
    done = hpctrain("submit", "c.yaml", "folds=3", "--scheduler", "local")
    assert done.returncode == 2
    assert "hpctrain run does them; or submit each: folds=null data.split.fold=1/3 name=small-fold1" in done.stderr


def test_the_plan_of_folds_is_that_of_the_first(hpctrain):
    done = hpctrain("check", "c.yaml", "folds=3")
    assert done.returncode == 0, done.stderr
    assert "1000" in done.stdout


def test_the_best_by_the_test_set_is_told_as_that(hpctrain):
    told = "checkpoint.keep_best chooses by the test set"
    assert told in hpctrain("check", "c.yaml", "checkpoint.keep_best=true").stdout
    for plain in (("checkpoint.keep_best=false",), ("checkpoint.keep_best=true", "data.split.validation=0.1")):
        done = hpctrain("check", "c.yaml", *plain)
        assert (done.returncode, told in done.stdout) == (0, False)


@pytest.mark.torch
def test_debug_says_that_it_runs_one_fold_alone(hpctrain):
    done = hpctrain("run", "c.yaml", "folds=3", "--debug")
    assert done.returncode == 0, done.stderr
    assert "hpctrain: --debug runs fold 1 of 3 alone" in done.stderr
