"""What a rank of a test does once the group has formed."""

from collections.abc import Callable
from typing import Any

import msgspec
import torch

from hpctrain.config.schema import Config
from hpctrain.dist.comm import Comm
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train.loop import train
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
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    comm.wrap(model, optimizer, example=example, passes=1, scaler=None)
    return {"value": {
        "same": all(value.equal(before[key]) for key, value in model.state_dict().items()),
        "random": torch.random.get_rng_state().equal(random),
        "gradients": sum(part.grad is not None for part in model.parameters()),
    }}  # fmt: skip


BODIES: dict[str, Callable[..., dict[str, Any]]] = {
    "train": _train,
    "collectives": _collectives,
    "clip": _clip,
    "accumulate": _accumulate,
    "wrap": _wrap,
}
