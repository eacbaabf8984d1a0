"""A run goes on from each of its steps to the same bytes, as if nothing had happened."""

import pytest

from hpctrain.config.duration import Duration
from tests.train.ranks import Ranks, make_config

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

STEPS, SAMPLES, BATCH = 24, 280, 24  # two epochs, the last step of each with a batch of 16
CONFIG = {
    "data": {"samples": SAMPLES},
    "model": {"name": "tests.chaos.nets:varied", "args": {}},
    "batch": {"global_": BATCH, "accumulate": 2},
    "optim": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "warmup": Duration(7, "steps"), "schedule": "cosine"},
    "train": {"epochs": 2, "ema": 0.9},
    "checkpoint": {"every": Duration(1, "steps"), "keep": STEPS},
    "log": {"every": Duration(5, "steps")},
}
OURS = {
    "name": "cnn",
    "args": {"channels": [4, 8], "hidden": 16, "norm": "after", "dropout": 0.5, "dropout_blocks": 0.1},
    "freeze": ("0.*", "3.*"),
}
AUGMENT = {"crop": "padded", "padding": 1, "flip": True, "cutout": 2, "mixup": 0.4}


def config(precision, **changes):
    from hpctrain.config.datasets import Augment

    data = {**CONFIG["data"], "augment": Augment(**AUGMENT)}
    return make_config(**{**CONFIG, "data": data, **changes}, precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_run_goes_on_from_every_step_to_the_same_bytes(ranks: Ranks, size, precision):
    _compare(ranks, config(precision), size)


@pytest.mark.parametrize("size", [1, 3])
def test_so_does_a_model_of_ours_with_dropout_and_a_frozen_layer(ranks: Ranks, size):
    _compare(ranks, config("fp32", model=OURS), size)


def _compare(ranks, config, size):
    options = {"from": list(range(1, STEPS))}
    job = ranks.start(config, size, run=ranks.run_dir(), body="tests.chaos.every_step:body", options=options)
    reports = job.wait(timeout_s=540)
    assert all("value" in report for report in reports), reports
    found = reports[0]["value"]
    assert sorted(map(int, found["whole"])) == list(range(1, STEPS + 1))
    sums = [tuple(state["files"].values()) for state in found["whole"].values()]
    assert len(set(sums)) == STEPS, "every step changes the state, or the comparison shows nothing"
    assert found["different"] == {str(step): [] for step in range(1, STEPS)}
