"""What a plan holds, and what follows from it and the config alone: the optimizer's settings and its schedule."""

from typing import Literal

import msgspec

from hpctrain import schedule
from hpctrain.config.optim import SMOOTHED, Optim, Settings, asked
from hpctrain.config.schema import Config

Launcher = Literal["local", "srun", "torchrun", "mpirun", "horovodrun"]
"""What starts the ranks: `dist.launcher` in a Slurm job; without Slurm our supervisor, or mpirun for `backend: mpi`."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes, and ranks on each of them."""

    nodes: int
    ranks_per_node: int
    launcher: Launcher = "local"

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.nodes * self.ranks_per_node


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the dataset before any rank runs; None: unknown until counted."""

    train: int | None = None
    validation: int = 0
    test: int | None = None
    path: str | None = None
    digest: str | None = None
    """Of what was counted; ranks that find something else do not train."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will run. `None` where a `command` decides for itself, or samples are not counted yet."""

    name: str
    seed: int
    nodes: int
    ranks_per_node: int
    ranks: int
    device: Literal["cpu", "cuda"]
    strategy: Literal["ddp", "horovod"]
    backend: Literal["gloo", "nccl", "mpi"]
    launcher: Launcher
    precision: str
    data_path: str | None = None
    data_digest: str | None = None
    train_samples: int | None = None
    validation_samples: int = 0
    test_samples: int | None = None
    batch_per_rank: int | None = None
    accumulate: int | None = None
    global_batch: int | None = None
    lr_asked: float | None = None
    lr_used: float | None = None
    betas_used: tuple[float, float] | None = None
    alpha_used: float | None = None
    eps_used: float | None = None
    steps_per_epoch: int | None = None
    samples_per_rank: int | None = None
    total_steps: int | None = None
    warmup_steps: int | None = None
    decay_every_steps: int | None = None
    decay_over_steps: int | None = None
    milestone_steps: tuple[int, ...] | None = None
    rise_steps: int | None = None
    period_steps: int | None = None
    eval_every_steps: int | None = None
    checkpoint_every_steps: int | None = None
    log_every_steps: int | None = None


def settings(plan: Plan, config: Config) -> Settings:
    """Return what of the optimizer is scaled by the batch whose gradients are averaged: the global batch.

    Adasum instead adds what the ranks do to the weights, as far as they do different things; only the batch of a
    rank, or on GPUs that of a node, is averaged (Horovod's documentation, "AdaSum", "Learning Rate").
    """
    optim, averaged = config.optim, plan.global_batch
    if optim is None or averaged is None or plan.batch_per_rank is None or plan.accumulate is None:
        raise AssertionError("only of a plan that trains")
    if config.dist.horovod.op == "adasum":
        averaged = plan.batch_per_rank * plan.accumulate * (plan.ranks_per_node if plan.device == "cuda" else 1)
    return schedule.scaled(
        asked(optim),
        rule=optim.scale,
        smoothed=optim.name in SMOOTHED,
        batch=averaged,
        base_batch=optim.base_batch,
    )


def curve(plan: Plan, optim: Optim) -> schedule.Curve:
    """Return the schedule of the rate over the steps of a plan whose samples are counted."""
    if plan.total_steps is None:
        raise AssertionError("only of a plan that trains")
    return schedule.Curve(
        shape=optim.schedule,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps or 0,
        decay=optim.decay,
        decay_every_steps=plan.decay_every_steps or 0,
        milestone_steps=plan.milestone_steps or (),
        decay_over_steps=plan.decay_over_steps or 0,
        floor=optim.floor,
        power=optim.power,
        rise_steps=plan.rise_steps or 1,
        start=optim.start,
        legs=optim.legs,
        cycle_momentum=optim.cycle_momentum,
        period_steps=plan.period_steps or 1,
        period_growth=optim.period_growth,
    )
