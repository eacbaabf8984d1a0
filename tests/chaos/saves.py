"""A tiny run whose checkpoints are saved at once, to be damaged, recorded or crashed. Also a program: see `main`."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from hpctrain.dist.single import Single, SingleStep
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train import rng
from hpctrain.train.average import Average
from hpctrain.train.checkpoint import Checkpoints
from hpctrain.train.snapshot import Buffers
from tests.train.ranks import make_config

CPU = torch.device("cpu")
PLAN = Plan(
    name="t", seed=3, nodes=1, ranks_per_node=1, ranks=1, device="cpu", strategy="ddp",
    backend="gloo", launcher="local", precision="fp32",
    train_samples=100, global_batch=8, accumulate=1, steps_per_epoch=13, total_steps=26,
)  # fmt: skip
SCORES = {1: 0.9, 2: 0.1, 3: 0.4, 4: 0.3, 5: 0.2, 6: 0.5}


class Trained:
    """What has a state: a model, momentum and an average; `seed` and `step` decide every number in it."""

    def __init__(self, seed: int = 0, step: int = 0) -> None:
        torch.manual_seed(1000 * seed + step)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.average = Average(self.model, 0.5)
        self.model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        self.step = SingleStep(self.model, optimizer)
        self.average.update()


def run_at(path: Path) -> RunDir:
    """Make or take a run directory."""
    run = RunDir(path)
    for part in (run.attempts, run.ckpt, run.stage):
        part.mkdir(parents=True, exist_ok=True)
    return run


def store(run: RunDir, attempt: int = 1, **checkpoint: Any) -> Checkpoints:
    """Return the checkpoints of an attempt, its fence up."""
    made = Checkpoints(run, attempt, PLAN, make_config(checkpoint={"keep": 2, **checkpoint}))
    made.fence()
    return made


def save(checkpoints: Checkpoints, step: int, *, seed: int = 0) -> None:
    """Save what `Trained(seed, step)` is."""
    trained = Trained(seed, step)
    snapshot = Buffers(CPU).take(step, trained.model, trained.step, trained.average, rng.gather(Single(), CPU))
    checkpoints.publish(snapshot, evaluated=True, score=SCORES.get(step))


def load(checkpoints: Checkpoints, manifest: Any) -> Trained:
    """Load a checkpoint into a fresh state."""
    trained = Trained(seed=99)
    checkpoints.load(manifest, trained.model, trained.step, trained.average, rank=0, device=CPU)
    return trained


def main() -> None:
    """Save several checkpoints to the run directory given, and say so after each: the program that is recorded.

    The third is damaged on the way, so that the second attempt replaces it.
    """
    torch.set_num_threads(1)
    run = run_at(Path(sys.argv[1]))
    (run.path / "begin").mkdir()  # what comes before is not of interest
    first = store(run, 1, keep_best=True)
    for step in (1, 2, 3):
        save(first, step)
        os.write(1, b"acknowledged %d\n" % step)
    os.write(1, b"acknowledged 2\n")
    (run.checkpoint(3) / "model.safetensors").write_bytes(b"damaged")
    second = store(run, 2, keep_best=True)
    for step in (3, 4, 5):
        save(second, step)
        os.write(1, b"acknowledged %d\n" % step)


if __name__ == "__main__":
    main()
