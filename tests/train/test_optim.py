"""The optimizers: against torch's own or the paper's formula, with a first step that is left out, and saved."""

import math
from typing import get_args

import msgspec
import numpy as np
import pytest

from hpctrain.config.optim import Optimizer, Settings
from hpctrain.config.schema import Optim
from hpctrain.errors import CheckpointError

pytestmark = pytest.mark.torch

NAMES = get_args(Optimizer)

VARIANTS = {
    "sgd": {"momentum": 0.9, "weight_decay": 0.01},
    "sgd nesterov": {"momentum": 0.8, "nesterov": True},
    "sgd dampened": {"momentum": 0.8, "dampening": 0.3},
    "adagrad": {"eps": 1e-6, "weight_decay": 0.01},
    "adadelta": {"rho": 0.8, "eps": 1e-5},
    "rmsprop": {"alpha": 0.9, "weight_decay": 0.01},
    "rmsprop centered": {"alpha": 0.95, "momentum": 0.7, "centered": True, "eps": 1e-4},
    "adam": {"betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.01},
    "amsgrad": {"betas": (0.8, 0.9)},
    "nadam": {"betas": (0.85, 0.99)},
    "radam": {"betas": (0.9, 0.98), "weight_decay": 0.01},
    "adamax": {"betas": (0.9, 0.98), "eps": 1e-7},
    "adamw": {"weight_decay": 0.1},
    "lars": {"momentum": 0.9, "weight_decay": 0.01, "trust": 0.02},
    "lamb": {"betas": (0.8, 0.99), "weight_decay": 0.1},
}


def section(variant):
    return Optim(name=variant.split()[0], lr=1.0, **VARIANTS[variant])


def model(dtype=None):
    import torch

    torch.manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )
    return net if dtype is None else net.to(dtype)


def gradients(net, step):
    """Give each parameter the gradient of a step, the same for the same step."""
    import torch

    generator = torch.Generator().manual_seed(step)
    for part in net.parameters():
        part.grad = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.dtype)


def steps(net, optimizer, numbers, lr=0.05):
    for step in numbers:
        gradients(net, step)
        for group in optimizer.param_groups:
            group["lr"] = lr / (1 + step)
        optimizer.step()
    return [part.detach().clone() for part in net.parameters()]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.split()[0] not in {"lars", "lamb"}])
def test_an_optimizer_computes_what_torchs_plain_one_does(variant):
    import torch

    from hpctrain.train.optim import build

    plain = {
        "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adadelta": torch.optim.Adadelta,
        "rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "amsgrad": torch.optim.Adam,
        "nadam": torch.optim.NAdam, "radam": torch.optim.RAdam, "adamax": torch.optim.Adamax,
        "adamw": torch.optim.AdamW,
    }[variant.split()[0]]  # fmt: skip
    options = {"weight_decay": 0.0, **VARIANTS[variant]} | ({"amsgrad": True} if variant == "amsgrad" else {})
    ours, theirs = model(torch.float64), model(torch.float64)
    found = steps(ours, build(section(variant), ours.parameters(), scaled=False), range(20))
    expected = steps(theirs, plain(theirs.parameters(), lr=0.0, foreach=False, **options), range(20))
    before = list(model(torch.float64).parameters())
    for mine, their, first in zip(found, expected, before, strict=True):
        assert (mine - their).abs().max().item() < 1e-12
        assert (mine - first).abs().max().item() > 1e-6, "it has not moved"


def numpys(net):
    return [part.detach().numpy().copy() for part in net.parameters()]


def trusted(weight):
    return weight.ndim > 1


def test_lars_is_the_papers_with_corrected_momentum():
    """You et al. 2017, algorithm 1: v <- m v + rate l (g + d w), w <- w - v; where the rate changes, v x new / old."""
    import torch

    from hpctrain.train.optim import build, groups

    net, optim = model(torch.float64), section("lars")
    weights = numpys(net)
    velocities = [np.zeros_like(weight) for weight in weights]
    before = None
    optimizer = build(optim, groups(optim, net, "cnn"), scaled=False)
    for step in range(20):
        gradients(net, step)
        lr = 0.5 / (1 + step % 7)
        for group in optimizer.param_groups:
            group["lr"] = lr
        grads = [part.grad.numpy().copy() for part in net.parameters()]
        optimizer.step()
        for index, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            velocity = velocities[index] * (1 if before is None else lr / before)
            if trusted(weight):
                size, slope = np.linalg.norm(weight), np.linalg.norm(grad)
                local = optim.trust * size / (slope + optim.weight_decay * size)
                velocity = optim.momentum * velocity + lr * local * (grad + optim.weight_decay * weight)
            else:
                velocity = optim.momentum * velocity + lr * grad
            velocities[index], weights[index] = velocity, weight - velocity
        before = lr
    for found, expected in zip(numpys(net), weights, strict=True):
        assert np.abs(found - expected).max() < 1e-12


def test_lamb_is_the_papers():
    """You et al. 2020, algorithm 2, with the identity for phi."""
    import torch

    from hpctrain.train.optim import build, groups

    net, optim = model(torch.float64), section("lamb")
    weights = numpys(net)
    means, squares = ([np.zeros_like(weight) for weight in weights] for _ in range(2))
    (beta1, beta2), eps = optim.betas, 1e-6
    optimizer = build(optim, groups(optim, net, "cnn"), scaled=False)
    for step in range(20):
        gradients(net, step)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        grads = [part.grad.numpy().copy() for part in net.parameters()]
        optimizer.step()
        for index, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            means[index] = beta1 * means[index] + (1 - beta1) * grad
            squares[index] = beta2 * squares[index] + (1 - beta2) * grad**2
            mean, square = means[index] / (1 - beta1 ** (step + 1)), squares[index] / (1 - beta2 ** (step + 1))
            update, ratio = mean / (np.sqrt(square) + eps), 1.0
            if trusted(weight):
                update = update + optim.weight_decay * weight
                ratio = np.linalg.norm(weight) / np.linalg.norm(update)
            weights[index] = weight - 0.01 * (step + 1) * ratio * update
    for found, expected in zip(numpys(net), weights, strict=True):
        assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_weights_or_gradients_of_zeros_get_the_rate_as_it_stands(name):
    import torch

    from hpctrain.train.optim import build

    zeros, still = (torch.nn.Parameter(value) for value in (torch.zeros(2, 2), torch.ones(2, 2)))
    optimizer = build(Optim(name=name, lr=1.0), [zeros, still], scaled=False)
    zeros.grad, still.grad = torch.full((2, 2), 0.5), torch.zeros(2, 2)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert zeros.flatten().tolist() == pytest.approx([-0.05 if name == "lars" else -0.1] * 4, rel=1e-4)
    assert still.flatten().tolist() == [1.0] * 4


@pytest.mark.parametrize("name", NAMES)
def test_a_first_step_that_a_scaler_leaves_out_leaves_no_trace(name):
    import torch

    from hpctrain.train.optim import build

    nets = [model(), model()]
    optimizers = [build(section(name), net.parameters(), scaled=True) for net in nets]
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000)
    gradients(nets[0], 0)
    next(nets[0].parameters()).grad[0] = math.inf
    optimizers[0].param_groups[0]["lr"] = 0.1
    scaler.scale(torch.zeros(()))  # makes the scale
    scaler.unscale_(optimizers[0])
    scaler.step(optimizers[0])
    scaler.update()
    assert scaler.get_scale() == 0.5, "it must have seen the infinite number"
    first, second = (steps(net, made, range(1, 4)) for net, made in zip(nets, optimizers, strict=True))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_an_optimizer_goes_on_from_its_saved_state_to_the_same_bytes(variant, precision):
    import torch
    from safetensors.torch import save

    from hpctrain.train import state
    from hpctrain.train.optim import build, groups

    optim, dtype = section(variant), getattr(torch, precision)
    calm = model(dtype)
    made = build(optim, groups(optim, calm, "cnn"), scaled=False)
    steps(calm, made, range(5))
    weights = {key: value.clone() for key, value in calm.state_dict().items()}
    tensors, scalars = state.optimizer_tensors(made)
    content, scalars = (
        save({key: value.clone() for key, value in tensors.items()}),
        msgspec.json.decode(msgspec.json.encode(scalars)),
    )
    expected = steps(calm, made, range(5, 12))
    again = model(dtype)
    again.load_state_dict(weights)
    resumed = build(optim, groups(optim, again, "cnn"), scaled=False)
    state.load_optimizer(resumed, content, scalars, "file")
    found = steps(again, resumed, range(5, 12))
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))
    dtypes = [{name: value.dtype for name, value in state.optimizer_tensors(one)[0].items()} for one in (made, resumed)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize(("saved", "asked", "message", "hint"), [
    (Optim(name="adam", lr=1.0), Optim(name="amsgrad", lr=1.0),
     "file holds the state of Adam over [6] parameters; the config's optimizer is Adam with amsgrad over [6]",
     "go on with the optimizer of the checkpoint, or start a new run"),
    (Optim(name="rmsprop", lr=1.0, momentum=0.9), Optim(name="rmsprop", lr=1.0),
     "file holds the state of RMSprop with momentum over [6] parameters; the config's optimizer is RMSprop over [6]",
     "go on with the optimizer of the checkpoint, or start a new run"),
    (Optim(lr=1.0, weight_decay_on="all"), Optim(lr=1.0, weight_decay_on="weights"),
     "file holds the state of SGD over [6] parameters; the config's optimizer is SGD over [2, 4]",
     "go on with the optim.weight_decay_on of the checkpoint, or start a new run"),
])  # fmt: skip
def test_the_state_of_another_optimizer_is_refused(saved, asked, message, hint):
    from safetensors.torch import save

    from hpctrain.train import state
    from hpctrain.train.optim import build, groups

    net = model()
    made = build(saved, groups(saved, net, "cnn"), scaled=False)
    steps(net, made, range(2))
    tensors, scalars = state.optimizer_tensors(made)
    other = build(asked, groups(asked, net, "cnn"), scaled=False)
    with pytest.raises(CheckpointError) as caught:
        state.load_optimizer(other, save({key: value.clone() for key, value in tensors.items()}), scalars, "file")
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_size_of_a_checkpoint_is_known_before_the_first_step(variant):
    from hpctrain.train import state
    from hpctrain.train.image import file_bytes
    from hpctrain.train.optim import build
    from hpctrain.train.snapshot import checkpoint_bytes
    from tests.train.ranks import make_config

    config = make_config(optim={"name": variant.split()[0], "momentum": 0.0, **VARIANTS[variant]})
    net = model()
    made = build(config.optim, net.parameters(), scaled=False)
    steps(net, made, [0])
    expected = file_bytes(state.model_tensors(net)) + file_bytes(state.optimizer_tensors(made)[0])
    assert abs(checkpoint_bytes(config, net, {}, manifest_bytes=0) - file_bytes({}) - expected) < 1000


def test_weights_are_neither_biases_nor_of_norms():
    import torch

    from hpctrain.train.optim import groups, weights

    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.PReLU(4), torch.nn.LayerNorm((2, 3)),
        torch.nn.Linear(3, 1), torch.nn.GroupNorm(2, 4),
    )  # fmt: skip
    found = weights(net)
    assert [id(part) for part in found] == [id(net[0].weight), id(net[4].weight)]
    for optim, name, sizes in [
        (Optim(lr=1.0), "cnn", [11]),
        (Optim(lr=1.0), "resnet50", [2, 9]),
        (Optim(lr=1.0, weight_decay_on="all"), "resnet50", [11]),
        (Optim(lr=1.0, weight_decay_on="weights"), "cnn", [2, 9]),
        (Optim(name="lamb", lr=1.0), "cnn", [2, 9]),
    ]:
        made = groups(optim, net, name)
        assert [len(group["params"]) for group in made] == sizes
        assert all(group["weight_decay"] == 0 for group in made[1:])


def test_weight_decay_leaves_biases_and_norms_alone():
    import torch

    from hpctrain.train.optim import build, groups

    optim, net = Optim(lr=1.0, weight_decay=0.5, weight_decay_on="weights"), model()
    before = [part.detach().clone() for part in net.parameters()]
    optimizer = build(optim, groups(optim, net, "cnn"), scaled=False)
    for part in net.parameters():
        part.grad = torch.zeros_like(part)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    for part, old in zip(net.parameters(), before, strict=True):
        assert torch.allclose(part, old * 0.95 if part.ndim > 1 else old, atol=0, rtol=1e-6)


def test_what_the_plan_uses_is_what_the_optimizer_gets():
    from hpctrain.train.optim import build

    used = Settings(lr=0.5, betas=(0.6, 0.996), eps=5e-9)
    (group,) = build(Optim(name="adam", lr=1.0), model().parameters(), scaled=False, used=used).param_groups
    assert (group["betas"], group["eps"], group["lr"]) == ((0.6, 0.996), 5e-9, 0.0)
    cycled = Optim(lr=1.0, schedule="onecycle", cycle_momentum=(0.85, 0.95), nesterov=True)
    assert build(cycled, model().parameters(), scaled=False).param_groups[0]["momentum"] == 0.95
