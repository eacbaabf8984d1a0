"""config -> Plan: ranks, batches, steps and rates. Pure: the launcher prints a plan, the ranks assert the same one."""

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from hpctrain import norms, schedule
from hpctrain.config.duration import Duration
from hpctrain.config.load import Loaded
from hpctrain.config.models import has_batch_norm
from hpctrain.config.optim import Optim, asked
from hpctrain.config.scalars import LARGEST
from hpctrain.config.schema import Config
from hpctrain.errors import ConfigError
from hpctrain.planned import Launcher, Layout, Plan, Samples, Weights, curve, settings

__all__ = [
    "Launcher", "Layout", "Plan", "Samples", "Weights", "curve", "layout_here", "layout_on_slurm",
    "make", "settings",
]  # fmt: skip

_FROM = {
    "ranks": "slurm.nodes",
    "global_batch": "batch.per_rank",
    "total_steps": "train.epochs",
    "warmup_steps": "optim.warmup",
    "decay_every_steps": "optim.decay_every",
    "decay_over_steps": "optim.decay_over",
    "rise_steps": "optim.rise",
    "period_steps": "optim.period",
    "eval_every_steps": "train.eval_every",
    "checkpoint_every_steps": "checkpoint.every",
    "log_every_steps": "log.every",
}
"""Numbers of a plan that can become too large, and the keys that make them so."""


def layout_on_slurm(loaded: Loaded) -> Layout:
    """Ranks of a Slurm job: nodes x (ranks_per_node, else gpus_per_node, else 1).

    Raises:
        ConfigError: `dist.ranks` asks for another number.
    """
    slurm, asked = loaded.config.slurm, loaded.config.dist.ranks
    layout = Layout(
        nodes=slurm.nodes,
        ranks_per_node=slurm.ranks_per_node or slurm.gpus_per_node or 1,
        launcher=loaded.config.dist.launcher,
    )
    if asked is not None and asked != layout.ranks:
        raise ConfigError([
            loaded.problem(
                "dist.ranks",
                f"{asked} ranks are asked for, but slurm gives {layout.nodes} nodes x {layout.ranks_per_node} = "
                f"{layout.ranks}; change slurm.nodes or slurm.ranks_per_node, or leave dist.ranks out",
            )
        ])  # fmt: skip
    return layout


def layout_here(loaded: Loaded, ranks: int | None = None) -> Layout:
    """Ranks on this machine: `ranks`, else dist.ranks, else those of one node."""
    slurm, dist = loaded.config.slurm, loaded.config.dist
    ranks = ranks or dist.ranks or slurm.ranks_per_node or slurm.gpus_per_node or 1
    by_mpi = ranks > 1 and (dist.backend == "mpi" or dist.horovod.op == "adasum")
    return Layout(nodes=1, ranks_per_node=ranks, launcher="mpirun" if by_mpi else "local")


def make(
    loaded: Loaded, layout: Layout, samples: Samples, weights: Weights | None = None, *, trains: bool = True
) -> Plan:
    """Work out the plan.

    Args:
        loaded: the config.
        layout: of the ranks.
        samples: what is known of the dataset.
        weights: what `model.weights` names.
        trains: False for an evaluation, to which it does not matter how many samples a batch norm would see.

    Raises:
        ConfigError: the numbers do not fit, such as a global batch that the ranks do not divide.
    """
    config = loaded.config
    device: Literal["cpu", "cuda"] = (
        config.device if config.device != "auto" else "cuda" if config.slurm.gpus_per_node else "cpu"
    )
    backend = _backend(config, layout, device)
    problems = list(_unsuited(loaded, layout, device, backend))
    base = Plan(
        name=config.name,
        seed=config.seed,
        nodes=layout.nodes,
        ranks_per_node=layout.ranks_per_node,
        ranks=layout.ranks,
        device=device,
        strategy=config.dist.strategy,
        backend=backend,
        launcher=layout.launcher,
        precision=config.precision,
        weights_path=None if weights is None else weights.path,
        weights_sha256=None if weights is None else weights.sha256,
    )
    if config.dist.horovod.op == "adasum" and base.ranks & (base.ranks - 1):
        problems.append(loaded.problem("dist.horovod.op", _no_power_of_two(base.ranks)))
    if config.command is None:
        base = _training(base, loaded, samples, problems, trains=trains)
    if not problems:
        problems += _unusable(base, loaded)
    if problems:
        raise ConfigError(problems)
    return base


def _unsuited(loaded: Loaded, layout: Layout, device: str, backend: str) -> Iterator[str]:
    """Yield what the devices of the ranks cannot do."""
    config, gpus = loaded.config, loaded.config.slurm.gpus_per_node
    if backend == "nccl" and device == "cpu":
        message = "nccl needs GPUs, but the device is cpu; use auto or gloo, or device: cuda"
        yield loaded.problem("dist.backend", message)
    if device == "cuda" and 0 < gpus < layout.ranks_per_node:
        yield loaded.problem(
            "slurm.ranks_per_node" if config.slurm.ranks_per_node else "slurm.gpus_per_node",
            f"{layout.ranks_per_node} ranks share {gpus} GPUs of a node; "
            "give each rank its own GPU, or use device: cpu",
        )
    if config.precision == "tf32" and device == "cpu":
        message = "tf32 is a format of GPUs, and the device is cpu; use fp32 or bf16, or device: cuda"
        yield loaded.problem("precision", message)


def _backend(config: Config, layout: Layout, device: str) -> Literal["gloo", "nccl", "mpi"]:
    if config.dist.backend != "auto":
        return config.dist.backend
    if config.dist.strategy == "horovod":
        return "mpi" if layout.launcher == "mpirun" or config.dist.horovod.op == "adasum" else "gloo"
    return "nccl" if device == "cuda" else "gloo"


def _no_power_of_two(ranks: int) -> str:
    below = 1 << (ranks.bit_length() - 1)
    return (
        f"adasum joins pairs of ranks, so their number must be a power of two, not {ranks}; "
        f"use {below} or {2 * below} ranks"
    )


def _unusable(plan: Plan, loaded: Loaded) -> list[str]:
    """Say which numbers of a plan cannot be written down, or trained with."""
    config = loaded.config
    numbers = {name: getattr(plan, name) or 0 for name in _FROM}
    problems = [
        loaded.problem(_FROM[name], f"{name} becomes {number}; use a smaller number, it must fit in 64 bits")
        for name, number in numbers.items()
        if number > LARGEST
    ]
    if config.optim is not None:
        problems += [loaded.problem(key, message) for key, message in _unfit(plan, config.optim)]
    if plan.lr_used is not None and not math.isfinite(plan.lr_used):
        problems.append(
            loaded.problem(
                "optim.lr",
                f"the rate that is used is {plan.lr_used:g}: lr {plan.lr_asked:g} x global batch {plan.global_batch} / "
                "base_batch; use a smaller lr, a larger base_batch or scale: none",
            )
        )
    return problems


def _unfit(plan: Plan, optim: Optim) -> Iterator[tuple[str, str]]:
    """Yield what of the optimizer does not fit to batch and steps: the key to blame, and a message."""
    smoothing, before = [*(plan.betas_used or ()), plan.alpha_used or 0.0], asked(optim)
    if min(smoothing) < 0 and optim.base_batch is not None:
        forgets = 1 - min([*(before.betas or ()), 1.0 if before.alpha is None else before.alpha])
        largest, name = math.floor(optim.base_batch / forgets), "beta" if plan.betas_used else "alpha"
        message = f"sqrt makes 1 - {name} larger than 1 for a global batch of {plan.global_batch}"
        yield "optim.scale", f"{message}; it goes up to {largest}, else use scale: linear or none"
    use = "use fewer" if plan.total_steps != 1 else "train for longer"
    if optim.schedule == "onecycle" and plan.total_steps is not None and (plan.rise_steps or 0) >= plan.total_steps:
        yield (
            "optim.rise",
            f"{plan.rise_steps} of {plan.total_steps} steps leave none for the way down; {use}",
        )
    end = plan.decay_over_steps
    if end and plan.warmup_steps and end <= plan.warmup_steps and optim.schedule in {"linear", "cosine", "polynomial"}:
        yield "optim.decay_over", f"step {end} is not after the warm-up of {plan.warmup_steps} steps; give more"


def _training(base: Plan, loaded: Loaded, samples: Samples, problems: list[str], *, trains: bool) -> Plan:
    """Add the batch, the steps and the rates to a plan; what does not fit goes to `problems`."""
    config = loaded.config
    batch, optim, train = config.batch, config.optim, config.train
    if batch is None or optim is None or train is None:
        raise AssertionError("hpctrain.config.check lets no such config pass")
    passes = base.ranks * batch.accumulate
    per_rank = batch.per_rank or 0
    if batch.global_ is not None:
        per_rank, rest = divmod(batch.global_, passes)
        if rest or not per_rank:
            problems.append(loaded.problem("batch.global", _indivisible(batch.global_, base.ranks, batch.accumulate)))
            return base
    global_batch = per_rank * passes
    base = msgspec.structs.replace(
        base,
        data_path=samples.path,
        data_digest=samples.digest,
        train_samples=samples.train,
        validation_samples=samples.validation,
        test_samples=samples.test,
        batch_per_rank=per_rank,
        accumulate=batch.accumulate,
        global_batch=global_batch,
        lr_asked=optim.lr,
    )
    if config.log.noise_scale and passes == 1:
        hint = "one pass of one rank has no smaller batch to compare with; use batch.accumulate=2, or more ranks"
        problems.append(loaded.problem("log.noise_scale", hint))
    used = settings(base, config)
    base = msgspec.structs.replace(
        base, lr_used=used.lr, betas_used=used.betas, alpha_used=used.alpha, eps_used=used.eps
    )
    if trains and config.model is not None and has_batch_norm(config.model):
        too_few = norms.problem(config, samples=samples.train, global_batch=global_batch, ranks=base.ranks,
                                accumulate=batch.accumulate)  # fmt: skip
        problems += [] if too_few is None else [loaded.problem(*too_few)]
    if samples.train is None:
        return base
    steps_per_epoch = samples.train // global_batch if batch.tail == "drop" else -(-samples.train // global_batch)
    if steps_per_epoch == 0:
        problems.append(
            loaded.problem(
                "batch.global" if batch.global_ else "batch.per_rank",
                f"the global batch of {global_batch} is larger than the {samples.train} training samples, and "
                "tail: drop leaves nothing; use a smaller batch or tail: keep",
            )
        )
        return base
    return _lengths(msgspec.structs.replace(base, steps_per_epoch=steps_per_epoch), config, samples.train)


def _lengths(base: Plan, config: Config, samples: int) -> Plan:
    """Add what is counted in steps of so many samples of training to a plan that has its batch."""
    batch, optim, train, steps_per_epoch = config.batch, config.optim, config.train, base.steps_per_epoch
    if batch is None or optim is None or train is None or steps_per_epoch is None or base.global_batch is None:
        raise AssertionError("a plan of a training has these")
    total = train.steps or (train.epochs or 0) * steps_per_epoch

    def steps(length: Duration) -> int:
        return schedule.to_steps(length, steps_per_epoch=steps_per_epoch, total_steps=total)

    return msgspec.structs.replace(
        base,
        samples_per_rank=-(-samples // base.ranks)
        if batch.tail == "keep"
        else steps_per_epoch * (base.global_batch // base.ranks),
        total_steps=total,
        warmup_steps=steps(optim.warmup),
        decay_every_steps=steps(optim.decay_every),
        decay_over_steps=0 if optim.decay_over is None else steps(optim.decay_over),
        milestone_steps=tuple(map(steps, optim.milestones)),
        rise_steps=steps(optim.rise),
        period_steps=steps(optim.period),
        eval_every_steps=steps(train.eval_every),
        checkpoint_every_steps=steps(config.checkpoint.every),
        log_every_steps=steps(config.log.every),
    )


def _indivisible(global_batch: int, ranks: int, accumulate: int) -> str:
    passes = ranks * accumulate
    below, above = global_batch // passes * passes, (global_batch // passes + 1) * passes
    near = f"{below} or {above}" if below else f"{above}"
    return (
        f"a global batch of {global_batch} cannot be split evenly over {ranks} ranks x {accumulate} passes; "
        f"use batch.global={near}"
    )
