"""The helpers of practice: overfit a few batches, find a rate, evaluate a checkpoint. Each is a task of `trial`."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from hpctrain import plan as planning
from hpctrain import task as tasks
from hpctrain.config.datasets import Augment, Data
from hpctrain.config.load import Loaded, load
from hpctrain.config.schema import Batch, Checkpoint, Config, Log, Optim, Train
from hpctrain.errors import JobError, UsageError
from hpctrain.launch import checkpoints, ready, trial
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir

Split = Literal["train", "validation", "test"]
_MAY_DIFFER = ("device", "precision", "data.path", "data.workers", "data.stage", "slurm.", "dist.", "env.")
"""What an evaluation may change of the frozen config: where it runs, not what it evaluates."""
_SWEEPS, _LEAST_STEPS = 100, 300


def overfit(loaded: Loaded, batches: int, *, ranks: int | None, steps: int | None) -> str:
    """Learn `batches` batches by heart; return the verdict.

    Raises:
        JobError: they were not learned; the message says what to look at.
        UsageError: an epoch has fewer batches.
    """
    plain = _plain(loaded)
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
    found = trial.perform(plain, tasks.Overfit(batches=batches, steps=most), ranks=ranks).or_raise()
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
    if not 0 < low < high:
        raise UsageError(f"--from {low:g} --to {high:g}: the first must be greater than 0 and less than the second")
    if picture is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError("--picture needs matplotlib", "pip install 'hpctrain[report]', or leave --picture out")
        picture = picture.absolute()
        if not picture.parent.is_dir():
            raise UsageError(f"--picture: {picture.parent} is no directory", "give a place that is there")
    task = tasks.FindLr(low=low, high=high, steps=steps, picture=None if picture is None else str(picture))
    found = trial.perform(loaded, task, ranks=ranks).or_raise()
    found["type"] = f"optim.lr={found['lr']:g} optim.base_batch={found['base_batch']}"
    return found


def evaluate(run: RunDir, *, split: Split, ckpt: str, ranks: int | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Evaluate a checkpoint of a run on one of its splits, on this machine.

    Args:
        run: the run; nothing of it is changed.
        split: train (without augmentation), validation or test.
        ckpt: newest, best, or a step.
        ranks: how many to start.
        overrides: `key=value`, of where it runs.

    Raises:
        UsageError: there is no such checkpoint or split, or an override changes what is evaluated.
        CheckpointError: the checkpoint is damaged.
        JobError: it failed.
    """
    for override in overrides:
        if not override.startswith(_MAY_DIFFER):
            raise UsageError(
                f"{override}: an evaluation is of the run as it was trained",
                f"only where it runs may differ: {', '.join(key.rstrip('.') for key in _MAY_DIFFER)}",
            )
    manifest = checkpoints.choose(run, None if ckpt == "newest" else ckpt)
    loaded = load(run.config, overrides)
    before = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    if split == "validation" and not before.validation_samples:
        raise UsageError(f"{run.name} has no validation set", "--split test, or --split train")
    plain = loaded.replaced(_for_evaluation(loaded.config))
    _refuse_other_data(before, ready.make_plan(plain, "local", ranks))
    task = tasks.Evaluate(run=str(run.path), step=manifest.step, split=split)
    found = trial.perform(plain, task, ranks=ranks, code_of=run).or_raise()
    return {"run": run.name, **found}


def _for_evaluation(config: Config) -> Config:
    """Leave out of a config what is of training alone, so that any number of ranks may evaluate."""
    if config.data is None or config.model is None:
        raise UsageError("this run is of a command; only hpctrain's own training can be evaluated")
    return msgspec.structs.replace(
        config,
        data=_unvaried(config.data),
        model=msgspec.structs.replace(config.model, weights=None, weights_skip=(), freeze=()),
        batch=Batch(per_rank=1),
        optim=Optim(lr=1.0),
        train=Train(steps=1),
        checkpoint=Checkpoint(),
        log=Log(),
        dist=msgspec.structs.replace(config.dist, ranks=None),
    )


def _unvaried(data: Data) -> Data:
    """Leave all augmentation out; only encoded pictures are cropped where nothing is said."""
    crop: Literal["auto", "none"] = "none" if data.dataset in {"folder", "shards"} else "auto"
    return msgspec.structs.replace(data, augment=Augment(crop=crop))


def _refuse_other_data(before: Plan, now: Plan) -> None:
    for what in ("train_samples", "validation_samples", "test_samples", "data_digest"):
        was, there = getattr(before, what), getattr(now, what)
        if was != there:
            raise UsageError(
                f"the run was trained with {what.replace('_', ' ')} {was}, now there are {there}",
                "the files have changed; give those of the run: data.path=DIR",
            )


def _plain(loaded: Loaded) -> Loaded:
    """Leave out what keeps a model from learning by heart."""
    config = loaded.config
    if config.data is None or config.optim is None or config.train is None:
        raise UsageError("a command trains by itself; --overfit is for hpctrain's own training")
    return loaded.replaced(
        msgspec.structs.replace(
            config,
            data=_unvaried(config.data),
            optim=msgspec.structs.replace(config.optim, weight_decay=0.0),
            train=msgspec.structs.replace(config.train, l1=0.0, l2=0.0, max_norm=None, stop_early=None),
        )
    )


def ranks_of(loaded: Loaded, ranks: int | None) -> int:
    """Return how many ranks would run here."""
    return planning.layout_here(loaded, ranks).ranks
