"""The section `model` of the config: which model, and the arguments of those that come along."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hpctrain.config.texts import Function, Positive


class MlpArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `model: {name: mlp}`."""

    hidden: tuple[Positive, ...] = (128,)
    """Widths of the hidden layers."""
    activation: Literal["relu", "tanh"] = "relu"
    """What follows each hidden layer."""


class CnnArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `model: {name: cnn}`."""

    channels: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (32, 64)
    """Channels of the blocks; each is a 3 x 3 convolution, ReLU and 2 x 2 max pooling."""
    hidden: Positive = 128
    """Width of the dense layer after the blocks."""


class ResnetArgs(Struct, frozen=True, kw_only=True):
    """Arguments of the models resnet18 to resnet152."""

    zero_init: bool = True
    """The last norm of each residual block starts at zero (Goyal et al. 2017, section 5.1)."""


class Model(Struct, frozen=True, kw_only=True):
    """The model."""

    name: Literal["mlp", "cnn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] | Function
    """mlp, cnn; resnet18 to resnet152 for pictures of about 224 x 224 (He et al. 2016); or the user's own function as
    package.module:function, called with `args` and returning a torch.nn.Module."""
    args: dict[str, Any] = {}
    """Arguments of the model."""
    batch_norm: Literal["local", "sync", "ghost"] = "local"
    """Over which samples batch norms take mean and variance, in any model. local: those of a pass on one rank; sync:
    those of a pass on all ranks, at the cost of an exchange per norm, forward and backward; ghost: groups of
    `ghost_batch` samples (Hoffer et al. 2017), the same on any number of ranks. With batch.accumulate each pass has
    statistics of its own."""
    ghost_batch: Annotated[int, Meta(ge=2)] | None = None
    """Samples of a group with `batch_norm: ghost`, 32 if absent; it must divide the samples of a pass."""


MODEL_ARGS: dict[str, type[Struct]] = {
    "mlp": MlpArgs,
    "cnn": CnnArgs,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), ResnetArgs),
}
"""The classes of the arguments of the models that come along."""
