"""The helpers of practice: overfit a few batches, find a rate. Each is a task of `trial`."""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from hpctrain import task as tasks
from hpctrain.config.datasets import Augment, Data
from hpctrain.config.load import Loaded
from hpctrain.config.schema import Config
from hpctrain.errors import JobError, UsageError
from hpctrain.launch import ready, trial
from hpctrain.plan import Plan, settings

_SWEEPS, _LEAST_STEPS = 100, 300


def overfit(loaded: Loaded, batches: int, *, ranks: int | None, steps: int | None) -> str:
    """Learn `batches` batches by heart; return the verdict.

    Raises:
        JobError: they were not learned; the message says what to look at.
        UsageError: an epoch has fewer batches.
    """
    plain = _plain(trial.own(loaded))
    plan = ready.make_plan(plain, "local", ranks)
    if plan.steps_per_epoch is not None and batches > plan.steps_per_epoch:
        raise UsageError(
            f"--overfit {batches}: an epoch has {plan.steps_per_epoch} batches",
            f"give at most {plan.steps_per_epoch}, such as --overfit {min(5, plan.steps_per_epoch)}",
        )
    most = steps or max(_SWEEPS * batches, _LEAST_STEPS)
    print(
        f"hpctrain: {batches} batches again and again, for at most {most} steps at a constant rate, without "
        "augmentation, decay of weights and dropout",
        file=sys.stderr,
    )
    found = trial.perform(plain, plan, tasks.Overfit(batches=batches, steps=most)).or_raise()
    score = "no number" if found["score"] is None else f"{found['score']:.2f}"
    told = f"{found['score_name']} {score} after {found['steps']} steps"
    if found["learned"]:
        return f"learned {batches} batches: {told}"
    raise JobError(f"did not learn {batches} batches: {told}", found["reason"])


def find_lr(
    loaded: Loaded, *, ranks: int | None, low: float, high: float, steps: int, picture: Path | None
) -> dict[str, Any]:
    """Run a learning rate range test; return rates, losses and what to type.

    Raises:
        UsageError: the bounds are none, or a picture cannot be made.
        JobError: no rate can be suggested.
    """
    if not 0 < low < high < math.inf:
        raise UsageError(
            f"--from {low:g} --to {high:g}: both must be finite, the first greater than 0 and less than the second",
            "such as --from 1e-6 --to 10",
        )
    if picture is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError("--picture needs matplotlib", "pip install 'hpctrain[report]', or leave --picture out")
        picture = picture.absolute()
        if not picture.parent.is_dir():
            raise UsageError(f"--picture: {picture.parent} is no directory", "give a place that is there")
    task = tasks.FindLr(low=low, high=high, steps=steps, picture=None if picture is None else str(picture))
    loaded = trial.own(loaded)
    plan = ready.make_plan(loaded, "local", ranks)
    found = trial.perform(loaded, plan, task).or_raise()
    return found | typed(loaded.config, plan, found["lr"])


def typed(config: Config, plan: Plan, rate: float) -> dict[str, Any]:
    """Say what to type so that this very batch is trained at a rate, with what else the batch has scaled as it is.

    Args:
        config: whose batch and optimizer were tried.
        plan: made from it.
        rate: that is wanted.

    Returns:
        lr, the rate that is used then; base_batch, for which that is; and type.
    """
    optim = config.optim
    if optim is None or plan.lr_asked is None or plan.lr_used is None:
        raise AssertionError("a config that trains has an optimizer")
    asked = float(f"{rate * plan.lr_asked / plan.lr_used:.2g}")
    lr = settings(plan, msgspec.structs.replace(config, optim=msgspec.structs.replace(optim, lr=asked))).lr
    words = f"optim.lr={asked:g}"
    if optim.base_batch is None and optim.scale != "none" and config.dist.horovod.op != "adasum":
        words += f" optim.base_batch={plan.global_batch}"  # so that another batch scales it
    return {"lr": lr, "base_batch": plan.global_batch, "type": words}


def unvaried(data: Data) -> Data:
    """Leave all augmentation out; only encoded pictures are cropped where nothing is said."""
    crop: Literal["auto", "none"] = "none" if data.dataset in {"folder", "shards"} else "auto"
    return msgspec.structs.replace(data, augment=Augment(crop=crop))


def _plain(loaded: Loaded) -> Loaded:
    """Leave out what keeps a model from learning by heart."""
    config = loaded.config
    if config.data is None or config.optim is None or config.train is None:
        raise AssertionError("a config that trains has these sections")
    return loaded.replaced(
        msgspec.structs.replace(
            config,
            data=unvaried(config.data),
            optim=msgspec.structs.replace(config.optim, weight_decay=0.0),
            train=msgspec.structs.replace(config.train, l1=0.0, l2=0.0, max_norm=None, stop_early=None),
        )
    )
