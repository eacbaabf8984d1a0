"""What a rank does to prove resume: it trains once undisturbed, then again from each checkpoint of that run."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch

from hpctrain.config.schema import Config
from hpctrain.dist.comm import Comm
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train.loop import train
from hpctrain.train.stop import Stop
from hpctrain.world import World
from tests.chaos import oracle


def body(
    run: RunDir,
    _attempt: int,
    config: Config,
    plan: Plan,
    world: World,
    comm: Comm,
    device: torch.device,
    _stop: Stop,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Train in `run/whole`, and in `run/from_K` from its checkpoint K; the model is wrapped anew for each.

    The process is the same: whatever its generators, its allocator or DDP have kept from the run before must not
    matter either. Options: `from`, the steps.

    Returns:
        `whole`: states by step; `different`: for each K the steps whose states are others than those of the whole run.
    """
    whole = _run(run.path / "whole")
    train(whole, 1, config, plan, world, comm, device, Stop())
    expected = _states(whole) if comm.rank == 0 else {}
    different: dict[str, list[int]] = {}
    for step in options["from"]:
        again = _run(run.path / f"from_{step}")
        if comm.rank == 0:
            shutil.copytree(whole.checkpoint(step), again.checkpoint(step))
        comm.barrier()
        torch.rand(comm.rank + step)  # what a process has drawn before is of no matter
        outcome = train(again, 1, config, plan, world, comm, device, Stop())
        if comm.rank == 0:
            found = _states(again)
            assert (outcome.verdict, min(found), max(found)) == ("completed", step, max(expected)), outcome
            different[str(step)] = [number for number in found if found[number] != expected[number]]
            shutil.rmtree(again.path)
    return {"value": {"whole": msgspec.to_builtins(expected, str_keys=True), "different": different}}


def _states(run: RunDir) -> dict[int, dict[str, Any]]:
    return {step: oracle.state(run, step) for step in run.checkpoints()}


def _run(path: Path) -> RunDir:
    run = RunDir(path)
    for part in (run.attempt(1) / "logs", run.ckpt, run.stage):
        part.mkdir(parents=True, exist_ok=True)
    return run
