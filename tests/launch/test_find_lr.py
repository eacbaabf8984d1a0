"""`hpctrain find-lr`, with real ranks."""

import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hpctrain.config.load import load
from hpctrain.errors import JobError
from hpctrain.launch import ready
from hpctrain.launch.practice import typed
from hpctrain.train.find_lr import started, suggestion
from tests.launch.small import hpctrain

pytestmark = pytest.mark.torch

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_rate_is_found_which_learns_and_the_ranks_do_not_matter(config, tmp_path):
    found = [
        json.loads(hpctrain("find-lr", config, "--ranks", ranks, "--from", "1e-5", "--to", "100").stdout)
        for ranks in (1, 2)
    ]
    for one in found:
        assert one["base_batch"] == 60
        assert one["type"] == f"optim.lr={one['lr']:g} optim.base_batch=60"
        assert 0.003 < one["lr"] < 1
        assert one["lr"] < one["diverged_at"]
    assert found[0]["losses"][:60] == pytest.approx(found[1]["losses"][:60], rel=1e-3)


def test_a_terminal_is_not_flooded_with_curves(config, tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hpctrain", "find-lr", str(config), "--ranks", "1", "--from", "1e-3"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    with os.fdopen(ours, "rb", buffering=0) as reader:
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=theirs, stderr=subprocess.PIPE, check=False)
        os.close(theirs)
        assert done.returncode == 0, done.stderr
        assert json.loads(reader.read(65536)).keys() == {"lr", "base_batch", "type", "diverged_at"}


def test_a_range_without_any_good_rate_gives_no_suggestion(config):
    said = hpctrain("find-lr", config, "--from", "1e-9", "--to", "1e-8", "--steps", "30", code=4).stderr
    assert "the loss did not fall" in said
    hpctrain("find-lr", config, "--picture", "/nowhere/a.svg", code=2)  # no such directory, or no matplotlib
    assert "--from 1 --to 0.1" in hpctrain("find-lr", config, "--from", "1", "--to", "0.1", code=2).stderr
    endless = hpctrain("find-lr", config, "--to", "inf", code=2).stderr
    assert "--from 1e-06 --to inf: both must be finite" in endless


def test_the_suggestion_lies_where_the_loss_falls_fastest():
    rates = [10 ** (place / 20 - 5) for place in range(100)]  # 1e-5 to 1
    smoothed = [2.3 - 2 / (1 + 10 ** (-4 * (place / 20 - 3))) for place in range(80)]  # steepest at 1e-2
    smoothed += [smoothed[-1] + 0.5 * n for n in range(20)]
    assert suggestion(rates, smoothed, started(smoothed[:12]), diverged=True) == pytest.approx(1e-2, rel=0.2)


def averaged(losses):
    """Smooth as the test does."""
    mean, found = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = 0.9 * mean + 0.1 * loss
        found.append(mean / (1 - 0.9**step))
    return found


def test_noise_alone_suggests_nothing():
    rates = [10 ** (place / 28 - 6) for place in range(200)]
    draws, suggested = random.Random(0), 0  # noqa: S311 - noise
    for _ in range(200):
        losses = [(draws.random() < 0.5) * draws.expovariate(1) for _ in rates]
        try:
            suggestion(rates, averaged(losses), started(losses[:25]), diverged=False)
        except JobError:
            continue
        suggested += 1
    assert suggested <= 4


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "low", "high"), [("linear_regression", 0.02, 0.3), ("perceptron", 0.005, 10)])
def test_a_rate_is_found_that_trains_although_the_loss_is_noisy(name, low, high, seed):
    """linear_regression falls from 0.02 to 1.5; a perceptron that begins at 0 learns at any rate that outweighs it."""
    done = hpctrain("find-lr", CONFIGS / f"{name}.yaml", f"seed={seed}")
    assert low < json.loads(done.stdout)["lr"] < high
    assert "<- suggested" in done.stderr


SCALED = """
name: small
runs: runs
data: {dataset: digits}
model: {name: mlp, args: {hidden: [16]}}
batch: {global: 60}
optim: {optim}
train: {epochs: 3}
"""


@pytest.mark.parametrize(
    "optim",
    [
        "{name: adam, lr: 0.1, base_batch: 15, scale: sqrt, betas: [0.8, 0.99], eps: 1e-7}",
        "{name: adam, lr: 0.1, base_batch: 15}",
        "{name: rmsprop, lr: 0.1, base_batch: 15, scale: none}",
        "{lr: 0.1}",
        "{lr: 0.1, scale: none}",
    ],
)
def test_what_is_to_be_typed_gives_the_settings_that_were_tried(tmp_path, optim):
    (tmp_path / "c.yaml").write_text(SCALED.replace("{optim}", optim))
    tried = load(tmp_path / "c.yaml")
    plan = ready.make_plan(tried, "local", 2)
    told = typed(tried.config, plan, 0.0123)
    again = ready.make_plan(load(tmp_path / "c.yaml", told["type"].split()), "local", 2)
    assert again.lr_used == told["lr"] == pytest.approx(0.0123, rel=0.05)
    assert (again.betas_used, again.alpha_used, again.eps_used) == (plan.betas_used, plan.alpha_used, plan.eps_used)


def test_a_rate_is_tried_with_the_momentum_that_a_cycle_has_at_its_full_rate(config):
    found = [
        json.loads(hpctrain("find-lr", config, f"optim={{lr: 0.1, {rest}}}", "--from", "1e-3", "--steps", "20").stdout)
        for rest in ("momentum: 0.8", "schedule: onecycle, cycle_momentum: [0.8, 0.95]")
    ]
    assert found[0]["losses"] == found[1]["losses"]


def test_trials_clip_as_a_run_does(config):
    clipped = "train.clip_norm=1e-9"
    assert "does not fall" in hpctrain("run", config, "--overfit", "2", "--overfit-steps", 60, clipped, code=4).stderr
    assert "the loss did not fall" in hpctrain("find-lr", config, clipped, code=4).stderr
