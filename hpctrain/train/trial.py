"""Steps of training outside of a run: the parts, the batches and the ranks of a run, but nothing is kept."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpctrain.config.schema import Config
from hpctrain.data.batches import Batches, Share
from hpctrain.data.dataset import Wanted
from hpctrain.dist.comm import Comm
from hpctrain.errors import UsageError
from hpctrain.plan import Plan
from hpctrain.train import prepare, rng
from hpctrain.train.heartbeat import Heart, Phase
from hpctrain.train.objective import OBJECTIVES
from hpctrain.world import World


class Tried(NamedTuple):
    """What one step was, over all ranks."""

    step: int
    """Steps done."""
    lr: float
    loss: float
    """Mean over the samples, before the update."""
    score: float
    """Mean of what the objective scores."""
    samples: int
    targets: tuple[float, float]
    """Where numbers are predicted: their sum, and the sum of their squares."""
    errors: float
    """Where numbers are predicted: the sum of the squared errors."""


class Trial:
    """Everything that a step needs, built as for a run.

    Args:
        config: as frozen.
        plan: made from it.
        world: this process.
        comm: all ranks.
        device: of this rank.
        heart: shows the watchdog what this rank does.

    Raises:
        HpctrainError: whatever would stop a run before its first step.
    """

    def __init__(
        self, config: Config, plan: Plan, world: World, comm: Comm, device: torch.device, heart: Heart | None
    ) -> None:
        self.comm, self._heart = comm, heart or Heart()
        self.numbers = prepare.planned(config, plan, world, comm)
        rng.key(plan.seed, 0, comm.rank, device)
        self.data, self.model, self.wrapped, self._precision = prepare.parts(config, plan, self.numbers, comm, device)
        self.objective = OBJECTIVES[self.data.task]
        self._seed, self._device = plan.seed, device
        self._batches = Batches(
            samples=self.numbers.train_samples,
            global_batch=self.numbers.global_batch,
            steps_per_epoch=self.numbers.steps_per_epoch,
            accumulate=self.numbers.accumulate,
            rank=comm.rank,
            ranks=comm.size,
            seed=plan.seed,
        )
        self._heart.begin(0)

    def steps(self, shown: Sequence[int], rate: Callable[[int], float]) -> Generator[Tried, None, None]:
        """Train step after step; the caller may stop at any time, on all ranks at once.

        Costs one more collective per step than a run: the loss is wanted at once.

        Args:
            shown: for each step the number of the batch that it learns from, in the order of the run.
            rate: learning rate by the step, from 0.
        """
        coming = self.data.train.stream(self._wanted(shown))
        try:
            for index, number in enumerate(shown):
                yield self._step(index, self._batches[number], rate(index), coming)
        finally:
            coming.close()

    def _wanted(self, shown: Sequence[int]) -> Iterator[Wanted]:
        for index, number in enumerate(shown):
            share = self._batches[number]
            for turn, ids in enumerate(share.passes):
                yield Wanted(ids, share.epoch, index, turn * self.comm.size + self.comm.rank)

    def _step(self, index: int, share: Share, lr: float, coming: Iterator[tuple[Tensor, Tensor]]) -> Tried:
        enter, step = self._heart.enter, self.wrapped
        for group in step.optimizer.param_groups:
            group["lr"] = lr
        sums = torch.zeros(5, dtype=torch.float64)
        for turn, empty in enumerate(share.stand_in):
            last = turn == len(share.passes) - 1
            enter(Phase.DATA, index, turn)
            inputs, targets = next(coming)
            enter(Phase.FORWARD, index, turn)
            rng.key_pass(self._seed, index, turn * self.comm.size + self.comm.rank, self._device)
            with self._precision.arithmetic():
                outputs = step.forward(inputs, last=last)
            outputs = outputs.to(self._precision.dtype)
            loss = self.objective.loss(outputs, targets)
            if empty:
                loss = loss * 0.0
            else:
                sums += self._counted(outputs.detach(), targets, loss.detach())
            enter(Phase.BACKWARD, index, turn)
            step.backward(loss / share.samples, last=last)
        step.apply()
        enter(Phase.COMM, index + 1)
        loss_sum, score, total, squares, errors = self.comm.sum(sums).tolist()
        return Tried(
            index + 1, lr, loss_sum / share.samples, score / share.samples, share.samples, (total, squares), errors
        )

    def _counted(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        found = [float(loss.item()), float(self.objective.score(outputs, targets)), 0.0, 0.0, 0.0]
        if self.data.task == "number":
            wanted, given = targets.double(), outputs.double().reshape(targets.shape)
            found[2:] = [wanted.sum().item(), wanted.square().sum().item(), (given - wanted).square().sum().item()]
        return torch.tensor(found, dtype=torch.float64)


def refuse_too_many(batches: int, per_epoch: int) -> None:
    """Refuse more batches than an epoch has.

    Raises:
        UsageError: there are fewer.
    """
    if batches > per_epoch:
        raise UsageError(
            f"--overfit {batches}: an epoch has {per_epoch} batches", f"give at most {per_epoch}, such as --overfit 5"
        )


def learned(done: Sequence[Tried], *, numbers: bool) -> float:
    """Return the accuracy of a sweep over some batches; for numbers R^2, the part of their variance that is explained.

    Args:
        done: the steps of the sweep.
        numbers: what the targets are.
    """
    samples = sum(one.samples for one in done)
    if not numbers:
        return sum(one.score * one.samples for one in done) / samples
    total, squares = (sum(one.targets[place] for one in done) for place in (0, 1))
    variance = squares - total * total / samples
    errors = sum(one.errors for one in done)
    return 1 - errors / variance if variance > 0 else (1.0 if not errors else -math.inf)
