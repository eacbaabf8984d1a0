"""What ranks do in the place of training, where `task.json` says so."""

import sys
import time
from typing import Any

import torch

from hpctrain import task as tasks
from hpctrain.config.schema import Config
from hpctrain.dist.comm import Comm
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train import outcome
from hpctrain.train.heartbeat import Heart
from hpctrain.train.outcome import Outcome
from hpctrain.train.trial import Trial
from hpctrain.world import World


def perform(
    task: tasks.Task,
    run: RunDir,
    attempt: int,
    config: Config,
    plan: Plan,
    world: World,
    comm: Comm,
    device: torch.device,
    heart: Heart | None,
) -> None:
    """Perform a task on every rank; rank 0 writes the result, and then the outcome.

    Raises:
        HpctrainError: what the task finds, as in a run.
    """
    began = time.perf_counter()
    result = _result(task, config, plan, world, comm, device, heart)
    comm.barrier()
    if comm.rank == 0:
        tasks.write_result(run, attempt, result)
        done = Outcome(verdict="completed", step=0, total_steps=0, epoch=0.0, time_s=time.perf_counter() - began)
        outcome.write(run, attempt, done)
        sys.stderr.flush()
    comm.barrier()


def _result(
    task: tasks.Task,
    config: Config,
    plan: Plan,
    world: World,
    comm: Comm,
    device: torch.device,
    heart: Heart | None,
) -> dict[str, Any]:
    if isinstance(task, tasks.Evaluate):
        from hpctrain.train import eval as evaluation

        return evaluation.evaluate_checkpoint(task, config, plan, comm, device, heart)
    if isinstance(task, tasks.TryBatch):
        from hpctrain.train import try_batch

        if device.type == "cpu":
            try_batch.confine(task)
        return try_batch.try_batch(Trial(config, plan, world, comm, device, heart), device)
    trial = Trial(config, plan, world, comm, device, heart)
    if isinstance(task, tasks.Overfit):
        from hpctrain.train.overfit import overfit

        return overfit(task, trial)
    from hpctrain.train.find_lr import find_lr

    return find_lr(task, trial)
