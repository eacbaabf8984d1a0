"""Checkpoints that are saved and loaded at once, without a run around them."""

import msgspec
import torch

from hpctrain.dist.single import Single, SingleStep
from hpctrain.plan import Plan
from hpctrain.train import rng
from hpctrain.train.checkpoint import Checkpoints
from hpctrain.train.snapshot import Buffers
from tests.train.ranks import make_config

CPU = torch.device("cpu")
PLAN = Plan(
    name="t", seed=3, nodes=1, ranks_per_node=2, ranks=2, device="cpu", strategy="ddp",
    backend="gloo", launcher="local", precision="fp32",
    train_samples=100, global_batch=8, accumulate=1, steps_per_epoch=13, total_steps=26,
)  # fmt: skip


def checkpoints(run, attempt=1, *, keep=2, keep_best=False, config=None, **changes):
    made = Store(
        run,
        attempt,
        msgspec.structs.replace(PLAN, **changes),
        config or make_config(checkpoint={"keep": keep, "keep_best": keep_best}),
    )
    if not run.staging(attempt).exists():
        made.fence()
    return made


class Store(Checkpoints):
    """Checkpoints of a single rank, saved and loaded at once."""

    def save(self, done, model, step, average=None, **about):
        states = rng.gather(Single(), CPU)
        self.publish(Buffers(CPU).take(done, model, step, average, states), **{"evaluated": True, **about})

    def load_here(self, manifest, model, step, average=None, rank=0):
        return self.load(manifest, model, step, average, rank=rank, device=CPU)


def parts(seed=0, width=4, kind=torch.optim.SGD, **options):
    """A small model with a tied weight and a buffer, after one step of its optimizer."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.Linear(width, width), torch.nn.BatchNorm1d(width)
    )
    model[1].weight = model[0].weight
    optimizer = kind(model.parameters(), lr=0.1, **options)
    model(torch.randn(5, width)).square().sum().backward()
    optimizer.step()
    return model, SingleStep(model, optimizer)


def state_of(model, step):
    from safetensors.torch import save

    from hpctrain.train import state

    return [save(tensors) for tensors in (
        {key: value.clone() for key, value in state.model_tensors(model).items()},
        state.optimizer_tensors(step.optimizer)[0],
    )]  # fmt: skip
