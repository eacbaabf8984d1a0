"""`hpctrain run --overfit N`: can this model learn N batches by heart? If not, no amount of data will help it.

The first of the lectures' steps of tuning, and a test of the wiring: labels that do not belong to their inputs, inputs
that nobody scaled, a loss that the gradient does not reach, or a rate that is far off all show here, within a minute.
"""

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from hpctrain.schedule import is_due
from hpctrain.task import Overfit
from hpctrain.train.trial import Trial, Tried, learned, refuse_too_many

ENOUGH = 0.99
"""Of the accuracy, or of R^2."""
_DROPPING = {"StochasticDepth": "p", "DropPath": "drop_prob", "_DenseLayer": "drop_rate"}
_RISE = 20  # steps in which the rate rises, in the place of the warm-up, which may be longer than all this


def overfit(task: Overfit, trial: Trial) -> dict[str, Any]:
    """Learn the batches again and again until they are known, or the steps are used up; the same on every rank.

    Raises:
        UsageError: an epoch has fewer batches.
    """
    count, says = task.batches, trial.comm.rank == 0
    refuse_too_many(count, trial.numbers.steps_per_epoch)
    off = without_dropout(trial.parts.model)
    if off and says:
        print(f"hpctrain: dropout is off in {off} modules, for by heart means by heart", file=sys.stderr, flush=True)
    peak, numbers = trial.numbers.lr_used, trial.parts.data.task == "number"
    name = "R^2" if numbers else "accuracy"
    sweeps: list[tuple[float, float]] = []  # mean loss, and what was learned
    sweep: list[Tried] = []
    losses: list[float] = []
    shown = [index % count for index in range(task.steps)]
    steps = trial.steps(shown, lambda index: peak * min((index + 1) / _RISE, 1.0))
    for done in steps:
        sweep.append(done)
        losses.append(done.loss)
        if len(sweep) == count:
            sweeps.append((sum(one.loss for one in sweep) / count, learned(sweep, numbers=numbers)))
            sweep = []
            if says and is_due(len(sweeps), max(task.steps // count // 10, 1), 0):
                told = f"step {done.step:>5}  loss {sweeps[-1][0]:.4f}  {name} {sweeps[-1][1]:.4f}"
                print(told, file=sys.stderr, flush=True)
        if not math.isfinite(done.loss) or (sweeps and not sweep and sweeps[-1][1] >= ENOUGH):
            break
    steps.close()
    reached = sweeps[-1][1] if sweeps else -math.inf
    verdict: dict[str, Any] = {
        "learned": math.isfinite(losses[-1]) and reached >= ENOUGH,
        "batches": count,
        "steps": len(losses),
    }
    verdict |= {"loss": losses[-1] if math.isfinite(losses[-1]) else None, "score_name": name}
    verdict["score"] = reached if math.isfinite(reached) else None
    return verdict | ({} if verdict["learned"] else {"reason": reason([loss for loss, _ in sweeps], losses)})


def without_dropout(model: nn.Module) -> int:
    """Switch off dropout, of attention too, and what drops whole paths; return in how many modules it was on."""
    off = 0
    for part in model.modules():
        name = _drops(part)
        if name is not None and getattr(part, name):
            setattr(part, name, 0.0)
            off += 1
    return off


def _drops(part: nn.Module) -> str | None:
    """Return the attribute that says with what probability a module drops something; None: it drops nothing.

    What torchvision and timm have of their own is known by its name.
    """
    if isinstance(part, nn.modules.dropout._DropoutNd):  # noqa: SLF001
        return "p"
    if isinstance(part, nn.MultiheadAttention | nn.RNNBase):
        return "dropout"
    return _DROPPING.get(type(part).__name__)


def reason(sweeps: Sequence[float], losses: Sequence[float]) -> str:
    """Say what the curve looks like, and what that may come from; after the lectures' list.

    Args:
        sweeps: mean loss of each sweep over the batches.
        losses: loss of each step.
    """
    if not math.isfinite(losses[-1]):
        return f"the loss is no number after {len(losses)} steps: too high a rate (try optim.lr / 10), or a bad input"
    if len(sweeps) < 4:
        return "too few sweeps to judge: give fewer batches, such as --overfit 5"
    first, last, middle = sweeps[0], sum(sweeps[-2:]) / 2, sum(sweeps[len(sweeps) // 2 :][:2]) / 2
    if last > 0.95 * first:
        return (
            "the loss does not fall: look at the rate (hpctrain find-lr), then whether labels belong to their inputs, "
            "whether inputs are scaled, and how the weights start"
        )
    half = sweeps[len(sweeps) // 2 :]
    if any(after > 1.5 * before for before, after in pairwise(half)) and last > 0.1 * first:
        return "the loss jumps: the rate is too high (try optim.lr / 3), or single samples are bad"
    if last > 0.9 * middle:
        return (
            "the loss fell and then stopped: the rate is too high for the end or the model too small, or two equal "
            "inputs have different labels"
        )
    return "the loss still falls: the rate may be too low (hpctrain find-lr), or a longer --overfit-steps is enough"
