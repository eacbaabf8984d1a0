"""`hpctrain eval`, with real ranks."""

import json
import shutil
from pathlib import Path

import pytest

from hpctrain import manifest as manifests
from hpctrain.launch import evaluation
from hpctrain.rundir import RunDir
from tests.launch.small import ABALONE, hpctrain

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def trained(config):
    hpctrain("run", config, "--ranks", "2")
    (run,) = (config.parent / "runs").iterdir()
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def written(run, split):
    lines = map(json.loads, (run / "attempts/1/metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)}


@pytest.mark.parametrize("ranks", [1, 3])
def test_eval_finds_what_the_run_found_on_any_number_of_ranks(run, ranks):
    before = contents(run)
    for split in ("validation", "test"):
        done = hpctrain("eval", run, "--split", split, "--ranks", ranks)
        found = json.loads(done.stdout)
        assert (found["step"], found["split"], found["weights"], found["run"]) == (60, split, "averaged", "run")
        assert found["accuracy"] == written(run, split)[60]["accuracy"]
        assert found["loss"] == pytest.approx(written(run, split)[60]["loss"], rel=1e-6)
        assert f"accuracy {found['accuracy']:.4f}" in done.stderr
    assert contents(run) == before


def test_eval_takes_the_best_checkpoint_or_that_of_a_step_and_any_split(run):
    scores = {step: line["accuracy"] for step, line in written(run, "validation").items()}
    best = json.loads(hpctrain("eval", run, "--split", "validation", "--ckpt", "best").stdout)
    assert best["step"] == max(scores, key=lambda step: (scores[step], step))
    second = json.loads(hpctrain("eval", run, "--split", "validation", "--ckpt", "40").stdout)
    assert (second["step"], second["accuracy"]) == (40, scores[40])
    train = json.loads(hpctrain("eval", run, "--split", "train").stdout)
    assert train["samples"] == 1200
    assert train["loss"] < second["loss"]


def test_eval_refuses_what_does_not_verify_and_what_would_be_another_run(run):
    file = run / "ckpt/step_00000060/ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert "damaged" in hpctrain("eval", run, "--ckpt", "60", code=4).stderr
    older = hpctrain("eval", run)
    assert "skipped a checkpoint" in older.stderr
    assert json.loads(older.stdout)["step"] == 40
    said = hpctrain("eval", run, "data.split.validation=0.5", code=2).stderr
    assert "data.split.validation=0.5: an evaluation is of the run as it was trained" in said
    assert "has no checkpoint of step 7" in hpctrain("eval", run, "--ckpt", "7", code=2).stderr


NORMS = """
name: small
runs: runs
data: {{dataset: digits}}
model: {{name: mlp, args: {{hidden: [16], batch_norm: true}}, batch_norm: {kind}}}
batch: {{global: 60}}
optim: {{lr: 0.1}}
train: {{epochs: 1}}
"""


@pytest.mark.parametrize("kind", ["local", "ghost, ghost_batch: 30"])
def test_eval_does_not_ask_how_many_samples_a_batch_norm_would_see(tmp_path, kind):
    (tmp_path / "c.yaml").write_text(NORMS.format(kind=kind))
    hpctrain("run", "c.yaml", cwd=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    for ranks in (1, 2):
        found = json.loads(hpctrain("eval", run, "--ranks", ranks).stdout)
        assert found["accuracy"] == max(written(run, "test").items())[1]["accuracy"]


def test_eval_takes_the_data_of_the_run_from_wherever_it_is_called(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, factor in ((here, 1), (there, -3)):
        folder.mkdir()
        rows = [f"{i % 7},{i % 5},{factor * (i % 7) - i % 5}" for i in range(100)]
        (folder / "t.csv").write_text("\n".join(rows) + "\n")
    (here / "c.yaml").write_text(ABALONE.format(runs="runs", path="t.csv"))
    hpctrain("run", "c.yaml", cwd=here)
    (run,) = (here / "runs").iterdir()
    found = [json.loads(hpctrain("eval", run, cwd=folder).stdout)["loss"] for folder in (here, there)]
    assert found[0] == found[1] == pytest.approx(max(written(run, "test").items())[1]["loss"])
    assert json.loads(hpctrain("eval", run, "data.path=t.csv", cwd=there).stdout)["loss"] > 2 * found[0]
    (there / "t.csv").write_bytes((here / "t.csv").read_bytes())
    same = json.loads(hpctrain("eval", "../here/runs/" + run.name, "data.path=t.csv", cwd=there).stdout)
    assert same["loss"] == found[0]


def test_eval_starts_as_many_ranks_as_dist_ranks_says(run):
    done = hpctrain("eval", run, "dist.ranks=3")
    assert "ranks          3 = " in done.stderr
    assert "ranks          1 = " in hpctrain("eval", run).stderr


def test_a_checkpoint_that_is_evaluated_may_be_dropped_meanwhile(run, tmp_path, monkeypatch):
    """What a run with `keep: 1` does at each save: the chosen one goes, and another is there."""
    taken, folder = [], tmp_path / "held"
    folder.mkdir()
    choose = evaluation.checkpoints.choose

    def chosen_too_late(*arguments, **options):
        found = choose(*arguments, **options)
        if not taken:
            shutil.rmtree(run / f"ckpt/step_{found.step:08d}")
        taken.append(found.step)
        return found

    monkeypatch.setattr(evaluation.checkpoints, "choose", chosen_too_late)
    held = evaluation._hold(RunDir(run), None, folder)
    assert (held.step, taken) == (40, [60, 40])
    shutil.rmtree(run / "ckpt")
    assert manifests.read(folder, 40) == held
    assert manifests.content(folder / held.weights, held.files[held.weights])


def test_eval_says_what_it_can_be_given(run, tmp_path):
    said = hpctrain("eval", run, "--ckpt", "foo", code=2).stderr
    assert "--ckpt foo: neither newest, best nor a number" in said
    (tmp_path / "c.yaml").write_text("name: mine\nruns: runs\ncommand: ['true']\n")
    hpctrain("run", "c.yaml", cwd=tmp_path)
    (mine,) = (tmp_path / "runs").iterdir()
    assert "this run is of a command" in hpctrain("eval", mine, code=2).stderr
