"""Lengths and learning rates as pure functions of the step; a step counts from 0."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from hpctrain.config.duration import Duration
from hpctrain.config.optim import Settings, Shape


def to_steps(length: Duration, *, steps_per_epoch: int, total_steps: int) -> int:
    """Resolve a length to steps, rounded to the nearest; a positive length is at least one step.

    Args:
        length: what the config asks for.
        steps_per_epoch: optimizer steps of one pass over the training set.
        total_steps: optimizer steps of the whole training; percent is of these.
    """
    unit = {"steps": 1.0, "epochs": float(steps_per_epoch), "%": total_steps / 100}[length.unit]
    steps = math.floor(length.count * unit + 0.5)
    return max(steps, 1) if length.count > 0 else 0


def is_due(done: int, every: int, total: int) -> bool:
    """Say whether periodic work is due after `done` steps: at each multiple of `every`, and at the end."""
    return done == total or (every > 0 and done % every == 0)


def scaled(
    settings: Settings,
    *,
    rule: Literal["linear", "sqrt", "none"],
    smoothed: bool,
    batch: int,
    base_batch: int | None,
) -> Settings:
    """Scale what was chosen for one batch to another batch.

    linear: the rate, by the ratio (Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1). sqrt: the rate by
    its root (Krizhevsky 2014, "One weird trick", section 5); with Adam and RMSprop also 1 - beta by the ratio and eps
    by 1 / its root, so that a step of a k times larger batch forgets what k steps did (Malladi et al. 2022, "On the
    SDEs and Scaling Rules for Adaptive Gradient Algorithms", section 5). Weight decay stays as it is.

    Args:
        settings: chosen for the base batch.
        rule: of these.
        smoothed: the optimizer is one of those whose smoothing is scaled by sqrt, too.
        batch: that is used.
        base_batch: for which the settings were chosen; None: for the one that is used.

    Returns:
        What is used; a beta or alpha below 0 means that the batch is too large for the rule.
    """
    if rule == "none" or base_batch is None:
        return settings
    if rule == "linear":
        return replace(settings, lr=settings.lr * batch / base_batch)
    root = math.sqrt(batch / base_batch)
    lr = settings.lr * root
    if not smoothed or batch == base_batch:
        return replace(settings, lr=lr)

    def beta(given: float) -> float:
        return 1 - batch / base_batch * (1 - given)

    return Settings(
        lr=lr,
        betas=None if settings.betas is None else (beta(settings.betas[0]), beta(settings.betas[1])),
        alpha=None if settings.alpha is None else beta(settings.alpha),
        eps=None if settings.eps is None else settings.eps / root,
    )


class Curve(Struct, frozen=True, kw_only=True):
    """The rate over the steps of a run, as a part of the full rate; lengths are in steps, as the plan resolved them."""

    shape: Shape
    total_steps: int
    warmup_steps: int = 0
    decay: float = 0.1
    decay_every_steps: int = 0
    milestone_steps: tuple[int, ...] = ()
    decay_over_steps: int = 0
    """When the floor is reached, counted from step 0; 0: at the end."""
    floor: float = 0.0
    power: float = 2.0
    rise_steps: int = 1
    start: float = 0.04
    legs: Literal["cosine", "linear"] = "cosine"
    cycle_momentum: tuple[float, float] | None = None
    period_steps: int = 1
    period_growth: int = 1

    def part(self, step: int, reductions: int = 0) -> float:
        """Return the part of the full rate at a step, from 0.

        During warm-up it rises linearly from 1 / warmup_steps to 1.

        Args:
            step: that many are done.
            reductions: that a plateau has led to; see `reductions`.
        """
        ramp = (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0
        if self.shape == "plateau":
            return ramp * max(self.decay**reductions, self.floor)
        return ramp if step < self.warmup_steps else _SHAPES[self.shape](self, step)

    def momentum(self, step: int) -> float | None:
        """Return the momentum of a step, high where the rate is low; None: it stays as it is."""
        if self.cycle_momentum is None:
            return None
        low, high = self.cycle_momentum
        return self._leg(step, high, low, high)

    def falling(self, step: int) -> float:
        """Return how far the fall is at a step: 0 at the end of the warm-up, 1 when the floor is reached."""
        end = self.decay_over_steps or self.total_steps
        return min((step - self.warmup_steps) / max(end - self.warmup_steps, 1), 1.0)

    def cosine(self, progress: float) -> float:
        """Return half a cosine from 1 down to the floor (Loshchilov & Hutter 2017, "SGDR", equation 5)."""
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def leg(self, step: int) -> float:
        """Go up from `start` to 1 and down to the floor (Smith 2018, "A disciplined approach", section 4)."""
        return self._leg(step, self.start, 1.0, self.floor)

    def _leg(self, step: int, first: float, middle: float, last: float) -> float:
        """Reach the middle with the last step of the way up, and the last with the last step, as torch's OneCycleLR."""
        top, end = self.rise_steps - 1, self.total_steps - 1
        if step < top:
            low, high, way = first, middle, step / top
        else:
            low, high, way = middle, last, (step - top) / max(end - top, 1)
        if self.legs == "cosine":
            return high + (low - high) * 0.5 * (1 + math.cos(math.pi * way))
        return low + (high - low) * way

    def again(self, step: int) -> float:
        """Follow half a cosine in each period, which is `period_growth` times as long as the one before (SGDR)."""
        step, period = step - self.warmup_steps, self.period_steps
        if self.period_growth == 1:
            return self.cosine(step % period / period)
        while step >= period:
            step, period = step - period, period * self.period_growth
        return self.cosine(step / period)


_SHAPES: dict[Shape, Callable[[Curve, int], float]] = {
    "constant": lambda _curve, _step: 1.0,
    "step": lambda curve, step: curve.decay ** (step // curve.decay_every_steps),
    "multistep": lambda curve, step: curve.decay ** sum(step >= milestone for milestone in curve.milestone_steps),
    "linear": lambda curve, step: 1 - (1 - curve.floor) * curve.falling(step),
    "cosine": lambda curve, step: curve.cosine(curve.falling(step)),
    "polynomial": lambda curve, step: curve.floor + (1 - curve.floor) * (1 - curve.falling(step)) ** curve.power,
    "onecycle": Curve.leg,
    "restarts": Curve.again,
}
"""Of the steps after the warm-up; plateau depends on more than the step."""


def reductions(losses: Iterable[float | None], *, patience: int, threshold: float, cooldown: int) -> int:
    """Return how often a plateau has reduced the rate, as torch's ReduceLROnPlateau does (mode min, threshold rel).

    Args:
        losses: on the validation set, of all evaluations so far; None: it was no number.
        patience: evaluations in a row without a lower loss that are borne.
        threshold: by which part of the lowest a loss must be lower to count.
        cooldown: evaluations after a reduction that do not count.
    """
    best, bad, resting, found = math.inf, 0, 0, 0
    for loss in losses:
        if loss is not None and loss < best * (1 - threshold):
            best, bad = loss, 0
        else:
            bad += 1
        if resting:
            resting, bad = resting - 1, 0
        if bad > patience:
            found, resting, bad = found + 1, cooldown, 0
    return found


def evaluations_without_gain(losses: Iterable[float | None], *, min_delta: float) -> int:
    """Return how many evaluations have passed since the lowest loss, which must be lower by more than `min_delta`."""
    best, bad = math.inf, 0
    for loss in losses:
        if loss is not None and loss < best - min_delta:
            best, bad = loss, 0
        else:
            bad += 1
    return bad


_DEFAULT_SIGNAL_S, _LEAST_SIGNAL_S = 120, 60
_MARGIN_S = 10


def grace_s(step_s: float, save_s: float, evaluation_s: float) -> int:
    """Return how long before a time limit ranks must be told to stop, in whole seconds.

    Args:
        step_s: a step, after which they agree to stop.
        save_s: a save.
        evaluation_s: an evaluation, which they end before they agree.
    """
    return math.ceil(3 * (step_s + save_s) + evaluation_s) + _MARGIN_S


def signal_s(asked_s: int | None, time_s: int | None, learned_s: int | None) -> int | None:
    """Return how long before a time limit Slurm shall tell the ranks; None: not at all.

    Args:
        asked_s: by the config; it wins.
        time_s: the time limit; None if there is none.
        learned_s: `grace_s` of an earlier attempt; None if there was none. Slurm's clock has a grain of a minute.
    """
    if asked_s is not None or time_s is None:
        return asked_s
    if learned_s is not None:
        return max(1, min(max(learned_s, _LEAST_SIGNAL_S), time_s // 2))
    return max(1, min(_DEFAULT_SIGNAL_S, time_s // 4))
