"""Models, losses and dropout: 2 ranks equal 1 rank with accumulation 2, and a resumed run an undisturbed one."""

import pytest

from hpctrain.config.duration import Duration
from tests.train.ranks import make_config

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

PICTURES = {"dataset": "synthetic", "samples": 40, "args": {"shape": (3, 32, 32), "classes": 4}}
TWO = {"dataset": "synthetic", "samples": 400, "args": {"shape": (1, 3, 3), "classes": 2}}
DROPOUT = {"name": "mlp", "args": {"hidden": [32], "dropout": 0.5, "dropout_input": 0.1, "activation": "gelu"}}
OWN = "tests.train.test_models_on_ranks:margin"

CASES = {
    "mlp with dropout": {"model": DROPOUT},
    "cnn": {
        "model": {
            "name": "cnn",
            "args": {"channels": [4, 8], "hidden": 16, "norm": "after", "dropout": 0.3, "dropout_blocks": 0.1},
        }
    },
    "resnet20": {"model": {"name": "resnet20", "args": {}}, "data": PICTURES},
    "inception": {"model": {"name": "inception", "args": {}}, "data": PICTURES},
    "vit-tiny": {"model": {"name": "vit-tiny", "args": {"patch": 16, "dropout": 0.1}}, "data": PICTURES},
    "logistic": {"model": {"name": "logistic", "args": {}}, "data": TWO},
    "logistic, squares": {"model": {"name": "logistic", "args": {}}, "data": TWO, "loss": "mse"},
    "perceptron": {"model": {"name": "perceptron", "args": {}}, "data": TWO},
    "hinge of classes": {"loss": "hinge"},
    "huber": {"loss": "huber"},
    "own loss": {"loss": OWN},
    "own model with an auxiliary output": {"model": {"name": "tests.train.nets:auxiliary", "args": {}}},
    "frozen": {"model": {"freeze": ("1.*",)}},
}


def margin(outputs, targets):
    """Return a user's loss: how far the mean output is above the right one."""
    return (outputs.mean(1) - outputs.gather(1, targets[:, None]).squeeze(1)).exp()


def weights(job, step):
    """Return what is trained; running averages follow the micro-batches of rank 0, which are others."""
    from safetensors.torch import load_file

    found = load_file(job.run.checkpoint(step) / "model.safetensors")
    return {name: value for name, value in found.items() if "running_" not in name and "num_batches" not in name}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_rank_with_accumulation_to_the_byte(ranks, case):
    changes = CASES[case]
    steps = 4 if changes.get("data") is PICTURES else 30
    jobs = []
    for size in (1, 2):
        batch = {"global_": 8 if steps == 4 else 60, "accumulate": 2 // size}
        config = make_config(**changes, train={"steps": steps}, batch=batch, optim={"lr": 0.02})
        jobs.append(ranks.start(config, size, run=ranks.run_dir(f"{size}")))
    for job in jobs:
        assert job.outcome()["step"] == steps
    one, two = (weights(job, steps) for job in jobs)
    assert [name for name in one if not one[name].equal(two[name])] == []
    from hpctrain.models.build import build

    config = make_config(**changes)
    shape, classes = (config.data.args["shape"], config.data.args["classes"]) if config.data.args else ((1, 8, 8), 10)
    start = build(config.model, shape=shape, outputs=1 if classes == 2 else classes, seed=0).named_parameters()
    for name, part in start:
        stays = case == "frozen" and name.startswith("1.")
        if stays or part.ndim > 1:  # the scales behind a norm that starts at zero hardly move yet
            assert part.equal(one[name]) == stays, name


@pytest.mark.parametrize("size", [1, 2])
def test_a_resumed_run_with_dropout_equals_an_undisturbed_one_to_the_byte(ranks, size):
    config = make_config(model=DROPOUT, train={"steps": 20}, checkpoint={"every": Duration(7, "steps")})
    calm, run = ranks.start(config, size, run=ranks.run_dir("calm")), ranks.run_dir("cut")
    assert ranks.start(config, size, run=run, until=9).outcome()["step"] == 9
    again = ranks.start(config, size, run=run)
    assert (again.outcome()["loss"], again.outcome()["accuracy"]) == (
        calm.outcome()["loss"],
        calm.outcome()["accuracy"],
    )
    one, two = (weights(job, 20) for job in (calm, again))
    assert all(one[name].equal(two[name]) for name in one)


def test_dropout_is_keyed_by_seed_and_step(ranks):
    def trained(name, **changes):
        job = ranks.start(make_config(model=DROPOUT, train={"steps": 2}, **changes), 1, run=ranks.run_dir(name))
        job.outcome()
        return weights(job, 2)

    one, same, other = trained("one"), trained("same"), trained("other", seed=1)
    assert all(one[name].equal(same[name]) for name in one)
    assert not any(one[name].equal(other[name]) for name in one)
