"""Steps of training outside of a run: the parts, the batches and the ranks of a run, but nothing is kept."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from hpctrain.config.schema import Config
from hpctrain.data.dataset import Wanted
from hpctrain.dist.comm import Comm
from hpctrain.errors import UsageError
from hpctrain.plan import Plan
from hpctrain.train import prepare, rng, weights
from hpctrain.train.heartbeat import Heart, Phase
from hpctrain.train.limits import limits
from hpctrain.train.metrics import Meter
from hpctrain.train.passes import Passes
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
        self.comm, self._config, self._seed, self._device = comm, config, plan.seed, device
        self._heart = heart or Heart()
        self.numbers = prepare.planned(config, plan, world, comm)
        rng.key(plan.seed, 0, comm.rank, device)
        self.parts = prepare.parts(config, plan, self.numbers, comm, device)
        if config.model is not None:
            weights.start(config.model, plan, self.parts.model, None)
        self._bounds = limits(config, self.parts.model, self.parts.step)
        if config.optim is not None and config.optim.cycle_momentum is not None:
            _set_momentum(self.parts.step.optimizer, min(config.optim.cycle_momentum))
        self._heart.begin(0)

    def steps(self, shown: Sequence[int], rate: Callable[[int], float]) -> Generator[Tried, None, None]:
        """Train step after step; the caller may stop at any time, on all ranks at once.

        Gradients and weights are limited as in a run; where momentum follows the rate, it is that of the full rate.
        Costs one more collective per step than a run: the loss is wanted at once.

        Args:
            shown: for each step the number of the batch that it learns from, in the order of the run.
            rate: learning rate by the step, from 0.
        """
        meter, step = _Meter(self.parts.objective.score, numbers=self.parts.data.task == "number"), self.parts.step
        passes = _Shown(
            self._config, self.numbers, self._seed, self.parts, self.comm, self._device, meter, self._heart.enter
        )
        passes.show(shown)
        try:
            for index in range(len(shown)):
                lr = rate(index)
                for group in step.optimizer.param_groups:
                    group["lr"] = lr
                share = passes.run(index)
                if self._bounds is not None:
                    self._bounds.gradient()
                if step.apply() and self._bounds is not None:
                    self._bounds.weights()
                self._heart.enter(Phase.COMM, index + 1)
                meter.keep()
                loss, score, total, squares, errors = self.comm.sum(meter.totals()).tolist()
                meter.reset()
                count = share.samples
                yield Tried(index + 1, lr, loss / count, score / count, count, (total, squares), errors)
        finally:
            passes.close()


def _set_momentum(optimizer: Optimizer, momentum: float) -> None:
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])


class _Shown(Passes):
    """Passes over chosen batches, in the place of one batch after the other."""

    def show(self, shown: Sequence[int]) -> None:
        """Let these batches of the run come."""
        self._shown = shown
        self.begin(0)

    def _wanted(self, start: int) -> Iterator[Wanted]:
        for index in range(start, len(self._shown)):
            share = self._batches[self._shown[index]]
            self._shares.append(share)
            for number, ids in enumerate(share.passes):
                yield Wanted(ids, share.epoch, index, number * self._ranks + self._rank)


class _Meter(Meter):
    """Counts besides how numbers vary, and how far they were missed."""

    def __init__(self, score: Callable[[Tensor, Tensor], float], *, numbers: bool) -> None:
        super().__init__(score)
        self._numbers, self._more = numbers, torch.zeros(3, dtype=torch.float64)

    def add(self, outputs: Tensor, targets: Tensor, loss_sum: Tensor) -> None:
        """Take a pass."""
        super().add(outputs, targets, loss_sum)
        if self._numbers:
            wanted, given = targets.double().flatten(), outputs.detach().double().flatten()
            sums = torch.stack([wanted.sum(), wanted.square().sum(), (given - wanted).square().sum()])
            self._more += sums.cpu()

    def totals(self) -> Tensor:
        """Return sums of losses and scores, of targets and of their squares, and of squared errors, float64 `(5,)`."""
        return torch.cat([super().totals(), self._more])

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._more.zero_()


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
