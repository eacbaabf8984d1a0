"""The section `model` of the config: which model, the arguments of those that come along, and what it starts from."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hpctrain.config.texts import Count, Fraction, Function, Path, Pattern, Positive

Activation = Literal[
    "relu", "tanh", "sigmoid", "hardtanh", "leaky", "prelu", "elu", "selu", "gelu", "softplus", "swish"
]
Init = Literal["default", "constant", "normal", "glorot", "he", "orthogonal"]
Loss = Literal["auto", "cross_entropy", "binary_cross_entropy", "mse", "mae", "huber", "hinge", "perceptron"] | Function
Metric = Literal["accuracy", "top5", "confusion", "mse", "mae", "r2"]


class Weights(Struct, frozen=True, kw_only=True):
    """How the weights of dense layers and convolutions start."""

    init: Init = "default"
    """How weights start. default: as torch's layers do (uniform, He et al. 2015 with torch's gain); constant; normal;
    glorot: uniform within sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010); he: normal with variance 2 / inputs
    (He et al. 2015); orthogonal (Saxe et al. 2014). With all but default, biases start at 0."""
    init_value: float | None = None
    """With `init: constant` the value of all weights, with `init: normal` their standard deviation; 0.01 if absent."""


class AffineArgs(Weights, frozen=True, kw_only=True):
    """Arguments of the models linear, logistic and perceptron."""


class MlpArgs(Weights, frozen=True, kw_only=True):
    """Arguments of `model: {name: mlp}`."""

    hidden: tuple[Positive, ...] = (128,)
    """Widths of the hidden layers."""
    activation: Activation = "relu"
    """What follows each hidden layer; leaky has the slope 0.01, prelu learns it from 0.25 on, swish is x sigmoid(x)."""
    batch_norm: bool = False
    """Batch norm before each activation (Ioffe & Szegedy 2015)."""
    dropout: Fraction = 0.0
    """Part of the outputs of each hidden layer that is set to 0 in training (Srivastava et al. 2014)."""
    dropout_input: Fraction = 0.0
    """The same of the inputs."""


class CnnArgs(Weights, frozen=True, kw_only=True):
    """Arguments of `model: {name: cnn}`."""

    channels: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (32, 64)
    """Channels of the blocks; each is a convolution, 2 x 2 pooling, and the activation."""
    kernel: Positive = 3
    """Height and width of the convolutions; an odd number, unless `padding` is given."""
    padding: Count | None = None
    """Width of the margin of zeros: of n pixels a convolution makes n + 2 x padding - kernel + 1. If absent, height and
    width stay."""
    pool: Literal["max", "average", "none"] = "max"
    """What halves height and width after each convolution."""
    activation: Activation = "relu"
    """What follows each block and each dense layer; as for mlp."""
    norm: Literal["none", "before", "after"] = "none"
    """Batch norm before the activation of a block (Ioffe & Szegedy 2015), or after it and the pooling."""
    norm_blocks: tuple[Positive, ...] = ()
    """Numbers of the blocks that have a batch norm, from 1; all of them if empty."""
    dropout_blocks: Fraction = 0.0
    """Part of the outputs of each block that is set to 0 in training (Srivastava et al. 2014)."""
    hidden: Positive = 128
    """Width of the dense layer after the blocks."""
    dense: tuple[Positive, ...] = ()
    """Widths of further dense layers behind that one."""
    dropout: Fraction = 0.0
    """Part of the outputs of each dense layer that is set to 0 in training."""

    @property
    def margin(self) -> int:
        """The padding that is used."""
        return self.kernel // 2 if self.padding is None else self.padding

    def side_after(self, blocks: int, side: int) -> int:
        """Return how many of `side` pixels are left after some blocks; 0 if nothing is."""
        for _ in range(blocks):
            side = max(side + 2 * self.margin - self.kernel + 1, 0) // (1 if self.pool == "none" else 2)
        return side

    def refusal(self, side: int) -> tuple[str, str] | None:
        """Say that the blocks leave nothing of `side` pixels, and what would; None if they leave something."""
        blocks = len(self.channels)
        if self.side_after(blocks, side):
            return None
        most = next(number for number in range(blocks, -1, -1) if self.side_after(number, side))
        hint = f"give at most {most} for this dataset" if most else "give a smaller kernel, or padding"
        return f"{blocks} blocks leave nothing of {side} pixels", hint


class LenetArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `model: {name: lenet}`, LeNet-5 (LeCun et al. 1998, section II.B)."""

    activation: Activation = "tanh"
    """What follows each layer; as for mlp."""
    pool: Literal["average", "max"] = "average"
    """What halves height and width."""


class CifarResnetArgs(Struct, frozen=True, kw_only=True):
    """Arguments of the models resnet20, resnet32, resnet44, resnet56 and resnet110 for small pictures."""

    zero_init: bool = True
    """The last norm of each residual block starts at zero (Goyal et al. 2017, section 5.1)."""


class ResnetArgs(Struct, frozen=True, kw_only=True):
    """Arguments of the models resnet18 to resnet152."""

    zero_init: bool = True
    """The last norm of each residual block starts at zero (Goyal et al. 2017, section 5.1)."""
    stem: Literal["large", "small"] = "large"
    """large: a 7 x 7 convolution and pooling take a quarter of height and width; small: a 3 x 3 convolution keeps
    them, for pictures of about 32 x 32."""


class InceptionArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `model: {name: inception}`."""

    auxiliary: bool = True
    """Two more classifiers in the middle, whose losses count 0.3 each in training (Szegedy et al. 2015, section 5)."""
    dropout: Fraction = 0.4
    """Part of the inputs of the last layer that is set to 0 in training."""


class VitArgs(Struct, frozen=True, kw_only=True):
    """Arguments of the models vit-tiny and vit-small."""

    patch: Positive = 16
    """Height and width of the patches; divides those of the picture. 4 is usual for pictures of about 32 x 32."""
    dropout: Fraction = 0.0
    """Part of the outputs of each layer that is set to 0 in training."""


class Model(Struct, frozen=True, kw_only=True):
    """The model."""

    name: (
        Literal[
            "linear", "logistic", "perceptron", "mlp", "cnn", "lenet",
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
            "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
            "inception", "vit-tiny", "vit-small",
        ]
        | Function
    )  # fmt: skip
    """linear; logistic: with a sigmoid; perceptron: with a step (Rosenblatt 1958); mlp, cnn, lenet; resnet18 to
    resnet152 for pictures of about 224 x 224 (He et al. 2016), resnet20 to resnet110 for about 32 x 32 (section 4.2);
    inception: v1, GoogLeNet (Szegedy et al. 2015); vit-tiny, vit-small (Dosovitskiy et al. 2021, Touvron et al. 2021);
    torchvision:NAME or timm:NAME, a model of these libraries that classifies, with random weights and `args` passed on;
    or the user's own function as package.module:function, called with `args` and returning a torch.nn.Module."""
    args: dict[str, Any] = {}
    """Arguments of the model."""
    batch_norm: Literal["local", "sync", "ghost"] = "local"
    """Over which samples batch norms take mean and variance, in any model. local: those of a pass on one rank; sync:
    those of a pass on all ranks, at the cost of an exchange per norm, forward and backward; ghost: groups of
    `ghost_batch` samples (Hoffer et al. 2017), the same on any number of ranks. With batch.accumulate each pass has
    statistics of its own."""
    ghost_batch: Annotated[int, Meta(ge=2)] | None = None
    """Samples of a group with `batch_norm: ghost`, 32 if absent; it must divide the samples of each pass, also of those
    of a last, smaller batch."""
    weights: Path | None = None
    """Start from the weights in this safetensors file, such as `hpctrain ckpt export` writes, or model.safetensors of
    a checkpoint. All names and shapes must agree. Its SHA-256 is in the plan; once there is a checkpoint the file is
    not needed any more."""
    weights_skip: tuple[Pattern, ...] = ()
    """Patterns of names, such as "fc.*", that are not taken from `weights` but start at random: a head for other
    classes."""
    freeze: tuple[Pattern, ...] = ()
    """Patterns of names of parameters, such as "body.*", that are not trained: no gradient, no decay. A norm all of
    whose parameters are frozen keeps its running averages and uses them."""


_AFFINE = ("linear", "logistic", "perceptron")
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")

MODEL_ARGS: dict[str, type[Struct]] = {
    **dict.fromkeys(_AFFINE, AffineArgs),
    "mlp": MlpArgs,
    "cnn": CnnArgs,
    "lenet": LenetArgs,
    **dict.fromkeys(_RESNETS, ResnetArgs),
    **dict.fromkeys(_CIFAR_RESNETS, CifarResnetArgs),
    "inception": InceptionArgs,
    **dict.fromkeys(("vit-tiny", "vit-small"), VitArgs),
}
"""The classes of the arguments of the models that come along."""

HAVE_BATCH_NORM = {*_RESNETS, *_CIFAR_RESNETS, "inception"}
"""The models that come along and have batch norms whatever their arguments are."""


def has_batch_norm(model: Model) -> bool:
    """Say whether a model that comes along has batch norms; of the user's own nobody knows before it is built."""
    norms = model.args.get("batch_norm", False) or model.args.get("norm", "none") != "none"
    return model.name in HAVE_BATCH_NORM or (model.name in MODEL_ARGS and norms)


TAKES_TABLES = {*_AFFINE, "mlp"}
"""The models that come along and take rows of a table; the others need pictures."""

LIBRARIES = ("torchvision", "timm")
"""What stands before the colon of a model of these libraries."""
