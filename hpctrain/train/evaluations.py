"""The evaluations of a run: on the validation set during training, on the test set at the end, or if there is none."""

import contextlib
from collections.abc import Callable

from hpctrain.data.dataset import Part
from hpctrain.dist.comm import Comm
from hpctrain.train.average import Average
from hpctrain.train.evaluate import Result, evaluate
from hpctrain.train.grace import Grace
from hpctrain.train.heartbeat import Phase
from hpctrain.train.history import History
from hpctrain.train.metrics import Report, Timer
from hpctrain.train.prepare import Parts
from hpctrain.train.state import share_buffers


class Evaluations:
    """Evaluates, and writes down what it found.

    Args:
        parts: data, model, precision and objective.
        average: of the weights, which is then what is evaluated.
        history: gets the losses on the validation set, and says whether they end the run.
        comm: the ranks.
        report: where results are written.
        timer: of the training, which stops meanwhile.
        grace: on rank 0: wants to know how long it took.
        enter: shows the watchdog what this rank does.
    """

    def __init__(
        self,
        parts: Parts,
        average: Average | None,
        history: History,
        comm: Comm,
        report: Report,
        timer: Timer,
        grace: Grace | None,
        enter: Callable[[Phase, int], None],
    ) -> None:
        self.result: Result | None = None
        """The last one on the test set; None: there was none in this attempt."""
        self._parts, self._average, self._history, self._comm = parts, average, history, comm
        self._report, self._timer, self._grace, self._enter = report, timer, grace, enter
        self._scored: tuple[int, float] | None = None

    def score_at(self, done: int) -> float | None:
        """Return the score that tells the best checkpoint, if the evaluation was after so many steps."""
        return self._scored[1] if self._scored is not None and self._scored[0] == done else None

    def run(self, done: int, lr: float, *, ends: bool) -> None:
        """Evaluate after `done` steps; every rank calls this.

        Args:
            done: steps.
            lr: used in the last one.
            ends: the training is over.
        """
        self._timer.pause()
        self._enter(Phase.COMM, done)
        share_buffers(self._parts.model, self._comm)
        data = self._parts.data
        if data.validation is not None:
            judged = self._one("validation", data.validation, done, lr)
            self._history.add(done, judged.loss)
            ends = ends or self._history.over() is not None
        if data.validation is None or ends:
            self.result = self._one("test", data.test, done, lr)
            if data.validation is None:
                judged = self.result
        self._scored = (done, judged.score / judged.samples)
        self._enter(Phase.COMM, done)
        self._timer.go_on()

    def _one(self, split: str, part: Part, done: int, lr: float) -> Result:
        parts = self._parts

        def beat(phase: Phase) -> None:
            self._enter(phase, done)

        with contextlib.nullcontext() if self._average is None else self._average.in_use():
            found = evaluate(parts.model, part, parts.objective, comm=self._comm, precision=parts.precision, beat=beat)
        self._report.write(split, step=done, samples=found.samples, score=found.score, loss=found.loss, lr=lr,
                           seconds=found.seconds)  # fmt: skip
        if self._grace is not None:
            self._grace.evaluated(found.seconds)
        return found
