"""The lectures' exercises: each config reaches what its header says, those of MNIST in a short form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[1]
needs_mnist = pytest.mark.usefixtures("real_mnist")


class Done:
    """A run that has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcome = json.loads((path / "attempts/1/outcome.json").read_text())
        assert self.outcome["verdict"] == "completed"

    def lines(self, split: str):
        found = map(json.loads, (self.path / "attempts/1/metrics.jsonl").read_text().splitlines())
        return [line for line in found if line["split"] == split]

    def weights(self):
        from safetensors.torch import load_file

        newest = max((self.path / "ckpt").iterdir())
        return load_file(newest / "model.safetensors")


@pytest.fixture
def run(tmp_path):
    def start(name, *overrides) -> Done:
        runs = tmp_path / "runs"
        before = set(runs.iterdir()) if runs.exists() else set()
        command = [sys.executable, "-m", "hpctrain", "run", str(ROOT / f"configs/{name}.yaml"), f"runs={runs}"]
        env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
        done = subprocess.run(
            [*command, *overrides], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (made,) = set(runs.iterdir()) - before
        return Done(made)

    return start


def points(kind, count, noise=0.0):
    from hpctrain.config.datasets import PointsArgs
    from hpctrain.data.points import make

    return make(PointsArgs(kind=kind, count=count, noise=noise), count, "train")


def test_linear_regression_finds_the_closed_form(run):
    import numpy as np

    done = run("linear_regression")
    inputs, targets = points("line", 200, 0.1)
    centred = inputs - inputs.mean(0)
    slope = np.linalg.solve(centred.T @ centred, centred.T @ (targets - targets.mean()))
    offset = targets.mean() - inputs.mean(0) @ slope
    weights = {name.rpartition(".")[2]: part.flatten().tolist() for name, part in done.weights().items()}
    assert weights["weight"] == pytest.approx(slope.tolist(), abs=1e-4)
    assert weights["bias"] == pytest.approx([offset], abs=1e-4)
    assert done.outcome["error"] == pytest.approx(0.08, abs=0.02)


def test_the_perceptron_learns_what_a_line_separates_and_never_xor(run):
    done = run("perceptron")
    last = done.lines("train")[-1]
    assert (last["accuracy"], last["loss"]) == (1.0, 0.0)
    assert done.outcome["accuracy"] == 1.0
    never = run("perceptron", "data.args.kind=xor")
    assert all(line["accuracy"] < 1 for line in never.lines("train"))


@pytest.mark.parametrize("overrides", [[], ["loss=mse", "optim.lr=2"]], ids=["cross_entropy", "mse"])
def test_logistic_regression_tells_two_clusters_apart(run, overrides):
    assert run("logistic_regression", *overrides).outcome["accuracy"] == pytest.approx(0.98, abs=0.015)


def test_xor_needs_a_hidden_layer(run):
    done = run("xor")
    assert done.outcome["accuracy"] == 1.0
    assert done.outcome["loss"] < 0.01
    affine = run("xor", "model={name: linear}", "loss=mse")
    assert affine.outcome["loss"] == pytest.approx(0.25, abs=0.01)  # 1/2 everywhere


def test_the_lectures_own_weights_of_xor_have_no_loss(run, tmp_path):
    import torch
    from safetensors.torch import save_file

    from hpctrain.config.models import Model
    from hpctrain.models.build import build

    names = list(build(Model(name="mlp", args={"hidden": [2]}), shape=(2,), outputs=1, seed=0).state_dict())
    given = [[[1.0, 1.0], [1.0, 1.0]], [0.0, -1.0], [[1.0, -2.0]], [0.0]]  # W, b, v, c
    save_file(dict(zip(names, map(torch.tensor, given), strict=True)), tmp_path / "lecture.safetensors")
    done = run("xor", "model.args={hidden: [2]}", "loss=mse", f"model.weights={tmp_path}/lecture.safetensors",
               "train.epochs=1", "train.eval_every=1 epochs")  # fmt: skip
    assert done.outcome["loss"] == 0.0
    assert done.outcome["accuracy"] == 1.0


def test_too_large_a_net_is_stopped_where_the_validation_loss_turns(run):
    done = run("digits_overfit")
    assert done.outcome["step"] < done.outcome["total_steps"] / 2
    train, validation = done.lines("train")[-1], done.lines("validation")
    assert train["loss"] < 0.05
    assert validation[-1]["loss"] > 4 * train["loss"]
    best = min(validation, key=lambda line: line["loss"])
    assert best["step"] < validation[-1]["step"]


def test_too_small_a_net_is_bad_on_both_sets(run):
    done = run("digits_underfit")
    train, validation = done.lines("train")[-1], done.lines("validation")[-1]
    assert min(train["loss"], validation["loss"]) > 0.4
    assert abs(train["loss"] - validation["loss"]) < 0.5 * train["loss"]


@needs_mnist
@pytest.mark.parametrize(
    ("name", "least"),
    [("mnist_mlp", 0.94), ("mnist_cnn", 0.96), ("mnist_dense", 0.85), ("mnist_cnn_regularised", 0.96)],
)
def test_the_nets_of_mnist_learn_from_a_sixth_of_it(run, name, least):
    assert run(name, "data.samples=10000", "train.epochs=2").outcome["accuracy"] > least


OPTIMIZERS = {
    "sgd": 0.2, "adagrad": 0.02, "adadelta": 1.0, "rmsprop": 0.001, "adam": 0.002, "amsgrad": 0.002,
    "nadam": 0.002, "radam": 0.002, "adamax": 0.004, "adamw": 0.002, "lars": 0.3, "lamb": 0.01,
}  # fmt: skip
MORE = {"lars": ", momentum: 0.9, trust: 0.1"}


def test_the_optimizers_are_those_of_the_config():
    from hpctrain.train.optim import BUILDERS

    assert OPTIMIZERS.keys() == BUILDERS.keys()


@needs_mnist
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_of_the_table_learn(run, name):
    optim = f"optim={{name: {name}, lr: {OPTIMIZERS[name]}{MORE.get(name, '')}}}"
    done = run("mnist_optimizers", optim, "data.samples=10000")
    assert done.lines("validation")[-1]["accuracy"] > 0.8  # after 79 steps; of slow starters more is not to be had


@needs_mnist
def test_the_quick_recipe_learns_within_fifty_steps(run):
    done = run("mnist_fast", "data.samples=6400")
    assert done.outcome["step"] == 50
    assert done.outcome["accuracy"] > 0.9


def test_the_points_are_the_same_whatever_their_number():
    import numpy as np

    for kind in ("line", "separable", "clusters", "xor"):
        few, many = points(kind, 10, 0.1), points(kind, 1000, 0.1)
        np.testing.assert_array_equal(few[0], many[0][:10])
        np.testing.assert_array_equal(few[1], many[1][:10])


def test_separable_points_have_a_margin_and_xor_has_four_corners():
    import numpy as np

    inputs, labels = points("separable", 1000)
    distance = inputs @ np.array([0.6, 0.8])
    assert np.abs(distance).min() > 0.2
    np.testing.assert_array_equal(distance > 0, labels == 1)
    corners, labels = points("xor", 8)
    assert corners[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert labels.tolist() == [0, 1, 1, 0] * 2
