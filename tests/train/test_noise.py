"""The gradient noise scale, against per-sample gradients of the same weights."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from hpctrain.config.duration import Duration
from hpctrain.config.schema import Dist, Model
from hpctrain.data.dataset import Wanted
from hpctrain.data.load import load
from hpctrain.models import build as models
from hpctrain.train.noise import noise_scale
from tests.train.ranks import Ranks, make_config, make_plan

pytestmark = pytest.mark.torch


def measuring(*, strategy="ddp", precision="fp64", accumulate=1, epochs=20, noise=True):
    return make_config(
        batch={"global_": 60, "accumulate": accumulate},
        optim={"lr": 1e-12, "momentum": 0.0, "schedule": "constant"},  # the weights stay where they are
        train={"epochs": epochs},
        log={"every": Duration(1000, "steps"), "noise_scale": noise},
        dist=Dist(strategy=strategy),
        precision=precision,
    )


def exact(config):
    """Return trace of the covariance of single samples' gradients, divided by the squared norm of their mean."""
    plan = make_plan(config, 1)
    data = load(config.data, plan, device=torch.device("cpu"), dtype=torch.float64)
    model = models.build(
        Model(name=config.model.name, args=config.model.args), shape=data.shape, outputs=data.outputs, seed=plan.seed
    ).double()
    inputs, targets = next(data.train.stream([Wanted(torch.arange(data.train.count))]))
    weights = {name: part.detach() for name, part in model.named_parameters()}

    def loss(weights, image, label):
        return functional.cross_entropy(functional_call(model, weights, image[None]), label[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, targets)
    rows = torch.cat([part.flatten(1) for part in found.values()], dim=1)
    mean = rows.mean(0).square().sum()
    return ((rows.square().sum(1).mean() - mean) / mean).item()


@pytest.fixture
def strategy(request):
    if request.param == "horovod":
        request.getfixturevalue("horovod")
    return request.param


@pytest.mark.parametrize(
    ("strategy", "size", "accumulate"),
    [("ddp", 2, 1), ("ddp", 1, 4), ("ddp", 2, 2), ("horovod", 2, 2)],
    indirect=["strategy"],
)
def test_it_is_that_of_per_sample_gradients(ranks: Ranks, strategy, size, accumulate):
    config = measuring(strategy=strategy, accumulate=accumulate)
    job = ranks.start(config, size, run=ranks.run_dir())
    job.outcome()
    (line,) = job.metrics()
    assert line["noise_scale"] == pytest.approx(exact(measuring(noise=False)), rel=0.2)


def test_a_scaled_loss_does_not_change_it(ranks: Ranks):
    found = []
    for precision in ("fp16", "fp32"):
        job = ranks.start(measuring(precision=precision, epochs=4), 2, run=ranks.run_dir(precision))
        job.outcome()
        found.append(job.metrics()[-1]["noise_scale"])
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_a_batch_far_beyond_it_is_warned_of_once(ranks: Ranks):
    config = make_config(
        batch={"global_": 500},
        train={"epochs": 10},
        log={"every": Duration(3, "steps"), "noise_scale": True},
    )
    job = ranks.start(config, 2, run=ranks.run_dir())
    job.outcome()
    scales = [line["noise_scale"] for line in job.metrics() if "noise_scale" in line]
    said = job.run.log(job.attempt, 0, "err").read_text()
    beyond = [scale for scale in scales if scale < 250]
    assert said.count("is beyond the gradient's noise scale") == min(len(beyond), 1) == 1
    assert "noise scale" not in job.run.log(job.attempt, 1, "err").read_text()


def test_it_changes_nothing_that_is_trained_and_is_off_by_default(ranks: Ranks):
    weights = []
    for noise in (False, True):
        config = make_config(train={"epochs": 1}, log={"every": Duration(7, "steps"), "noise_scale": noise})
        job = ranks.start(config, 2, run=ranks.run_dir(str(noise)))
        outcome = job.outcome()
        weights.append((job.run.checkpoint(outcome["step"]) / "model.safetensors").read_bytes())
        assert all(("noise_scale" in line) == noise for line in job.metrics())
    assert weights[0] == weights[1]


def test_the_formula_gives_back_what_it_is_made_of():
    true, trace = 0.3, 40.0
    small, large = true + trace / 8, true + trace / 64
    assert noise_scale(small, large, 8, 64) == pytest.approx(trace / true)
    assert noise_scale(8.0, 0.5, 8, 64) is None  # by chance the larger batch shows no gradient at all
