"""Number formats: what the arithmetic rounds to, and what is done where float16 is too small."""

import json
from typing import Literal

import pytest

from hpctrain.config.duration import Duration
from hpctrain.config.schema import Dist
from hpctrain.plan import Samples
from tests.train.ranks import Job, Ranks, make_config, make_plan

pytestmark = pytest.mark.torch

SAMPLES = Samples(train=600, test=40)
STEPS = 30  # one epoch and a half
STEEP = (137, 311)


def steep(strategy: Literal["ddp", "horovod"], rows: tuple[int, ...] = STEEP, factor: float = 1e7, **train):
    return make_config(
        data={"dataset": "tests.train.faulty:rows", "args": {}},
        model={"name": "tests.train.nets:steep_at", "args": {"rows": list(rows), "factor": factor}},
        batch={"global_": 30},
        precision="fp16",
        train={"steps": STEPS} | train,
        checkpoint={"every": Duration(1, "steps"), "keep": 100},
        log={"every": Duration(1, "steps"), "samples": True},
        dist=Dist(strategy=strategy),
    )  # fmt: skip


def audit(job: Job, rank: int):
    return [json.loads(line) for line in job.run.samples(job.attempt, rank).read_text().splitlines()]


@pytest.fixture
def strategy(request):
    if request.param == "horovod":
        request.getfixturevalue("horovod")
    return request.param


@pytest.mark.parametrize("strategy", ["ddp", "horovod"], indirect=True)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_where_one_rank_overflows_all_skip_the_step_which_is_counted(ranks: Ranks, size, strategy):
    config = steep(strategy)
    job = ranks.start(config, size, run=ranks.run_dir(), plan=make_plan(config, size, SAMPLES), body="equal")
    assert job.wait() == [{"value": {"step": STEPS, "equal": True}}] * size
    lines = [[line for line in audit(job, rank) if set(line["ids"]) & set(STEEP)] for rank in range(size)]
    steps = sorted(line["step"] for found in lines for line in found)
    assert len(steps) >= 2
    files = [(job.run.checkpoint(step) / "model.safetensors").read_bytes() for step in range(1, STEPS + 1)]
    skipped = [step for step in range(2, STEPS + 1) if files[step - 1] == files[step - 2]]
    assert skipped == steps, "no more and no fewer than overflow"
    counts = [line.get("skipped", 0) for line in job.metrics()]
    assert counts == [sum(step <= done for step in steps) for done in range(1, STEPS + 1)]


def test_a_run_in_which_every_step_overflows_ends(ranks: Ranks):
    config = steep("ddp", tuple(range(600)), 1e38, steps=50)
    job = ranks.start(config, 2, run=ranks.run_dir(), plan=make_plan(config, 2, SAMPLES))
    for report in job.wait():
        assert report["error"] == "JobError"
        assert report["message"].startswith("the gradient of 31 steps in a row is infinite or no number")


def test_bf16_learns_digits_as_well_as_fp32(ranks: Ranks):
    """In short; docs/log.md has MNIST, where the mean of several seeds differs by less than 0.1 point."""
    model = {"name": "cnn", "args": {"channels": [8, 16], "hidden": 32}}
    found = {}
    for precision in ("fp32", "bf16"):
        accuracies = []
        for seed in range(3):
            config = make_config(precision=precision, model=model, train={"epochs": 6}, seed=seed)
            outcome = ranks.start(config, 2, run=ranks.run_dir(f"{precision}-{seed}")).outcome()
            accuracies.append(outcome["accuracy"])
        found[precision] = sum(accuracies) / 3
    assert found["fp32"] > 0.9
    assert abs(found["bf16"] - found["fp32"]) < 0.01, found
