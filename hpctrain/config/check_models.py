"""Rules of the sections `model`, `loss` and `metrics`: alone, and for what the dataset asks to predict."""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from hpctrain.config import check_data
from hpctrain.config.datasets import Data
from hpctrain.config.models import (
    LIBRARIES,
    MODEL_ARGS,
    TAKES_TABLES,
    CnnArgs,
    MlpArgs,
    Model,
    VitArgs,
    Weights,
    has_batch_norm,
)
from hpctrain.config.schema import Config, arguments

OF_NUMBERS = {"mse", "mae", "huber"}
"""The losses that take numbers; of classes they take 1 and 0."""

_OF_MODELS = {
    "logistic": ("binary_cross_entropy", *sorted(OF_NUMBERS)),
    "perceptron": ("perceptron",),
}
"""The losses of models that have a sigmoid or a step; the first is meant by auto."""

_OWN = {
    "torchvision": ("num_classes", "weights", "weights_backbone"),
    "timm": ("num_classes", "in_chans", "pretrained", "checkpoint_path", "pretrained_cfg"),
}
"""Arguments of the libraries that the data or `model.weights` decide."""

Found = Iterator[tuple[str, str]]


def check(config: Config) -> Found:
    """Yield the dotted key to blame, and a message."""
    if config.command is not None:
        yield from _unread(config)
        return
    model, data = config.model, config.data
    if model is None or data is None or not isinstance(model.name, str):  # what is missing is reported elsewhere
        return
    yield from _arguments(model)
    yield from _start(model)
    if data.dataset not in check_data.KNOWN and ":" not in str(data.dataset):
        return  # it is no dataset, which is reported elsewhere
    if model.name in MODEL_ARGS:
        yield from _absent(config, model)
        yield from _inputs(data, model)
    elif model.name.partition(":")[0] in LIBRARIES:
        yield from _library_inputs(data, model)
    classes = check_data.classes(data)
    yield from loss_problems(config, classes)
    yield from _metrics(config, classes)


def loss_of(config: Config, *, number: bool) -> str:
    """Return the loss that is meant by what is asked."""
    if config.loss != "auto" or config.model is None:
        return config.loss
    if number:
        return "mse"
    return _OF_MODELS.get(config.model.name, ("cross_entropy",))[0]


def loss_problems(config: Config, classes: int | None) -> Found:
    """Say what of the loss does not fit the model and so many classes; 0: numbers; None: classes not counted yet."""
    name = "" if config.model is None else config.model.name
    loss = loss_of(config, number=classes == 0)
    own = _OF_MODELS.get(name)
    if classes == 0 and name == "perceptron":
        yield "model.name", "perceptron has a step and learns classes, not numbers; use linear or mlp"
    elif classes == 0 and loss not in OF_NUMBERS and ":" not in loss:
        yield "loss", f"{loss} is of classes, and the data ask for a number; use auto, mse, mae or huber"
    elif own is not None and loss not in own and ":" not in loss:
        yield "loss", f"{loss} does not fit {name}; use auto or {' or '.join(own)}, or model: {{name: linear}}"
    elif loss == "binary_cross_entropy" and classes is not None and classes > 2:
        told = f"is of two classes, and there are {classes}"
        if config.loss == "auto":
            yield "model.name", f"{name} {told}; use loss: mse for a sigmoid of each, or model: {{name: linear}}"
        else:
            yield "loss", f"binary_cross_entropy {told}; use {'mse' if name == 'logistic' else 'cross_entropy'}"
    mixes = "" if config.data is None else check_data.mixes(config.data)
    if loss in {"hinge", "perceptron"} and mixes:
        yield "loss", f"{loss} needs whole classes, and data.augment.{mixes} mixes them; use cross_entropy"


def _unread(config: Config) -> Found:
    for key, unset in (("loss", "auto"), ("metrics", ())):
        if getattr(config, key) != unset:
            yield key, "nothing reads this with a command of your own; remove it"


def _metrics(config: Config, classes: int | None) -> Found:
    for index, metric in enumerate(config.metrics):
        if metric in config.metrics[:index]:
            yield f"metrics[{index}]", f"{metric} is named twice"
        elif problem := metric_problem(metric, classes):
            yield f"metrics[{index}]", problem


def metric_problem(metric: str, classes: int | None) -> str:
    """Say why a metric does not fit so many classes; 0: numbers; None: classes not counted yet. Empty: it fits."""
    of_numbers = metric in {"mse", "mae", "r2"}
    if of_numbers and classes != 0:
        return f"{metric} is of numbers, and the data ask for classes; use top5 or confusion"
    if not of_numbers and classes == 0:
        return f"{metric} is of classes, and the data ask for a number; use mse, mae or r2"
    if metric == "top5" and classes is not None and classes <= 5:
        return f"top5 is always 1 with {classes} classes; remove it"
    if metric == "confusion" and classes is not None and classes > 200:
        return f"confusion would be a table of {classes} x {classes} numbers in each evaluation; at most 200 classes"
    return ""


def _changed(args: Struct, *names: str) -> list[str]:
    """Return those of the arguments that are not what they are by default."""
    plain: Any = type(args)()
    return [name for name in names if getattr(args, name) != getattr(plain, name)]


def _arguments(model: Model) -> Found:
    """Arguments that have no effect with the others, or are out of their range."""
    library, _, _ = model.name.partition(":")
    for key in model.args if library in LIBRARIES and ":" in model.name else ():
        if key in _OWN[library]:
            yield f"model.args.{key}", "follows from the data, or from model.weights; remove it"
    if model.name not in MODEL_ARGS:
        return
    args = arguments(MODEL_ARGS[model.name], model.args)
    if isinstance(args, Weights):
        if args.init_value is not None and args.init not in {"constant", "normal"}:
            yield "model.args.init_value", f"nothing reads this with init: {args.init}; remove it, or use init: normal"
        elif args.init == "normal" and args.init_value is not None and args.init_value <= 0:
            yield "model.args.init_value", "is a standard deviation here and must be greater than 0"
    if isinstance(args, MlpArgs) and not args.hidden:
        for key in _changed(args, "activation", "batch_norm", "dropout"):
            yield f"model.args.{key}", "is of hidden layers, and there are none; remove it, or give hidden: [128]"
    if isinstance(args, CnnArgs):
        yield from _blocks(args)


def _blocks(args: CnnArgs) -> Found:
    if args.kernel % 2 == 0 and args.padding is None:
        yield "model.args.kernel", f"{args.kernel} is even and has no centre; give an odd number, or padding"
    if args.norm_blocks and args.norm == "none":
        yield "model.args.norm_blocks", "nothing reads this with norm: none; remove it, or use norm: before or after"
    for number in args.norm_blocks:
        if number > len(args.channels):
            yield "model.args.norm_blocks", f"there is no block {number}; channels has {len(args.channels)}"


def _start(model: Model) -> Found:
    if model.weights_skip and model.weights is None:
        yield "model.weights_skip", "nothing reads this without model.weights; remove it, or give the file"


def _absent(config: Config, model: Model) -> Found:
    """What is asked of parts that a model that comes along does not have."""
    if config.train is not None and config.train.channels_last is not None and model.name in TAKES_TABLES:
        yield "train.channels_last", f"{model.name} has no convolution of images; remove it"
    if model.batch_norm != "local" and not has_batch_norm(model):
        give = {"mlp": ", or give args: {batch_norm: true}", "cnn": ", or give args: {norm: before}"}
        yield "model.batch_norm", f"{model.name} has no batch norm; remove it{give.get(model.name, '')}"


def _library_inputs(data: Data, model: Model) -> Found:
    yield from _rows(data, model)
    channels, (library, _, name) = check_data.channels(data), model.name.partition(":")
    if library == "torchvision" and channels not in {3, None}:
        pictures = data.dataset in {"folder", "shards"}
        use = f"{'data.args.channels: rgb, or ' if pictures else ''}timm:{name}, which takes any number"
        yield "model.name", f"{model.name} takes pictures of 3 channels, and the data have {channels}; use {use}"


def _rows(data: Data, model: Model) -> Found:
    if data.dataset in {"table", "points"}:
        what = "a table has" if data.dataset == "table" else "points have"
        yield "model.name", f"{model.name} needs images, and {what} none; use mlp"


def _inputs(data: Data, model: Model) -> Found:
    """Do the inputs fit a model that comes along?"""
    if model.name not in TAKES_TABLES:
        yield from _rows(data, model)
    sides = check_data.sides(data)
    if sides is None:  # the ranks see it
        return
    side, args = min(sides), arguments(MODEL_ARGS[model.name], model.args)
    if isinstance(args, CnnArgs) and (refusal := args.refusal(side)):
        yield "model.args.channels", "; ".join(refusal)
    if isinstance(args, VitArgs) and any(edge % args.patch for edge in sides):
        fitting = [str(n) for n in range(2, side + 1) if not any(edge % n for edge in sides)]
        use = f"one of {', '.join(fitting)}" if fitting else "images of another size, or model.name: mlp"
        pixels = f"{side}" if len(set(sides)) == 1 else f"{sides[0]} x {sides[1]}"
        yield "model.args.patch", f"{args.patch} does not divide {pixels} pixels; use {use}"
    if model.name == "lenet" and side < 12:
        yield "model.name", f"lenet leaves nothing of {side} pixels; it needs at least 12, use cnn or mlp"
