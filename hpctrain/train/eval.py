"""`hpctrain eval RUN`: a checkpoint of a run on one of its splits."""

from pathlib import Path
from typing import Any

import torch

from hpctrain import manifest as manifests
from hpctrain.config.schema import Config
from hpctrain.data.load import load
from hpctrain.dist.comm import Comm
from hpctrain.errors import UsageError
from hpctrain.manifest import EMA
from hpctrain.models import build as models
from hpctrain.plan import Plan
from hpctrain.task import Evaluate
from hpctrain.train import objective as objectives
from hpctrain.train import state
from hpctrain.train.evaluate import evaluate
from hpctrain.train.heartbeat import Heart
from hpctrain.train.precision import Precision


def evaluate_checkpoint(
    task: Evaluate, config: Config, plan: Plan, comm: Comm, device: torch.device, heart: Heart | None
) -> dict[str, Any]:
    """Evaluate the weights of a checkpoint, the averaged ones where there are; every rank reads and checks it.

    Raises:
        UsageError: the run has no such split.
        CheckpointError: a byte changed, or it is another model's.
    """
    if config.data is None or config.model is None:
        raise AssertionError("a config that trains has these sections")
    path = Path(task.checkpoint)
    manifest = manifests.read(path, task.step)
    name = manifest.weights
    precision = Precision(config.precision, device)
    data = load(config.data, plan, device=device, dtype=precision.dtype)
    part = {"train": data.train, "validation": data.validation, "test": data.test}[task.split]
    if part is None:
        raise UsageError("this run has no validation set", "--split train, or --split test")
    objective = objectives.build(config, data)
    model = models.build(config.model, shape=data.shape, outputs=objective.outputs, seed=plan.seed)
    model = model.to(device, precision.dtype)
    state.load_model(model, manifests.content(path / name, manifest.files[name]), str(path / name))
    heart = heart or Heart()
    heart.begin(task.step)
    found = evaluate(
        model, part, objective, comm=comm, precision=precision, beat=lambda phase: heart.enter(phase, task.step)
    )
    return {
        "step": task.step,
        "epoch": manifest.step / manifest.steps_per_epoch,
        "split": task.split,
        "weights": "averaged" if name == EMA else "trained",
        "samples": found.samples,
        objective.score_name: found.score / found.samples,
        "loss": found.loss,
        **found.metrics,
    }
