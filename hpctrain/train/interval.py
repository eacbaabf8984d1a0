"""What a run reports of the steps since its last line in metrics.jsonl."""

import math
from collections.abc import Mapping
from typing import Any

from hpctrain.data.batches import Share
from hpctrain.dist.comm import Comm
from hpctrain.train.grace import Grace
from hpctrain.train.metrics import Meter, Report, Timer


class Interval:
    """Counts samples, loss, score and time between two lines.

    Args:
        meter: of this rank.
        report: where the lines go.
        timer: of the training.
        grace: on rank 0: wants to know how long a step takes.
        global_batch: samples of a whole step.
    """

    def __init__(self, meter: Meter, report: Report, timer: Timer, grace: Grace | None, global_batch: int) -> None:
        self.seen = 0
        """Samples of this attempt over all ranks; those of steps that were left out do not count."""
        self.loss = 0.0
        """Summed over the samples of the interval and over all ranks, when `sum` was called last."""
        self._score = 0.0
        self._reported = 0
        self._meter, self._report, self._timer, self._grace = meter, report, timer, grace
        self._global_batch = global_batch

    def count(self, share: Share, *, applied: bool) -> None:
        """Take a step in, or forget its passes where it was left out."""
        if applied:
            self._meter.keep()
            self.seen += share.samples
        else:
            self._meter.drop()

    def sum(self, comm: Comm) -> bool:
        """Add up over all ranks, which must all call this; False if the loss is infinite or no number."""
        self.loss, self._score = comm.sum(self._meter.totals()).tolist()
        return math.isfinite(self.loss)

    def write(self, done: int, lr: float, skipped: int, more: Mapping[str, Any]) -> None:
        """Write the line of the interval that ends after `done` steps, and begin a new one; nothing of no samples.

        Args:
            done: steps.
            lr: used in the last one.
            skipped: steps of this attempt that changed no weight so far.
            more: what is told besides.
        """
        count = self.seen - self._reported
        if count == 0:
            return
        seconds = self._timer.lap()
        self._report.write("train", step=done, samples=count, score=self._score, loss=self.loss / count, lr=lr,
                           seconds=seconds, skipped=skipped, metrics=more)  # fmt: skip
        if self._grace is not None:
            self._grace.stepped(seconds * self._global_batch / count)
        self._begin()

    def forget(self) -> None:
        """Begin a new interval without a line: its steps are taken back."""
        self._timer.lap()
        self._begin()

    def _begin(self) -> None:
        self._meter.reset()
        self._reported = self.seen
