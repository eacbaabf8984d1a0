"""Everything before the first step: check what is here against the plan, build the parts, find where to go on."""

import functools
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpctrain.config.schema import Config
from hpctrain.data.dataset import Dataset, Wanted
from hpctrain.data.load import load
from hpctrain.dist.comm import Comm, Step
from hpctrain.errors import DataError, HpctrainError, JobError, WorldError
from hpctrain.manifest import Manifest
from hpctrain.models import build as models
from hpctrain.models.freeze import freeze
from hpctrain.plan import Plan, rate
from hpctrain.rundir import RunDir
from hpctrain.schedule import lr_at
from hpctrain.train import objective as objectives
from hpctrain.train import optim, rng, space
from hpctrain.train.average import Average
from hpctrain.train.checkpoint import Checkpoints
from hpctrain.train.grace import Grace
from hpctrain.train.objective import Objective
from hpctrain.train.precision import Precision
from hpctrain.train.saver import Saver
from hpctrain.train.snapshot import Buffers, checkpoint_bytes
from hpctrain.world import World


class Numbers(NamedTuple):
    """The numbers of a plan that trains: all of them are known."""

    train_samples: int
    validation_samples: int
    test_samples: int
    global_batch: int
    accumulate: int
    lr_used: float
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    decay_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int
    log_every_steps: int


class Parts(NamedTuple):
    """What one rank trains with."""

    data: Dataset
    model: nn.Module
    step: Step
    precision: Precision
    objective: Objective


def planned(config: Config, plan: Plan, world: World, comm: Comm) -> Numbers:
    """Take the plan's numbers, after the ranks that are here and the scaled rate were checked against it.

    Raises:
        WorldError: other ranks or another rate than planned.
    """
    numbers = {name: getattr(plan, name) for name in Numbers._fields}
    if None in numbers.values() or config.optim is None:
        raise AssertionError("the launcher lets no plan pass that has unknown numbers")
    met = int(comm.sum(torch.tensor([1])).item())
    if not (met == comm.size == world.size == plan.ranks and comm.rank == world.rank):
        raise WorldError(
            f"{world} met {met} ranks in a group of {comm.size}; {plan.ranks} are planned",
            "start the run again with as many ranks as the plan says",
        )
    lr = rate(plan, config)
    if lr != plan.lr_used:
        raise WorldError(f"the config gives the learning rate {lr:g}, the plan has {plan.lr_used:g}")
    return Numbers(**numbers)


def parts(config: Config, plan: Plan, numbers: Numbers, comm: Comm, device: torch.device) -> Parts:
    """Build data, model and optimizer, and make the model train on all ranks.

    Raises:
        DataError: the dataset cannot be read, or is not the planned one.
        UsageError: the user's model cannot be found, or model, loss or metrics do not fit the data.
        JobError: the user's model or loss failed, or returns something else than it must.
    """
    if config.data is None or config.model is None or config.optim is None:
        raise AssertionError("a config that trains has these sections")
    precision = Precision(config.precision, device)
    data = load(config.data, plan, device=device, dtype=precision.dtype)
    _check_counts(config.data.dataset, data, numbers)
    for note in data.notes if comm.rank == 0 else ():
        print(f"hpctrain: {note}", flush=True)
    objective = objectives.build(config, data)
    model = models.build(config.model, shape=data.shape, outputs=objective.outputs, seed=plan.seed)
    model = model.to(device, precision.dtype)
    freeze(model, config.model.freeze)
    objective.auxiliary_weight = float(getattr(model, "auxiliary_weight", objective.auxiliary_weight))
    scaler = precision.scaler()
    optimizer = optim.build(config.optim, model.parameters(), scaled=scaler is not None)
    example, targets = next(data.train.stream([Wanted(torch.arange(min(2, numbers.train_samples)))]))
    with precision.arithmetic():
        _try_out(model, example, targets, objective, config.model.name)
        step = comm.wrap(model, optimizer, example=example, passes=numbers.accumulate, scaler=scaler)
    return Parts(data, model, step, precision, objective)


def resume(
    checkpoints: Checkpoints,
    comm: Comm,
    model: nn.Module,
    step: Step,
    average: Average | None,
    device: torch.device,
) -> Manifest | None:
    """Shut out older attempts, then restore the newest checkpoint that verifies; None if there is none yet.

    Raises:
        CheckpointError: it does not fit the config, this attempt is outdated, or all that are there are damaged.
    """
    if comm.rank == 0:
        checkpoints.fence()
    return restore(checkpoints, comm, model, step, average, device)


def restore(
    checkpoints: Checkpoints,
    comm: Comm,
    model: nn.Module,
    step: Step,
    average: Average | None,
    device: torch.device,
) -> Manifest | None:
    """Put the newest checkpoint that verifies into what is trained; None if there is none yet.

    Rank 0 chooses, so that all go on from the same.

    Raises:
        CheckpointError: it does not fit the config, or all that are there are damaged.
    """
    choice = b""
    if comm.rank == 0:
        manifest, damaged = checkpoints.newest()
        for message in damaged:
            print(f"hpctrain: skipped a checkpoint: {message}", flush=True)
        if manifest is not None:
            choice = manifest.encode()
    choice = comm.broadcast(choice)
    if not choice:
        return None
    manifest = msgspec.json.decode(choice, type=Manifest)
    notes = checkpoints.load(manifest, model, step, average, rank=comm.rank, device=device)
    if comm.rank == 0:
        print(f"hpctrain: going on from step {manifest.step}, saved by {manifest.ranks} ranks", flush=True)
        for note in notes:
            print(f"hpctrain: {note}", flush=True)
    return manifest


def saver(
    run: RunDir,
    checkpoints: Checkpoints,
    config: Config,
    model: nn.Module,
    device: torch.device,
    *,
    steps: int,
    ranks: int,
    debug: bool,
    grace: Grace | None,
) -> Saver | None:
    """Return what saves, on rank 0, the one that has a `grace`; on the others None.

    Raises:
        DiskFullError: there are `steps` to do, and no room for their checkpoints.
    """
    if grace is None:
        return None
    if steps:
        rows = {name: state.expand(ranks, -1) for name, state in rng.capture(device).items()}
        space.check(run, config.checkpoint, checkpoint_bytes(config, model, rows))
    return Saver(
        checkpoints, Buffers(device), background=config.checkpoint.background and not debug, on_saved=grace.saved
    )


def rate_of(config: Config, numbers: Numbers) -> functools.partial[float]:
    """Return the learning rate as a function of the step alone."""
    if config.optim is None:
        raise AssertionError("a config that trains has an optimizer")
    return functools.partial(
        lr_at,
        peak=numbers.lr_used,
        shape=config.optim.schedule,
        warmup_steps=numbers.warmup_steps,
        total_steps=numbers.total_steps,
        decay=config.optim.decay,
        decay_every_steps=numbers.decay_every_steps,
    )


def check_step(optimizer: Optimizer, lr: float, mine: int, samples: int, comm: Comm, plan: Plan) -> None:
    """In the first and the last step: the ranks together did the planned batch at the planned rate.

    Raises:
        WorldError: they did not.
    """
    used = {group["lr"] for group in optimizer.param_groups}
    ranks, taken = comm.sum(torch.tensor([1, mine])).tolist()
    if (ranks, taken) != (plan.ranks, samples) or used != {lr}:
        raise WorldError(
            f"a step took {taken} samples on {ranks} ranks at the rate {sorted(used)}; planned are {samples} on "
            f"{plan.ranks} at {lr}"
        )


def _check_counts(name: str, data: Dataset, numbers: Numbers) -> None:
    """Refuse other samples than planned.

    Raises:
        DataError: there are more or fewer.
    """
    apart = 0 if data.validation is None else data.validation.count
    if (data.train.count, data.test.count) != (numbers.train_samples, numbers.test_samples):
        raise DataError(
            f"{name} has {data.train.count} training and {data.test.count} test samples; "
            f"{numbers.train_samples} and {numbers.test_samples} are planned",
            "the files changed after the run was submitted; submit it again",
        )
    if apart != numbers.validation_samples:
        raise DataError(
            f"{name} has {apart} validation samples; {numbers.validation_samples} are planned",
            "the files changed after the run was submitted; submit it again",
        )


def _try_out(model: nn.Module, example: Tensor, targets: Tensor, objective: Objective, name: str) -> None:
    """Let model and loss see one small batch before anything else depends on them."""
    training = model.training
    model.eval()  # so that running averages stay as they are
    try:
        with torch.no_grad():
            logits = model(example)
    except HpctrainError:
        raise
    except Exception as error:
        raise JobError(
            f"model.name: {name} failed on a batch of shape {tuple(example.shape)}: {type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (len(example), objective.outputs):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise JobError(
            f"model.name: {name} gives {got} for {'inputs' if example.ndim == 2 else 'images'} of shape "
            f"{tuple(example.shape)}",
            _wanted_outputs(objective),
        )
    objective.loss(logits.to(example.dtype), targets)
    if not any(part.requires_grad for part in model.parameters()):
        raise JobError(f"model.name: {name} has no parameters to train")


def _wanted_outputs(objective: Objective) -> str:
    if not objective.classes:
        return "it must return numbers of shape (B, 1), what it predicts for each sample"
    if objective.outputs == 1:
        return "it must return logits of shape (B, 1), for the second of the two classes; see loss in docs/config.md"
    return f"it must return logits of shape (B, {objective.outputs}), one for each class"
