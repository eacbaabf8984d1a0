"""The schedules against torch's own, where torch has one."""

import math

import pytest

from hpctrain.schedule import Curve, reductions

pytestmark = pytest.mark.torch

PEAK, STEPS = 0.3, 60


def torchs(make, momentum=0.9):
    """Return rates and momenta that a scheduler of torch gives to SGD, step by step."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK, momentum=momentum)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(STEPS):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("changes", "make"), [
    ({"shape": "constant"}, lambda kinds, optim: kinds.ConstantLR(optim, 1.0)),
    ({"shape": "step", "decay": 0.5, "decay_every_steps": 7}, lambda kinds, optim: kinds.StepLR(optim, 7, 0.5)),
    ({"shape": "multistep", "decay": 0.2, "milestone_steps": (10, 11, 40)},
     lambda kinds, optim: kinds.MultiStepLR(optim, [10, 11, 40], 0.2)),
    ({"shape": "linear", "decay_over_steps": 25, "floor": 0.2},
     lambda kinds, optim: kinds.LinearLR(optim, 1.0, 0.2, 25)),
    ({"shape": "cosine"}, lambda kinds, optim: kinds.CosineAnnealingLR(optim, STEPS)),
    ({"shape": "cosine", "floor": 0.1}, lambda kinds, optim: kinds.CosineAnnealingLR(optim, STEPS, 0.1 * PEAK)),
    ({"shape": "polynomial", "power": 3.0, "decay_over_steps": 50},
     lambda kinds, optim: kinds.PolynomialLR(optim, 50, 3.0)),
    ({"shape": "restarts", "period_steps": 7}, lambda kinds, optim: kinds.CosineAnnealingWarmRestarts(optim, 7)),
    ({"shape": "restarts", "period_steps": 5, "period_growth": 3, "floor": 0.05},
     lambda kinds, optim: kinds.CosineAnnealingWarmRestarts(optim, 5, 3, 0.05 * PEAK)),
])  # fmt: skip
def test_the_rate_is_that_of_torchs_scheduler(changes, make):
    curve = Curve(total_steps=STEPS, **changes)
    expected = [lr for lr, _ in torchs(make)]
    assert [PEAK * curve.part(step) for step in range(STEPS)] == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(("legs", "anneal"), [("cosine", "cos"), ("linear", "linear")])
def test_one_cycle_is_that_of_torch_with_its_momentum(legs, anneal):
    curve = Curve(
        shape="onecycle", total_steps=STEPS, rise_steps=18, start=0.04, floor=0.04 / 100, legs=legs,
        cycle_momentum=(0.85, 0.95),
    )  # fmt: skip
    expected = torchs(
        lambda kinds, optim: kinds.OneCycleLR(
            optim, PEAK, total_steps=STEPS + 1, pct_start=18 / (STEPS + 1), anneal_strategy=anneal, final_div_factor=100
        )
    )
    # torch counts one more step than it is stepped through here, so its last leg is longer by one
    longer = Curve(
        shape="onecycle", total_steps=STEPS + 1, rise_steps=18, start=0.04, floor=0.04 / 100, legs=legs,
        cycle_momentum=(0.85, 0.95),
    )  # fmt: skip
    found = [(PEAK * longer.part(step), longer.momentum(step)) for step in range(STEPS)]
    assert [lr for lr, _ in found] == pytest.approx([lr for lr, _ in expected], rel=1e-10)
    assert [momentum for _, momentum in found] == pytest.approx([momentum for _, momentum in expected], rel=1e-10)
    assert curve.part(STEPS - 1) == pytest.approx(0.04 / 100)


@pytest.mark.parametrize(("patience", "cooldown", "threshold"), [(0, 0, 0.0), (2, 0, 1e-4), (1, 3, 0.05), (3, 1, 0.01)])
def test_a_plateau_is_that_of_torch(patience, cooldown, threshold):
    import torch

    generator = torch.Generator().manual_seed(5)
    losses = [math.exp(-step / 15) + 0.2 * torch.rand((), generator=generator).item() for step in range(80)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=threshold, cooldown=cooldown, min_lr=PEAK * 0.01, eps=0.0
    )
    curve = Curve(shape="plateau", total_steps=80, decay=0.5, floor=0.01)
    for count, loss in enumerate(losses, 1):
        scheduler.step(loss)
        reduced = reductions(losses[:count], patience=patience, threshold=threshold, cooldown=cooldown)
        assert PEAK * curve.part(count, reduced) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert optimizer.param_groups[0]["lr"] < PEAK / 2
