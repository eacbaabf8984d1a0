"""`hpctrain find-lr`: a learning rate range test.

The rate rises exponentially from step to step, on the real ranks and with the real batch. What the loss does at the
first rates, which are too low to learn, is its level and its noise; where the smoothed loss has left that noise for
good it is the training that falls, and there the steepest fall is looked for.

Source: L. Smith 2017, "Cyclical learning rates for training neural networks", section 3.3; an exponential
average without the bias of its start, and the rate at the steepest fall: J. Howard and S. Gugger, "fastai" (2018).
"""

import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from hpctrain.errors import JobError
from hpctrain.task import FindLr
from hpctrain.train.trial import Trial

_SMOOTH = 0.9
_NOISE = math.sqrt((1 - _SMOOTH) / (1 + _SMOOTH))
"""Deviation of the smoothed loss, in deviations of the loss, where steps are independent."""
_LEAST = 10
_ROWS = 20


class Start(NamedTuple):
    """The loss while the rate is too low to learn."""

    steps: int
    level: float
    spread: float
    """Standard deviation of a step."""

    @property
    def high(self) -> float:
        """What a smoothed loss reaches only if it diverges."""
        return self.level + max(3 * self.spread, 0.1 * abs(self.level))

    def low(self, deviations: float) -> float:
        """Return what a smoothed loss falls below only if the model learns."""
        return self.level - max(deviations * _NOISE * self.spread, 0.02 * abs(self.level))


def find_lr(task: FindLr, trial: Trial) -> dict[str, Any]:
    """Raise the rate until the loss diverges; the same on every rank.

    Raises:
        JobError: nothing can be suggested.
    """
    ratio = (task.high / task.low) ** (1 / max(task.steps - 1, 1))
    first, start = max(task.steps // 8, _LEAST), None
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean, diverged = 0.0, False
    steps = trial.steps(range(task.steps), lambda index: task.low * ratio**index)
    for done in steps:
        if not math.isfinite(done.loss):
            diverged = True
            break
        mean = _SMOOTH * mean + (1 - _SMOOTH) * done.loss
        rates.append(done.lr)
        losses.append(done.loss)
        smoothed.append(mean / (1 - _SMOOTH ** len(rates)))
        if len(rates) == first:
            start = started(losses)
        if start is not None and smoothed[-1] > start.high:
            diverged = True
            break
    steps.close()
    says = trial.comm.rank == 0
    try:
        chosen = suggestion(rates, smoothed, start, diverged=diverged)
    except JobError:
        if says and rates:
            print(table(rates, losses, smoothed, None), file=sys.stderr, flush=True)
        raise
    if says:
        print(table(rates, losses, smoothed, chosen), file=sys.stderr, flush=True)
        if task.picture is not None:
            draw(task.picture, rates, losses, smoothed, chosen)
    return {
        "lr": chosen,
        "diverged_at": task.low * ratio ** len(rates) if diverged else None,
        "rates": rates,
        "losses": losses,
        "smoothed": smoothed,
    }


def started(losses: Sequence[float]) -> Start:
    """Return level and noise of the losses of the first steps."""
    return Start(len(losses), statistics.fmean(losses), statistics.stdev(losses))


def suggestion(rates: Sequence[float], smoothed: Sequence[float], start: Start | None, *, diverged: bool) -> float:
    """Return the rate at which the smoothed loss falls fastest by the logarithm of the rate.

    At most a third of the rate of the lowest loss, which lies at the edge of divergence.

    Args:
        rates: on a logarithmic grid.
        smoothed: loss of each.
        start: what the first of them have shown; None: there are too few.
        diverged: the test has ended by it.

    Raises:
        JobError: the loss never fell.
    """
    if start is None:
        raise JobError(
            f"the loss is no number after {len(rates)} steps at rates up to {rates[-1] if rates else 0:.2g}",
            "begin lower: --from 1e-8; hpctrain run CONFIG --debug names the operation that made it",
        )
    lowest = min(range(start.steps - 1, len(rates)), key=lambda place: smoothed[place])
    left = next((place + 1 for place in range(lowest, -1, -1) if smoothed[place] >= start.low(2)), 0)
    # noise goes that low for a few steps, too, but neither for long nor far
    if left > lowest or (lowest - left < 2 * _LEAST and smoothed[lowest] >= start.low(6)):
        how = "diverged before it fell" if diverged else "did not fall"
        raise JobError(
            f"the loss {how}, from {rates[0]:.2g} to {rates[-1]:.2g}",
            "look whether the model learns at all: hpctrain run CONFIG --overfit 5; or give more --steps",
        )
    half, last = max(len(rates) // 40, 1), len(rates) - 1

    def change(place: int) -> float:
        before, after = max(place - half, 0), min(place + half, last)
        return (smoothed[after] - smoothed[before]) / (after - before)

    return min(rates[min(range(left, lowest + 1), key=change)], rates[lowest] / 3)


def table(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], chosen: float | None) -> str:
    """Return rates and losses for people, with a bar for each loss; `chosen` is marked."""
    every = max(len(rates) // _ROWS, 1)
    top = max(smoothed[: max(len(smoothed) // 2, 1)])
    lines = [f"{'rate':>10}  {'loss':>9}  {'smoothed':>9}"]
    shown = range(0, len(rates), every)
    marked = None if chosen is None else min(shown, key=lambda place: abs(math.log(rates[place] / chosen)))
    for place in shown:
        bar = "#" * min(round(40 * smoothed[place] / top), 60) if top > 0 else ""
        note = "  <- suggested" if place == marked else ""
        lines.append(f"{rates[place]:>10.2e}  {losses[place]:>9.4f}  {smoothed[place]:>9.4f}  {bar}{note}")
    return "\n".join(lines)


def draw(path: str, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], chosen: float) -> None:
    """Write a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(rates, losses, color="0.8", label="loss")
    axes.plot(rates, smoothed, color="C0", label="smoothed")
    axes.axvline(chosen, color="C1", linestyle="--", label=f"suggested: {chosen:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(None, 1.5 * max(smoothed[: len(rates) // 2])))
    axes.legend()
    figure.savefig(path)
    plt.close(figure)
