"""The section `optim` of the config: the optimizer, its learning rate and the schedule of both."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from hpctrain.config.duration import Duration
from hpctrain.config.models import LIBRARIES
from hpctrain.config.texts import Count, Fraction, NonNegative, Positive

Optimizer = Literal[
    "sgd", "adagrad", "adadelta", "rmsprop", "adam", "amsgrad", "nadam", "radam", "adamax", "adamw", "lars", "lamb"
]
Shape = Literal[
    "constant", "step", "multistep", "linear", "cosine", "polynomial", "onecycle", "plateau", "restarts"
]  # fmt: skip
Above0 = Annotated[float, Meta(gt=0)]
Part = Annotated[float, Meta(gt=0, le=1)]


class Optim(Struct, frozen=True, kw_only=True):
    """The optimizer and its learning rate. What has no effect with the chosen optimizer or schedule is refused."""

    name: Optimizer = "sgd"
    """As torch.optim computes them (amsgrad: its Adam with amsgrad); lars: You et al. 2017; lamb: You et al. 2020."""
    lr: Above0
    """Learning rate at `base_batch`; what is used follows from `scale`."""
    base_batch: Positive | None = None
    """Global batch for which `lr` was chosen; if absent the rate is used as it stands."""
    scale: Literal["linear", "sqrt", "none"] = "linear"
    """What a batch k x base_batch changes. linear: lr x k (Goyal et al. 2017, section 2.1); sqrt: lr x sqrt(k)
    (Krizhevsky 2014), and with adam, amsgrad, nadam, radam, adamax, adamw and rmsprop also 1 - beta (1 - alpha) x k and
    eps / sqrt(k) (Malladi et al. 2022, section 5); none: nothing."""
    warmup: Duration = Duration(0, "steps")
    """Length of the linear ramp to the full rate. It starts at the full rate / its steps; that of Goyal et al. 2017,
    section 2.2, starts at the rate of a small batch."""
    schedule: Shape = "constant"
    """constant; step: times `decay` every `decay_every`; multistep: times `decay` at each of `milestones`; linear,
    polynomial, cosine (Loshchilov & Hutter 2017, without restarts): from the end of the warm-up down to `floor`, over
    `decay_over`; onecycle: up over `rise`, then down to `floor` (Smith 2018); plateau: times `decay` when the loss on
    the validation set stops falling; restarts: cosine again and again (Loshchilov & Hutter 2017)."""
    decay: Part = 0.1
    """Factor of the schedules step, multistep and plateau."""
    decay_every: Duration = Duration(30, "epochs")
    """Length between two decays of the step schedule, counted from the first step."""
    milestones: tuple[Duration, ...] = ()
    """Where the multistep schedule decays, such as [30 epochs, 60 epochs], counted from the first step."""
    decay_over: Duration | None = None
    """When linear, cosine and polynomial have reached `floor`, counted from the first step; the end if absent."""
    floor: Fraction = 0.0
    """The lowest rate of linear, cosine, polynomial, onecycle, plateau and restarts, as a part of the full one."""
    power: Above0 = 2.0
    """Of the polynomial."""
    rise: Duration = Duration(30, "%")
    """Length of the way up of onecycle."""
    start: Part = 0.04
    """Rate of the first step of onecycle, as a part of the full one."""
    legs: Literal["cosine", "linear"] = "cosine"
    """How onecycle goes up and down."""
    cycle_momentum: tuple[Fraction, Fraction] | None = None
    """Lowest and highest momentum of onecycle, such as [0.85, 0.95]: it is lowest where the rate is highest. Takes the
    place of `momentum`, or of the first of `betas`. If absent, momentum stays."""
    period: Duration = Duration(10, "epochs")
    """Length of the first period of restarts, from the end of the warm-up."""
    period_growth: Positive = 1
    """How many times as long as the one before a period of restarts is."""
    patience: Count = 10
    """Evaluations in a row that plateau bears without a lower loss on the validation set; the next one reduces."""
    threshold: Fraction = 1e-4
    """By which part of the lowest one a loss must be lower to count for plateau."""
    cooldown: Count = 0
    """Evaluations after a reduction that plateau does not count."""
    momentum: Fraction = 0.0
    """Momentum of sgd, rmsprop and lars. The rate is outside of what it adds up, so a change of the rate acts at once
    on all of it: what Goyal et al. 2017 (section 3, remark 2) call momentum correction."""
    nesterov: bool = False
    """Nesterov's momentum, for sgd; needs momentum > 0."""
    dampening: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Part of the gradient that sgd keeps out of its momentum."""
    betas: tuple[Fraction, Fraction] | None = None
    """Of adam, amsgrad, nadam, radam, adamax, adamw and lamb; [0.9, 0.999] if absent."""
    alpha: Fraction | None = None
    """Smoothing of the squares of rmsprop; 0.99 if absent."""
    rho: Fraction | None = None
    """Smoothing of the squares of adadelta; 0.9 if absent."""
    centered: bool = False
    """rmsprop divides by the standard deviation of the gradient."""
    eps: Above0 | None = None
    """Against a division by 0, for all but sgd and lars; if absent 1e-8, for adadelta and lamb 1e-6, for adagrad
    1e-10."""
    trust: Above0 | None = None
    """Trust coefficient of lars; 0.001 if absent."""
    weight_decay: NonNegative = 0.0
    """x weights, is added to the gradient; adamw and lamb add it to the step, times the rate."""
    weight_decay_on: Literal["auto", "all", "weights"] = "auto"
    """all; weights: not on biases and the parameters of norms, which lars and lamb then leave without a rate of their
    own, too. auto: weights for lars, lamb and the models resnet..., also those of torchvision and timm, else all."""


_PLAIN = Optim(lr=1.0)
_ADAMS = ("adam", "amsgrad", "nadam", "radam", "adamax", "adamw")
_FALLING = ("linear", "cosine", "polynomial")

BY_NAME: dict[str, tuple[str, ...]] = {
    "momentum": ("sgd", "rmsprop", "lars"),
    "nesterov": ("sgd",),
    "dampening": ("sgd",),
    "betas": (*_ADAMS, "lamb"),
    "alpha": ("rmsprop",),
    "rho": ("adadelta",),
    "centered": ("rmsprop",),
    "eps": ("adagrad", "adadelta", "rmsprop", *_ADAMS, "lamb"),
    "trust": ("lars",),
}
"""Which optimizers read an argument; all read those that are not here."""

BY_SCHEDULE: dict[str, tuple[str, ...]] = {
    "warmup": ("constant", "step", "multistep", *_FALLING, "plateau", "restarts"),
    "decay": ("step", "multistep", "plateau"),
    "decay_every": ("step",),
    "milestones": ("multistep",),
    "decay_over": _FALLING,
    "floor": (*_FALLING, "onecycle", "plateau", "restarts"),
    "power": ("polynomial",),
    "rise": ("onecycle",),
    "start": ("onecycle",),
    "legs": ("onecycle",),
    "cycle_momentum": ("onecycle",),
    "period": ("restarts",),
    "period_growth": ("restarts",),
    "patience": ("plateau",),
    "threshold": ("plateau",),
    "cooldown": ("plateau",),
}
"""Which schedules read an argument."""

_LENGTHS = ("decay_every", "decay_over", "period", "rise")

SMOOTHED = (*_ADAMS, "rmsprop")
"""Optimizers whose smoothing the square-root rule scales, too."""

_EPS = {"adadelta": 1e-6, "lamb": 1e-6, "adagrad": 1e-10}


class Settings(Struct, frozen=True):
    """What of an optimizer depends on the batch; None where it has no such thing."""

    lr: float
    betas: tuple[float, float] | None = None
    alpha: float | None = None
    eps: float | None = None


def asked(optim: Optim) -> Settings:
    """Return what the config asks for, with the defaults of the optimizer."""
    return Settings(
        lr=optim.lr,
        betas=(optim.betas or (0.9, 0.999)) if optim.name in BY_NAME["betas"] else None,
        alpha=(0.99 if optim.alpha is None else optim.alpha) if optim.name in BY_NAME["alpha"] else None,
        eps=(optim.eps or _EPS.get(optim.name, 1e-8)) if optim.name in BY_NAME["eps"] else None,
    )


def spares(optim: Optim, model: str) -> bool:
    """Say whether biases and norms have no weight decay, for a model by its name."""
    if optim.weight_decay_on != "auto":
        return optim.weight_decay_on == "weights"
    library, _, name = model.rpartition(":")
    return optim.name in {"lars", "lamb"} or (name.startswith("resnet") and library in {"", *LIBRARIES})


def check(optim: Optim) -> Iterator[tuple[str, str]]:
    """Yield what does not fit: the dotted key to blame, and a message."""
    for key, message in unread(optim):
        if getattr(optim, key) != getattr(_PLAIN, key):
            yield f"optim.{key}", message
    if optim.nesterov and optim.cycle_momentum is None and not optim.momentum:
        yield "optim.nesterov", "needs momentum greater than 0, such as momentum: 0.9"
    if optim.nesterov and optim.dampening:
        yield "optim.dampening", "cannot be combined with nesterov; remove one of them"
    for key in _LENGTHS:
        length = getattr(optim, key)
        if optim.schedule in BY_SCHEDULE[key] and length is not None and not length.count:
            yield f"optim.{key}", f"must be longer than 0 with schedule: {optim.schedule}"
    if optim.schedule == "multistep" and not optim.milestones:
        yield "optim.milestones", "missing; say where to decay, such as milestones: [30 epochs, 60 epochs]"
    if optim.cycle_momentum is not None and optim.schedule == "onecycle":
        yield from _cycle(optim, optim.cycle_momentum)
    if optim.scale == "sqrt" and optim.base_batch is None:
        yield "optim.scale", "sqrt scales from base_batch, which is missing; give it, or remove scale"


def unread(optim: Optim) -> Iterator[tuple[str, str]]:
    """Yield the arguments that have no effect with the chosen optimizer and schedule, and which choices they need."""
    for table, choice in ((BY_NAME, "name"), (BY_SCHEDULE, "schedule")):
        chosen = getattr(optim, choice)
        for key, readers in table.items():
            if chosen not in readers:
                others = " or ".join([", ".join(readers[:-1]), readers[-1]] if readers[:-1] else readers)
                yield key, f"nothing reads this with {choice}: {chosen}; remove it, or use {choice}: {others}"


def _cycle(optim: Optim, cycle: tuple[float, float]) -> Iterator[tuple[str, str]]:
    low, high = cycle
    if low > high:
        yield "optim.cycle_momentum", f"runs from {low:g} down to {high:g}; give the smaller number first"
    if not low and optim.name in BY_NAME["momentum"]:
        yield "optim.cycle_momentum", f"{optim.name} needs momentum greater than 0, such as [0.85, 0.95]"
    if optim.name not in BY_NAME["momentum"] + BY_NAME["betas"]:
        yield "optim.cycle_momentum", f"{optim.name} has no momentum; remove it"
    if optim.momentum:
        yield "optim.momentum", "follows from cycle_momentum; give one of them"
    if optim.scale == "sqrt" and optim.name in _ADAMS:
        yield "optim.cycle_momentum", "scale: sqrt scales the first of betas, in whose place this is; give one of them"
