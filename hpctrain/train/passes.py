"""The passes of a step on one rank: batches, forward, loss, backward."""

from collections import deque
from collections.abc import Callable, Iterator

import torch

from hpctrain.config.schema import Config
from hpctrain.data.batches import Batches, Share
from hpctrain.data.dataset import Part, Wanted
from hpctrain.dist.comm import Comm
from hpctrain.models.build import draws
from hpctrain.train import rng
from hpctrain.train.heartbeat import Phase
from hpctrain.train.metrics import Meter
from hpctrain.train.prepare import Numbers, Parts


class Passes:
    """Computes the gradient of each step, pass by pass, from batches that are made ahead of time.

    Args:
        config: of the run.
        numbers: of its plan.
        seed: of the order of samples and of what the model draws.
        parts: data, model, step, precision and objective.
        comm: the ranks.
        device: of this rank.
        meter: takes what the passes give.
        enter: shows the watchdog what this rank does.
    """

    def __init__(
        self,
        config: Config,
        numbers: Numbers,
        seed: int,
        parts: Parts,
        comm: Comm,
        device: torch.device,
        meter: Meter,
        enter: Callable[[Phase, int, int], None],
    ) -> None:
        self._part: Part = parts.data.train
        self._step, self._precision, self._objective = parts.step, parts.precision, parts.objective
        self._attendance = parts.attendance
        self._accumulate, self._total = numbers.accumulate, numbers.total_steps
        self._seed, self._rank, self._ranks, self._device = seed, comm.rank, comm.size, device
        self._meter, self._enter = meter, enter
        self._draws = config.model is not None and draws(parts.model, config.model.name)
        self._batches = Batches(
            samples=numbers.train_samples,
            global_batch=numbers.global_batch,
            steps_per_epoch=numbers.steps_per_epoch,
            accumulate=numbers.accumulate,
            rank=comm.rank,
            ranks=comm.size,
            seed=seed,
            block=config.data.block if config.data is not None and config.data.shuffle == "blocks" else None,
        )
        self._shares: deque[Share] = deque()  # of steps whose batches are being made
        self._coming = self._part.stream(())

    def begin(self, start: int) -> None:
        """Let the batches come from a step on; those that were on their way are dropped."""
        self.close()
        self._shares.clear()
        self._coming = self._part.stream(self._wanted(start))

    def close(self) -> None:
        """End the stream of batches."""
        self._coming.close()

    def run(self, index: int) -> Share:
        """Add up the gradient of the step after `index` others, and return what this rank did in it."""
        for number in range(self._accumulate):
            last = number == self._accumulate - 1
            self._enter(Phase.DATA, index, number)
            inputs, targets = next(self._coming)
            share = self._shares[0]
            self._enter(Phase.FORWARD, index, number)
            if self._draws:
                rng.key_pass(self._seed, index, number * self._ranks + self._rank, self._device)
            self._attendance.stand_in = share.stand_in[number]
            with self._precision.arithmetic():
                outputs = self._step.forward(inputs, last=last)
            heads = self._objective.heads(outputs, len(targets), self._precision.dtype)
            loss = self._objective.total(heads, targets)
            if share.stand_in[number]:  # of a last, smaller batch: it keeps the ranks in step and weighs nothing
                loss = loss * 0.0
            else:
                self._meter.add(heads[0], targets, loss)
            self._enter(Phase.BACKWARD, index, number)
            self._step.backward(loss / share.samples, last=last)
        return self._shares.popleft()

    def _wanted(self, start: int) -> Iterator[Wanted]:
        """Say which batches are wanted from a step on, across epochs; their shares go to the queue for `run`."""
        for index in range(start, self._total):
            share = self._batches[index]
            self._shares.append(share)
            for number, ids in enumerate(share.passes):
                yield Wanted(ids, share.epoch, index, number * self._ranks + self._rank)
