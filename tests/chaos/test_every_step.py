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


RECIPES = {
    "plateau": {"name": "adam", "lr": 0.02, "schedule": "plateau", "patience": 0, "decay": 0.5, "threshold": 0.05},
    "onecycle": {"name": "lars", "lr": 2.0, "weight_decay": 1e-3, "schedule": "onecycle", "cycle_momentum": (0.8, 0.95),
                 "warmup": Duration(0, "steps")},
    "restarts": {"name": "nadam", "lr": 0.01, "schedule": "restarts", "period": Duration(6, "steps")},
    "multistep": {"name": "lamb", "lr": 0.02, "schedule": "multistep", "milestones": (Duration(40, "%"),)},
    "polynomial": {"name": "rmsprop", "lr": 0.005, "momentum": 0.5, "centered": True, "schedule": "polynomial"},
}  # fmt: skip
LIMITS = {"l1": 1e-5, "l2": 1e-4, "clip_norm": 1.0, "clip_value": 0.5, "max_norm": 2.0}


def config(precision, recipe=None, **more):
    from hpctrain.config.datasets import Augment, Split

    data = {**CONFIG["data"], "augment": Augment(**AUGMENT)}
    changes = {**CONFIG, "data": data, **more}
    if recipe is not None:
        changes["data"] = data | {"split": Split(validation=0.2)}
        changes["optim"] = {"warmup": Duration(7, "steps"), "momentum": 0.0, **RECIPES[recipe]}
        train = {**CONFIG["train"], **LIMITS, "eval_every": Duration(3, "steps")}
        changes["train"] = {key: value for key, value in train.items() if key != "epochs"} | {"steps": STEPS}
    return make_config(**changes, precision=precision)


def check_every_step(ranks: Ranks, size, made):
    options = {"from": list(range(1, STEPS))}
    job = ranks.start(made, size, run=ranks.run_dir(), body="tests.chaos.every_step:body", options=options)
    reports = job.wait(timeout_s=540)
    assert all("value" in report for report in reports), reports
    found = reports[0]["value"]
    assert sorted(map(int, found["whole"])) == list(range(1, STEPS + 1))
    sums = [tuple(state["files"].values()) for state in found["whole"].values()]
    assert len(set(sums)) == STEPS, "every step changes the state, or the comparison shows nothing"
    assert found["different"] == {str(step): [] for step in range(1, STEPS)}
    return job


@pytest.mark.parametrize(("recipe", "size", "precision"), [
    ("plateau", 2, "fp32"), ("plateau", 1, "fp64"), ("onecycle", 2, "fp32"), ("onecycle", 3, "bf16"),
    ("restarts", 1, "fp64"), ("restarts", 2, "fp16"), ("multistep", 2, "fp16"), ("polynomial", 2, "fp32"),
])  # fmt: skip
def test_every_part_of_a_recipe_goes_on_to_the_same_bytes(ranks: Ranks, recipe, size, precision):
    check_every_step(ranks, size, config(precision, recipe))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_run_goes_on_from_every_step_to_the_same_bytes(ranks: Ranks, size, precision):
    check_every_step(ranks, size, config(precision))


@pytest.mark.parametrize("size", [1, 3])
def test_so_does_a_model_of_ours_with_dropout_and_a_frozen_layer(ranks: Ranks, size):
    check_every_step(ranks, size, config("fp32", model=OURS))
