"""Everything before the first step: check what is here against the plan, and build the parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpctrain.config.optim import Settings
from hpctrain.config.schema import Config
from hpctrain.data.dataset import Dataset, Wanted
from hpctrain.data.load import load
from hpctrain.dist.comm import Comm, Step
from hpctrain.errors import DataError, HpctrainError, JobError, WorldError
from hpctrain.models import build as models
from hpctrain.models.batch_norm import Attendance
from hpctrain.models.freeze import freeze
from hpctrain.plan import Plan, settings
from hpctrain.train import objective as objectives
from hpctrain.train import optim
from hpctrain.train.adapt import adapt
from hpctrain.train.average import Average
from hpctrain.train.objective import Objective, shown
from hpctrain.train.precision import Precision
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
    attendance: Attendance


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
    asked, used = settings(plan, config), _used(plan, numbers["lr_used"])
    for name, what in (("lr", "the learning rate"), ("betas", "betas"), ("alpha", "alpha"), ("eps", "eps")):
        if (wanted := getattr(asked, name)) != (planned := getattr(used, name)):
            raise WorldError(f"the config gives {what} {wanted}, the plan has {planned}")
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
    objective.auxiliary_weight = float(getattr(model, "auxiliary_weight", objective.auxiliary_weight))
    adapted = adapt(model.to(device, precision.dtype), config, plan, comm)
    model = adapted.model
    freeze(model, config.model.freeze)
    scaler = precision.scaler()
    groups = optim.groups(config.optim, model, config.model.name)
    used = _used(plan, numbers.lr_used)
    optimizer = optim.build(config.optim, groups, scaled=scaler is not None, used=used)
    example, targets = next(data.train.stream([Wanted(torch.arange(min(2, numbers.train_samples)))]))
    with precision.arithmetic():
        _try_out(model, example, targets, objective, config.model.name)
        trained = adapted.trained(model)
        with adapted.settling(), _watched(model, objective, precision.dtype):
            step = comm.wrap(trained, optimizer, example=example, passes=numbers.accumulate, scaler=scaler)
    return Parts(data, model, step, precision, objective, adapted.attendance)


def _used(plan: Plan, lr: float) -> Settings:
    return Settings(lr=lr, betas=plan.betas_used, alpha=plan.alpha_used, eps=plan.eps_used)


def average(config: Config, model: nn.Module) -> Average | None:
    """Return the moving average of the weights, where one is asked for."""
    decay = None if config.train is None else config.train.ema
    return None if decay is None else Average(model, decay)


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
        raise JobError(
            f"model.name: {name} gives {shown(logits)} for {'inputs' if example.ndim == 2 else 'images'} of shape "
            f"{tuple(example.shape)}",
            objective.wanted(),
        )
    objective.loss(logits.to(example.dtype).requires_grad_(), targets)  # so that a loss without gradient is told
    if not any(part.requires_grad for part in model.parameters()):
        raise JobError(f"model.name: {name} has no parameters to train")


@contextmanager
def _watched(model: nn.Module, objective: Objective, dtype: torch.dtype) -> Iterator[None]:
    """Look at what the model gives in passes of training that DDP and Horovod make before the first step."""

    def look(_: nn.Module, inputs: tuple[Tensor, ...], outputs: object) -> None:
        objective.heads(outputs, len(inputs[0]), dtype)

    hook = model.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
