"""What a rank of a test does once the group has formed."""

import importlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from hpctrain.config.schema import Config, Optim
from hpctrain.dist.comm import Comm, Step
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train.loop import train
from hpctrain.train.optim import build
from hpctrain.train.stop import Cause, Stop
from hpctrain.world import World
from tests.train import nets


class StopAt(Stop):
    """Told to stop at an exact step, as if the signal had come then."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def agree(self, done: int, comm: Comm) -> Cause | None:
        if done >= self.step:
            self.cause = "time_limit"
        found = super().agree(done, comm)
        self.next_step = done + 1
        return found


def _train(
    run: RunDir,
    attempt: int,
    config: Config,
    plan: Plan,
    world: World,
    comm: Comm,
    device: torch.device,
    stop: Stop,
    options: dict[str, Any],
) -> dict[str, Any]:
    outcome = train(run, attempt, config, plan, world, comm, device, stop, debug=options.get("debug", False))
    return {"outcome": msgspec.to_builtins(outcome)}


def _held(*given: Any) -> dict[str, Any]:
    """Train once the test says so: it wants to watch this process from outside."""
    run, attempt = given[0], given[1]
    while not (run.attempt(attempt) / "go").exists():
        time.sleep(0.002)
    return _train(*given)


def _equal(*given: Any) -> dict[str, Any]:
    """Train a net that is kept in `nets.BUILT`; say whether all ranks end with the same bits."""
    outcome, comm = _train(*given)["outcome"], given[5]
    weights = torch.cat([part.detach().flatten() for part in nets.BUILT[-1].parameters()]).view(torch.int32).long()
    return {"value": {"step": outcome["step"], "equal": comm.sum(weights).equal(weights * comm.size)}}


def _layout(*given: Any) -> dict[str, Any]:
    """Train; say how the weights and the outputs of a convolution lay in memory in the last step."""
    seen: list[bool] = []

    def look(module: torch.nn.Module, _: Any, outputs: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels > 1:
            seen[:] = [not tensor.is_contiguous() for tensor in (module.weight, outputs)]

    with torch.nn.modules.module.register_module_forward_hook(look):
        _train(*given)
    return {"value": seen}


def _collectives(*given: Any) -> dict[str, Any]:
    comm: Comm = given[5]
    integers = torch.tensor([comm.rank + 1, 2**53 if comm.rank == 0 else 1 + (comm.rank == 2)])
    sent = [b"", bytes([0, 255, 123]), b"ab" * 150_000]
    received = [comm.broadcast(content if comm.rank == 0 else b"mine") for content in sent]
    assert received == sent
    comm.barrier()
    return {"value": {
        "integers": comm.sum(integers).tolist(),
        "float64": round(comm.sum(torch.tensor(0.1 * (comm.rank + 1), dtype=torch.float64)).item(), 15),
        "any": [comm.any(comm.rank == 2), comm.any(False)],
        "bytes": ["", received[1].hex(), len(received[2])],
        "kept": integers.tolist(),
    }}  # fmt: skip


def _clip(*given: Any) -> dict[str, Any]:
    comm: Comm = given[5]
    torch.manual_seed(0)
    model, images = torch.nn.Linear(6, 3), torch.randn(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [part.detach().clone() for part in model.parameters()]
    step = comm.wrap(model, optimizer, example=images[:2], passes=1, scaler=None)
    mine = images[comm.rank * 4 // comm.size : (comm.rank + 1) * 4 // comm.size]
    step.backward(step.forward(mine, last=True).square().sum() * 9, last=True)
    step.unscale_and_clip(None)
    step.unscale_and_clip(0.5)
    step.apply()
    moved = torch.cat([(part - old).flatten() for part, old in zip(model.parameters(), before, strict=True)])
    return {"value": {"norm": moved.norm().item(), "weights": model.weight.flatten().tolist()}}


def _accumulate(*given: Any) -> dict[str, Any]:
    comm: Comm = given[5]
    torch.manual_seed(0)
    model, images = torch.nn.Linear(6, 3).double(), torch.randn(4, 6).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = comm.wrap(model, optimizer, example=images[:2], passes=2, scaler=None)
    whole = torch.autograd.grad(model(images).square().sum(), model.weight)[0]
    alone = torch.autograd.grad(model(images[comm.rank : comm.rank + 1]).square().sum(), model.weight)[0] * comm.size
    kept = []
    for number in range(2):
        mine = images[number * 2 + comm.rank][None]
        step.backward(step.forward(mine, last=number == 1).square().sum(), last=number == 1)
        gradient = model.weight.grad
        assert gradient is not None
        kept.append(gradient.clone())
    return {"value": [kept[0].allclose(alone), kept[1].allclose(whole)]}


def _wrap(*given: Any) -> dict[str, Any]:
    comm: Comm = given[5]
    torch.manual_seed(comm.rank)
    model = nets.averaging()
    model = torch.nn.Sequential(model, torch.nn.Dropout(0.5))
    torch.manual_seed(7)
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(torch.randn_like(part))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    example = torch.randn(2, 1, 8, 8)
    random = torch.random.get_rng_state()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.5)
    comm.wrap(model, optimizer, example=example, passes=1, scaler=None)
    return {"value": {
        "same": all(value.equal(before[key]) for key, value in model.state_dict().items()),
        "random": torch.random.get_rng_state().equal(random),
        "gradients": sum(part.grad is not None for part in model.parameters()),
    }}  # fmt: skip


def _train_on(model: torch.nn.Module, step: Step, images: torch.Tensor, factor: float = 1.0) -> bool:
    step.backward(step.forward(images, last=True).square().sum() * factor, last=True)
    return step.apply()


def _overflow(*given: Any) -> dict[str, Any]:
    """The first and the third of four steps overflow, on the last rank alone."""
    comm: Comm = given[5]
    torch.manual_seed(0)
    model, images = torch.nn.Linear(4, 2), torch.randn(6, 4)
    mine = images[comm.rank :: comm.size]
    optimizer = build(Optim(lr=1.0, momentum=0.9), model.parameters(), scaled=True)
    optimizer.param_groups[0]["lr"] = 0.01
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    step = comm.wrap(model, optimizer, example=images[:2], passes=1, scaler=scaler)
    history, applied = [model.weight.flatten().tolist()], []
    for number in range(4):
        broken = number in {0, 2} and comm.rank == comm.size - 1
        applied.append(_train_on(model, step, mine, float("inf") if broken else 1.0))
        history.append(model.weight.flatten().tolist())
    return {"value": {"applied": applied, "weights": history, "scale": scaler.get_scale()}}


def _no_number(*given: Any) -> dict[str, Any]:
    """The gradient of the second and the fourth of four steps is infinite or no number, on the last rank alone."""
    comm: Comm = given[5]
    torch.manual_seed(0)
    model, images = torch.nn.Linear(4, 2), torch.randn(6, 4)
    optimizer = build(Optim(lr=1.0, momentum=0.9), model.parameters(), scaled=False)
    optimizer.param_groups[0]["lr"] = 0.01
    step = comm.wrap(model, optimizer, example=images[:2], passes=1, scaler=None)
    history, applied = [model.weight.flatten().tolist()], []
    for factor in (1.0, float("inf"), 1.0, float("nan")):
        loss = step.forward(images[comm.rank :: comm.size], last=True).square().sum()
        step.backward(loss * (factor if comm.rank == comm.size - 1 else 1.0), last=True)
        applied.append(step.apply(only_finite=True))
        history.append(model.weight.flatten().tolist())
    return {"value": {"applied": applied, "weights": history}}


class _Partly(torch.nn.Module):
    """With a parameter that no gradient reaches, one that gets none, and a buffer in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.used = torch.nn.Parameter(torch.ones(3))
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("halves", torch.full((2,), 1.5, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.used


def _unused(*given: Any) -> dict[str, Any]:
    comm: Comm = given[5]
    model = _Partly()
    if comm.rank:
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.zero_()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5, weight_decay=0.5)
    images = torch.ones(1, 3)
    step = comm.wrap(model, optimizer, example=images, passes=1, scaler=None)
    _train_on(model, step, images)
    return {"value": {name: tensor.float().flatten().tolist() for name, tensor in model.state_dict().items()}}


class _Moody(torch.nn.Module):
    """Leaves a layer out in its first pass only, and has a buffer that follows each rank's own data."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.zeros(4))
        self.passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        if self.training:
            self.mean.lerp_(images.mean(0), 0.5)
        images = images - self.mean
        return self.one(images) + (self.other(images) if self.passes > 1 else 0)  # type: ignore[no-any-return]


class _ChannelsLast(torch.nn.Module):
    """A convolution whose weights lie channels last, left out in the first pass and then by all ranks but the first."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.side = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rank, self.passes = rank, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        found: torch.Tensor = self.body(images)
        return found + self.side(images) if self.passes > 1 and self.rank == 0 else found


def _channels_last(*given: Any) -> dict[str, Any]:
    comm, options = given[5], given[8]
    torch.manual_seed(0)
    model, images = _ChannelsLast(comm.rank if options.get("some") else 0), torch.randn(4, 3, 5, 5)
    model.passes += not options.get("some")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    step = comm.wrap(model, optimizer, example=images[:2], passes=1, scaler=None)
    for _ in range(4):
        _train_on(model, step, images[comm.rank :: comm.size])
    strides = [list(part.stride()) for part in model.parameters()]
    return {"value": {"weights": [part.flatten().tolist() for part in model.parameters()], "strides": strides}}


def _moody(*given: Any) -> dict[str, Any]:
    comm: Comm = given[5]
    torch.manual_seed(0)
    model, images = _Moody(), torch.randn(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step = comm.wrap(model, optimizer, example=images[:2], passes=1, scaler=None)
    for _ in range(4):
        _train_on(model, step, images[comm.rank :: comm.size])
    return {"value": {name: tensor.flatten().tolist() for name, tensor in model.named_parameters()}}


def _steps(*given: Any) -> dict[str, Any]:
    """Some steps of two passes in float64; the weights at the end."""
    comm, options = given[5], given[8]
    if options.get("no_pickle"):
        import pickle

        import cloudpickle

        for module in (pickle, cloudpickle):
            for name in ("load", "loads"):
                setattr(module, name, None)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=options.get("momentum", 0.9))
    images = torch.randn(8, 6).double()
    step = comm.wrap(model, optimizer, example=images[:2], passes=2, scaler=None)
    share = 4 // comm.size
    for _ in range(5):
        for number in range(2):
            first = number * 4 + comm.rank * share
            loss = step.forward(images[first : first + share], last=number == 1).square().sum() / 8
            step.backward(loss, last=number == 1)
        step.apply()
    return {"value": torch.cat([part.flatten() for part in model.parameters()]).tolist()}


def _large(*given: Any) -> dict[str, Any]:
    """One step whose gradient is 60,000, an equal part of which is each rank's."""
    comm: Comm = given[5]
    model, one = torch.nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    torch.nn.init.zeros_(model.weight)
    step = comm.wrap(model, torch.optim.SGD(model.parameters(), lr=1.0), example=one, passes=1, scaler=None)
    step.backward(step.forward(one, last=True).sum() * (60_000 / comm.size), last=True)
    step.apply()
    return {"value": model.weight.item()}


def _small(*given: Any) -> dict[str, Any]:
    """A step of a pass whose gradient is 2048 and a thousand passes whose gradient is 1."""
    comm: Comm = given[5]
    model, one = torch.nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    torch.nn.init.zeros_(model.weight)
    step = comm.wrap(model, torch.optim.SGD(model.parameters(), lr=1.0), example=one, passes=1001, scaler=None)
    for number in range(1001):
        last = number == 1000
        step.backward(step.forward(one, last=last).sum() * (1 if number else 2048), last=last)
    step.apply()
    return {"value": model.weight.item()}


def _lonely(*given: Any) -> dict[str, Any]:
    """The last rank dies in the second step."""
    comm: Comm = given[5]
    model, images = torch.nn.Linear(4, 2), torch.ones(2, 4)
    step = comm.wrap(model, torch.optim.SGD(model.parameters(), lr=0.1), example=images, passes=1, scaler=None)
    for number in range(100):
        if number == 1 and comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        _train_on(model, step, images)
    return {"value": "trained"}


BODIES: dict[str, Callable[..., dict[str, Any]]] = {
    "train": _train,
    "held": _held,
    "equal": _equal,
    "layout": _layout,
    "collectives": _collectives,
    "clip": _clip,
    "accumulate": _accumulate,
    "wrap": _wrap,
    "overflow": _overflow,
    "no_number": _no_number,
    "unused": _unused,
    "moody": _moody,
    "channels_last": _channels_last,
    "steps": _steps,
    "large": _large,
    "small": _small,
    "lonely": _lonely,
}


def find(name: str) -> Callable[..., dict[str, Any]]:
    """Return a body of this module by its name, or another module's by `package.module:function`."""
    if ":" not in name:
        return BODIES[name]
    module, _, function = name.partition(":")
    found: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
    return found
