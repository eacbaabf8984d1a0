"""Is a checkpoint one of this run?

What decides which samples a step sees must be the same, or its `step` means another place. Everything else may change,
and is told.
"""

from pathlib import Path
from typing import Any

import msgspec

from hpctrain.config.schema import Config
from hpctrain.errors import CheckpointError
from hpctrain.manifest import Manifest, Policy
from hpctrain.plan import Plan

_SECTIONS = ("name", "seed", "data", "model", "loss", "batch", "optim", "precision", "train")


def policy_of(config: Config, plan: Plan) -> Policy:
    """Return what of the config decides, besides seed and batch, which samples a step sees."""
    if config.data is None or config.batch is None:
        raise AssertionError("a config that trains has these sections")
    return Policy(
        dataset=config.data.dataset,
        tail=config.batch.tail,
        shuffle=config.data.shuffle,
        block=config.data.block,
        split=msgspec.to_builtins(config.data.split),
        digest=plan.data_digest,
    )


def sections_of(config: Config) -> dict[str, Any]:
    """Return the sections of the config that decide what is trained, and how, as JSON values."""
    whole: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    sums = {"compression": config.dist.compression, "horovod": {"op": config.dist.horovod.op}}
    return {name: value for name, value in whole.items() if name in _SECTIONS} | {"dist": sums}


def changes(manifest: Manifest, config: Config) -> list[str]:
    """List what these sections say otherwise than when a checkpoint was saved: `optim.lr 0.1 -> 0.05`."""
    before, now = _flat(manifest.config), _flat(sections_of(config))
    return [
        f"{key} {_shown(before.get(key))} -> {_shown(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def check(manifest: Manifest, plan: Plan, config: Config, path: Path) -> None:
    """Refuse a checkpoint that gives `step` another meaning than the plan.

    Raises:
        CheckpointError: with the arithmetic, and what to type.
    """
    seen = f"step {manifest.step} of {path.name} is"
    if manifest.global_batch != plan.global_batch:
        was, would = manifest.step * manifest.global_batch, manifest.step * (plan.global_batch or 0)
        raise CheckpointError(
            f"{seen} {manifest.step} x {manifest.global_batch} = {was} samples into the run with the global batch "
            f"that trained it, but {manifest.step} x {plan.global_batch} = {would} with the one that is asked for: "
            "samples would be repeated or left out",
            f"keep batch.global={manifest.global_batch} (other ranks are fine), or start a new run",
        )
    if manifest.seed != plan.seed:
        raise CheckpointError(
            f"{path} was trained with seed {manifest.seed}; seed {plan.seed} gives another order of samples",
            f"go on with seed={manifest.seed}, or start a new run",
        )
    if (manifest.train_samples, manifest.steps_per_epoch) != (plan.train_samples, plan.steps_per_epoch):
        raise CheckpointError(
            f"{seen} of a run with {manifest.train_samples} samples in {manifest.steps_per_epoch} steps per epoch; "
            f"now there are {plan.train_samples} in {plan.steps_per_epoch}",
            "go on with the same data.samples and batch.tail, or start a new run",
        )
    before, now = msgspec.to_builtins(manifest.policy), msgspec.to_builtins(policy_of(config, plan))
    if before["digest"] != now["digest"]:
        raise CheckpointError(
            f"{path} was trained on other data: files were added, removed or renamed since",
            "put the data back as it was, or start a new run",
        )
    before, now = _flat({name: before[name] for name in _KEYS}), _flat({name: now[name] for name in _KEYS})
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            section, _, rest = name.partition(".")
            asked = ".".join(filter(None, [_KEYS[section], rest]))
            raise CheckpointError(
                f"{path} was trained with {asked} {_shown(before.get(name))}; {_shown(now.get(name))} gives another "
                "order of samples",
                f"go on with {asked}={_shown(before.get(name))}, or start a new run",
            )


_KEYS = {
    "dataset": "data.dataset",
    "tail": "batch.tail",
    "shuffle": "data.shuffle",
    "block": "data.block",
    "split": "data.split",
}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
