"""`hpctrain eval`: a checkpoint of a run on one of its splits, with the code, the data and the config of the run."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from hpctrain import task as tasks
from hpctrain.config.load import Loaded, load
from hpctrain.config.schema import Batch, Checkpoint, Config, Log, Optim, Train
from hpctrain.errors import CheckpointError, UsageError
from hpctrain.launch import checkpoints, ready, trial
from hpctrain.launch.practice import unvaried
from hpctrain.manifest import MANIFEST, Manifest
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir

Split = Literal["train", "validation", "test"]
_MAY_DIFFER = ("device", "precision", "data.path", "data.workers", "data.stage", "slurm.", "dist.", "env.")
"""What an evaluation may change of the frozen config: where it runs, not what it evaluates."""


def evaluate(run: RunDir, *, split: Split, ckpt: str, ranks: int | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Evaluate a checkpoint of a run on one of its splits, on this machine.

    Relative paths in the run's config mean what they meant where it was made, those of the overrides what they mean
    here.

    Args:
        run: the run; nothing of it is changed, and it may go on meanwhile.
        split: train (without augmentation), validation or test.
        ckpt: newest, best, or a step.
        ranks: how many to start; if not given as many as `dist.ranks` among the overrides, else those of one node.
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
    loaded = _from_here(load(run.config, overrides), overrides)
    config = _for_evaluation(loaded.config, ranks_are_asked=_given(overrides, "dist.ranks"))
    before = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    if split == "validation" and not before.validation_samples:
        raise UsageError(f"{run.name} has no validation set", "--split test, or --split train")
    with (
        tempfile.TemporaryDirectory(prefix="hpctrain-", ignore_cleanup_errors=True) as folder,
        trial.ended_by_signals(),
        ready.where_it_was_made(run),
    ):
        manifest = _hold(run, None if ckpt == "newest" else ckpt, Path(folder))
        plain = loaded.replaced(config)
        plan = ready.make_plan(plain, "local", ranks, trains=False)
        _refuse_other_data(before, plan)
        task = tasks.Evaluate(checkpoint=folder, step=manifest.step, split=split)
        found = trial.perform(plain, plan, task, code_of=run).or_raise()
    return {"run": run.name, **found}


def _given(overrides: Sequence[str], key: str) -> bool:
    return any(override.partition("=")[0] == key for override in overrides)


def _from_here(loaded: Loaded, overrides: Sequence[str]) -> Loaded:
    """Let a path that was typed mean what it means here."""
    data = loaded.config.data
    if data is None or data.path is None or not _given(overrides, "data.path"):
        return loaded
    path = os.path.abspath(os.path.expanduser(data.path))  # noqa: PTH100, PTH111 - a Path raises without such a user
    data = msgspec.structs.replace(data, path=path)
    return loaded.replaced(msgspec.structs.replace(loaded.config, data=data))


def _for_evaluation(config: Config, *, ranks_are_asked: bool) -> Config:
    """Leave out of a config what is of training alone, so that any number of ranks may evaluate."""
    if config.data is None or config.model is None:
        raise UsageError("this run is of a command; only hpctrain's own training can be evaluated")
    return msgspec.structs.replace(
        config,
        data=unvaried(config.data),
        model=msgspec.structs.replace(config.model, weights=None, weights_skip=(), freeze=()),
        batch=Batch(per_rank=1),
        optim=Optim(lr=1.0),
        train=Train(steps=1),
        checkpoint=Checkpoint(),
        log=Log(),
        dist=config.dist if ranks_are_asked else msgspec.structs.replace(config.dist, ranks=None),
    )


def _hold(run: RunDir, ckpt: str | None, folder: Path) -> Manifest:
    """Choose a checkpoint and hold what is needed of it: a run that goes on may drop it at any time.

    Raises:
        UsageError: there is no such checkpoint.
        CheckpointError: it is damaged.
    """
    while True:
        there = run.checkpoints()
        try:
            manifest = checkpoints.choose(run, ckpt, option="--ckpt")
            for name in (MANIFEST, manifest.weights):
                _link(run.checkpoint(manifest.step) / name, folder / name)
        except CheckpointError:
            if run.checkpoints() == there:  # else the run has dropped it meanwhile
                raise
        else:
            return manifest


def _link(source: Path, target: Path) -> None:
    """Give a file another name, or copy it where a file system or its owner does not allow that."""
    target.unlink(missing_ok=True)
    try:
        try:
            target.hardlink_to(source)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(source, target)
    except OSError as error:
        raise CheckpointError(f"{source}: {error.strerror}") from None


def _refuse_other_data(before: Plan, now: Plan) -> None:
    for what in ("train_samples", "validation_samples", "test_samples", "data_digest"):
        was, there = getattr(before, what), getattr(now, what)
        if was != there:
            raise UsageError(
                f"the run was trained with {what.replace('_', ' ')} {was}, now there are {there}",
                "the files have changed; give those of the run: data.path=DIR",
            )
