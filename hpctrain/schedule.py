"""Lengths and learning rates as pure functions of the step; a step counts from 0."""

import math
from typing import Literal

from hpctrain.config.duration import Duration

Shape = Literal["constant", "step", "cosine"]


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


def scaled_lr(lr: float, *, rule: Literal["linear", "none"], batch: int, base_batch: int | None) -> float:
    """Scale a rate that was chosen for `base_batch` to the batch that is used.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1 (linear scaling rule).
    """
    if rule == "none" or base_batch is None:
        return lr
    return lr * batch / base_batch


def lr_at(
    step: int,
    *,
    peak: float,
    shape: Shape,
    warmup_steps: int,
    total_steps: int,
    decay: float = 0.1,
    decay_every_steps: int = 0,
) -> float:
    """Return the learning rate of a step.

    During warm-up the rate rises linearly from peak / warmup_steps to peak (Goyal et al. 2017, section 2.2). Then it
    is constant, or falls by `decay` every `decay_every_steps` counted from step 0, or follows half a cosine from the
    end of the warm-up to zero after the last step (Loshchilov & Hutter 2017, "SGDR", equation 5 with one period).
    """
    if step < warmup_steps:
        return peak * ((step + 1) / warmup_steps)
    if shape == "step":
        return peak * float(decay ** (step // decay_every_steps))
    if shape == "cosine":
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak


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
