"""`hpctrain find-batch`, with real ranks."""

import json
import os
import subprocess
import sys

import pytest

from hpctrain.launch.find_batch import proposal, search
from hpctrain.plan import Plan
from tests.launch.small import hpctrain

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("limit", [1, 2, 5, 37, 64, 1000, 5000])
@pytest.mark.parametrize("first", [1, 16, 3000])
def test_the_search_finds_the_largest_that_fits_to_a_sixteenth(limit, first):
    asked = []

    def fits(count):
        assert count not in asked
        asked.append(count)
        return count <= limit

    found = search(fits, 3000, first=first)
    best = min(limit, 3000)
    assert best - max(best // 16, 1) < found <= best or found == best
    assert len(asked) < 25


def test_nothing_that_fits_is_told_from_one():
    assert search(lambda _: False, 100) == 0
    assert search(lambda count: count <= 1, 100) == 1


@pytest.mark.parametrize(("fits", "passes"), [(64, 1), (63, 2), (24, 4), (20, 4), (9, 8), (1, 64)])
def test_the_global_batch_is_made_in_as_few_passes_as_fit(fits, passes):
    plan = Plan(
        name="p", seed=0, nodes=1, ranks_per_node=2, ranks=2, device="cpu", strategy="ddp", backend="gloo",
        launcher="local", precision="fp32", global_batch=128,
    )  # fmt: skip
    found = proposal(plan, fits, whole=False)
    assert (found["accumulate"], found["type"]) == (passes, f"batch.global=128 batch.accumulate={passes}")
    assert 128 // 2 // passes <= fits


def test_passes_are_whole_groups_of_a_ghost_batch_norm_and_per_rank_stays_per_rank():
    plan = Plan(
        name="p", seed=0, nodes=1, ranks_per_node=2, ranks=2, device="cpu", strategy="ddp", backend="gloo",
        launcher="local", precision="fp32", global_batch=192,
    )  # fmt: skip
    found = proposal(plan, 90, whole=False, given="per_rank", unit=32)
    assert found["type"] == "batch.per_rank=32 batch.accumulate=3"


RULES = """
name: small
runs: runs
data: {dataset: digits}
model: {name: mlp, args: {hidden: [16], batch_norm: true}, batch_norm: ghost, ghost_batch: 20}
batch: {per_rank: 40}
optim:
  {name: adam, lr: 0.01, base_batch: 20, scale: sqrt, schedule: onecycle, rise: 30 steps}
train: {epochs: 2}
"""


TRY = """
import sys
from pathlib import Path
from hpctrain import task
from hpctrain.config.load import load
from hpctrain.launch import ready, trial
loaded = load(Path(sys.argv[1]), sys.argv[2:])
print(trial.perform(loaded, ready.make_plan(loaded, "local"), task.TryBatch(), quiet=True).result)
"""


def test_a_batch_of_more_than_half_of_the_samples_is_tried_in_two_whole_steps(config):
    argv = [sys.executable, "-c", TRY, str(config), "batch.global=1000"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "'steps': 2, 'samples': [1000, 1000]" in done.stdout, done.stderr


def test_rules_of_the_plan_do_not_end_the_search_but_are_told(tmp_path):
    (tmp_path / "c.yaml").write_text(RULES)
    done = hpctrain("find-batch", tmp_path / "c.yaml", "batch.tail=drop")
    found = json.loads(done.stdout)
    assert (found["per_rank"], found["all_samples"]) == (1500, True)
    assert found["type"] == "batch.per_rank=40 batch.accumulate=1"
    assert list(found["unfit"]) == ["batch.per_rank=1500"]
    assert "hpctrain: but batch.per_rank=1500 is refused by the rest of" in done.stderr
    assert "sqrt makes 1 - beta larger than 1 for a global batch of 1500" in done.stderr
    assert "30 of 2 steps leave none for the way down" in done.stderr


def test_a_fold_has_fewer_samples_and_all_of_them_are_tried_in_whole_steps(tmp_path):
    (tmp_path / "c.yaml").write_text(RULES.replace("batch_norm: ghost, ghost_batch: 20", "batch_norm: local"))
    plain = "optim={lr: 0.01}"
    found = json.loads(hpctrain("find-batch", tmp_path / "c.yaml", "folds=3", "--ranks", 2, plain).stdout)
    assert (found["per_rank"], found["all_samples"], found["unfit"]) == (500, True, {})


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a rank's own memory is measured there")
def test_the_batch_that_fits_runs_and_a_larger_one_does_not(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "name: big\nruns: runs\ndata: {dataset: synthetic, samples: 4000, args: {shape: [3, 64, 64]}}\n"
        "model: {name: cnn, args: {channels: [16]}}\nbatch: {global: 128}\noptim: {lr: 0.1}\ntrain: {epochs: 1}\n"
    )
    done = hpctrain("find-batch", tmp_path / "c.yaml", "--ranks", "2", "slurm.mem=1200M")
    found = json.loads(done.stdout)
    assert 16 <= found["per_rank"] < 2000
    assert not found["all_samples"]
    assert found["taken"] <= found["memory"] == 600 << 20
    assert "does not fit" in done.stderr
    assert f"fits, takes {found['taken'] / 2**20:,.0f} MiB" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
