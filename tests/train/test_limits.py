"""Clipping, penalties and the largest norm of a unit, against what they are by definition."""

import math

import pytest

from hpctrain.config.schema import Optim, Train

pytestmark = pytest.mark.torch


def made(scaler=None, lr=0.1, **asked):
    """Return a net, its step with plain SGD, and limits; the loss is 3 x the sum of all parameters."""
    import torch

    from hpctrain.dist.single import SingleStep
    from hpctrain.train.limits import Limits
    from hpctrain.train.optim import build

    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.Flatten(), torch.nn.Linear(12, 2)).double()
    optimizer = build(Optim(lr=1.0), net.parameters(), scaled=scaler is not None)
    optimizer.param_groups[0]["lr"] = lr
    step = SingleStep(net, optimizer, scaler)
    return net, step, Limits(Train(steps=1, **asked), net, step)


def backward(net, step, factor=3.0):
    step.backward(sum(part.sum() for part in net.parameters()) * factor, last=True)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_penalties_are_the_gradient_of_their_definition_on_weights_alone(scale):
    import torch

    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    net, step, limits = made(scaler, l1=0.3, l2=0.7)
    copies = [part.detach().clone().requires_grad_() for part in net.parameters()]
    weights = [part for part in copies if part.ndim > 1]
    loss = 3 * sum(part.sum() for part in copies)
    loss = loss + 0.3 * sum(part.abs().sum() for part in weights) + 0.7 * sum(part.square().sum() for part in weights)
    loss.backward()
    for _ in range(2):  # two passes must not add them twice
        backward(net, step, 1.5)
    limits.gradient()
    for part, copy in zip(net.parameters(), copies, strict=True):
        assert (part.grad - copy.grad).abs().max().item() < 1e-12


def test_clipping_sees_the_penalty_and_numbers_come_before_the_norm():
    import torch

    net, step, limits = made(l2=5.0, clip_value=2.0, clip_norm=1.5)
    backward(net, step)
    expected = [(3 + 10.0 * part.detach() * (part.ndim > 1)).clamp(-2.0, 2.0) for part in net.parameters()]
    norm = math.sqrt(sum(part.square().sum().item() for part in expected))
    assert norm > 1.5
    limits.gradient()
    for part, wanted in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(part.grad, wanted * 1.5 / norm, rtol=1e-5)


@pytest.mark.parametrize("asked", [{"clip_value": 2.0}, {"clip_norm": 2.0}])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_still_found_after_clipping(asked, bad):
    net, step, limits = made(**asked)
    backward(net, step)
    net[2].bias.grad[0] = bad
    before = [part.detach().clone() for part in net.parameters()]
    limits.gradient()
    assert not step.apply(only_finite=True)
    assert all(part.equal(old) for part, old in zip(net.parameters(), before, strict=True))


def test_no_unit_has_longer_incoming_weights_than_the_largest_norm():
    import torch

    net, _, limits = made(max_norm=0.5)
    with torch.no_grad():
        net[0].weight[0].mul_(10)
        net[0].weight[1].mul_(0.01)
        net[2].bias.fill_(9.0)
    before = net[0].weight.detach().clone()
    limits.weights()
    norms = net[0].weight.flatten(1).norm(dim=1)
    assert norms[0].item() == pytest.approx(0.5, rel=1e-5)
    assert net[0].weight[1].equal(before[1])
    assert torch.allclose(net[0].weight[0] / norms[0], before[0] / before[0].norm())
    assert net[2].weight.norm(dim=1).max().item() <= 0.5 + 1e-9
    assert net[2].bias.tolist() == [9.0, 9.0]


def test_what_is_no_layers_weight_has_no_units():
    import torch

    from hpctrain.dist.single import SingleStep
    from hpctrain.train.limits import Limits

    net = torch.nn.Linear(3, 3)
    net.position = torch.nn.Parameter(torch.full((4, 3), 9.0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    Limits(Train(steps=1, max_norm=0.1), net, SingleStep(net, optimizer)).weights()
    assert net.position.eq(9.0).all()
    assert net.weight.norm(dim=1).max().item() <= 0.1 + 1e-6


def test_units_of_a_transposed_convolution_are_its_outputs():
    import torch

    from hpctrain.dist.single import SingleStep
    from hpctrain.train.limits import Limits

    net = torch.nn.ConvTranspose2d(2, 5, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with torch.no_grad():
        net.weight.fill_(1.0)
    Limits(Train(steps=1, max_norm=1.0), net, SingleStep(net, optimizer)).weights()
    assert net.weight.transpose(0, 1).flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 5, rel=1e-5)


def test_nothing_asked_costs_nothing():
    from hpctrain.train.limits import limits
    from tests.train.ranks import make_config

    net, step, _ = made()
    assert limits(make_config(), net, step) is None
    assert limits(make_config(train={"l1": 0.1}), net, step) is not None
