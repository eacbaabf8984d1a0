"""`hpctrain find-lr`: a learning rate range test.

The rate rises exponentially from step to step, on the real ranks and with the real batch; the loss, smoothed, says
where learning begins, where it is steepest and where it diverges.

Source: L. Smith 2017, "Cyclical learning rates for training neural networks", section 3.3; smoothing, and the rate at
the steepest fall, as in J. Howard and S. Gugger, "fastai" (2018).
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

from hpctrain.errors import JobError
from hpctrain.task import FindLr
from hpctrain.train.trial import Trial

_SMOOTH = 0.9
_DIVERGED = 3.0  # times the lowest loss
_LEAST = 10
_ROWS = 20


def find_lr(task: FindLr, trial: Trial) -> dict[str, Any]:
    """Raise the rate until the loss diverges; the same on every rank.

    Raises:
        JobError: nothing can be suggested.
    """
    ratio = (task.high / task.low) ** (1 / max(task.steps - 1, 1))
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
        if len(rates) > _LEAST and smoothed[-1] > _DIVERGED * min(smoothed):
            diverged = True
            break
    steps.close()
    chosen = suggestion(rates, smoothed, diverged=diverged)
    if trial.comm.rank == 0:
        print(table(rates, losses, smoothed, chosen), file=sys.stderr, flush=True)
        if task.picture is not None:
            draw(task.picture, rates, losses, smoothed, chosen)
    return {
        "lr": float(f"{chosen:.2g}"),
        "base_batch": trial.numbers.global_batch,
        "diverged_at": task.low * ratio ** len(rates) if diverged else None,
        "rates": rates,
        "losses": losses,
        "smoothed": smoothed,
    }


def suggestion(rates: Sequence[float], smoothed: Sequence[float], *, diverged: bool) -> float:
    """Return the rate at which the smoothed loss falls fastest by the logarithm of the rate.

    At most a third of the rate of the lowest loss, which lies at the edge of divergence.

    Raises:
        JobError: the loss never fell.
    """
    if len(rates) < _LEAST:
        raise JobError(
            f"the loss is no number after {len(rates)} steps at rates up to {rates[-1] if rates else 0:.2g}",
            "begin lower: --from 1e-8; hpctrain run CONFIG --debug names the operation that made it",
        )
    lowest = min(range(len(rates)), key=lambda place: smoothed[place])
    # what the first steps tell is noise, for nothing is averaged yet
    falls = [(smoothed[place + 1] - smoothed[place - 1], place) for place in range(_LEAST // 2, lowest)]
    if not falls or smoothed[lowest] > 0.98 * smoothed[0]:
        how = "diverged before it fell" if diverged else "did not fall"
        raise JobError(
            f"the loss {how}, from {rates[0]:.2g} to {rates[-1]:.2g}",
            "look whether the model learns at all: hpctrain run CONFIG --overfit 5; or give more --steps",
        )
    return min(rates[min(falls)[1]], rates[lowest] / 3)


def table(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], chosen: float) -> str:
    """Return rates and losses for people, with a bar for each loss."""
    every = max(len(rates) // _ROWS, 1)
    top = max(smoothed[: max(len(smoothed) // 2, 1)])
    lines = [f"{'rate':>10}  {'loss':>9}  {'smoothed':>9}"]
    marked = min(range(0, len(rates), every), key=lambda place: abs(math.log(rates[place] / chosen)))
    for place in range(0, len(rates), every):
        bar = "#" * min(round(40 * smoothed[place] / top), 60)
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
