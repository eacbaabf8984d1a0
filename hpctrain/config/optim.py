"""The section `optim` of the config: the optimizer, its learning rate and the schedule of both."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from hpctrain.config.duration import Duration
from hpctrain.config.texts import Fraction, NonNegative, Positive


class Optim(Struct, frozen=True, kw_only=True):
    """The optimizer and its learning rate."""

    name: Literal["sgd"] = "sgd"
    """Stochastic gradient descent."""
    lr: Annotated[float, Meta(gt=0)]
    """Learning rate at `base_batch`; what is used follows from `scale`."""
    base_batch: Positive | None = None
    """Global batch for which `lr` was chosen; if absent the rate is used as it stands."""
    scale: Literal["linear", "none"] = "linear"
    """linear: lr x global batch / base_batch (Goyal et al. 2017, section 2.1); none: lr as it stands."""
    warmup: Duration = Duration(0, "steps")
    """Length of the linear ramp from lr / warm-up steps to the full rate (Goyal et al. 2017, section 2.2)."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """constant; step: times `decay` every `decay_every`; cosine: to zero at the end (Loshchilov & Hutter 2017,
    without restarts)."""
    decay: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Factor of the step schedule."""
    decay_every: Duration = Duration(30, "epochs")
    """Length between two decays of the step schedule."""
    momentum: Fraction = 0.0
    """Momentum."""
    nesterov: bool = False
    """Nesterov's momentum; needs momentum > 0."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on every parameter, as torch.optim.SGD applies it."""
