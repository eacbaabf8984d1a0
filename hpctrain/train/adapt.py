"""What the config asks of any model, whoever wrote it: how it norms, how it lies in memory, how it is compiled."""

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpctrain import norms
from hpctrain.config.schema import Config
from hpctrain.data.cache import user_directory
from hpctrain.dist.comm import Comm
from hpctrain.errors import UsageError
from hpctrain.models import batch_norm
from hpctrain.plan import Plan


class Adapted(NamedTuple):
    """A model as the config wants it."""

    model: nn.Module
    """What is evaluated and saved."""
    trained: Callable[[nn.Module], nn.Module]
    """Gives what is trained: the same, or the same compiled."""
    attendance: batch_norm.Attendance
    """To be told which passes do not count."""
    settling: Callable[[], AbstractContextManager[object]]
    """Gives a context in which nothing is compiled, for passes with a batch of another size that only settle things."""


def adapt(model: nn.Module, config: Config, plan: Plan, comm: Comm) -> Adapted:
    """Adapt a model that was just built; names of parameters and buffers stay.

    Raises:
        UsageError: what is asked for does nothing for this model, or cannot work.
    """
    if config.model is None or config.train is None:
        raise AssertionError("a config that trains has these sections")
    attendance = batch_norm.Attendance()
    model = _normed(model, config, plan, comm, attendance)
    if config.train.channels_last is not None:
        _lay(model, channels_last=config.train.channels_last)
    if config.train.compile:
        return Adapted(model, _compiled, attendance, lambda: torch.compiler.set_stance("force_eager"))
    return Adapted(model, lambda same: same, attendance, contextlib.nullcontext)


def _normed(model: nn.Module, config: Config, plan: Plan, comm: Comm, attendance: batch_norm.Attendance) -> nn.Module:
    if config.model is None:
        raise AssertionError("a config that trains has these sections")
    kind = config.model.batch_norm
    if not batch_norm.norms(model):
        if kind != "local":
            raise UsageError(
                f"model.batch_norm: {kind}, but {config.model.name} has no batch norm", "remove model.batch_norm"
            )
        return model
    too_few = norms.problem(config, samples=plan.train_samples, global_batch=plan.global_batch or 0, ranks=plan.ranks,
                            accumulate=plan.accumulate or 1)  # fmt: skip
    if too_few is not None:
        message, _, hint = too_few.message.rpartition("; ")
        raise UsageError(f"{too_few.key}: {message}", hint)
    if kind == "ghost":
        group = config.model.ghost_batch or norms.GHOST_BATCH
        return batch_norm.replace(model, lambda old, _: batch_norm.GhostBatchNorm(old, group))
    if kind == "sync" and comm.size > 1:
        return batch_norm.replace(model, lambda old, name: batch_norm.SyncBatchNorm(old, name, comm.gather, attendance))
    return model


def _lay(model: nn.Module, *, channels_last: bool) -> None:
    """Let the channels of weights be the last dimension in memory, or not; activations follow them.

    Raises:
        UsageError: no weight has channels, height and width.
    """
    if not any(part.ndim == 4 for part in model.parameters()):
        raise UsageError("train.channels_last: the model has no convolution of images", "remove it")
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Pictures may come with channels last, which convolutions would follow."""
        return tuple(part.contiguous() for part in inputs)

    model.register_forward_pre_hook(contiguous)


def _compiled(model: nn.Module) -> nn.Module:
    """Compile a model, once for each shape of a batch.

    Sizes are never guessed to vary: what is compiled for a batch must not depend on those that came before, or a
    resumed run would compute other bits.

    Raises:
        UsageError: nothing can be compiled here.
    """
    device = next(model.parameters()).device
    cache = user_directory()
    if cache is not None:  # torch's own choice is a directory in /tmp that another user could have made first
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    try:
        torch.compile(_twice, dynamic=False)(torch.ones(2, device=device))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"train.compile: torch.compile does not work here for {device.type}: {reason}",
            "it needs a C++ compiler such as g++ (env.modules, or CXX names it), on GPUs Triton, too; or "
            "train.compile=false",
        ) from error
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


def _twice(values: Tensor) -> Tensor:
    return values * 2
