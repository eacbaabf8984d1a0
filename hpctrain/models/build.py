"""Name -> module: the models that come along, or the user's own."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hpctrain import function
from hpctrain.config import schema
from hpctrain.config.models import LIBRARIES
from hpctrain.errors import JobError
from hpctrain.models.cifar_resnet import cifar_resnet
from hpctrain.models.inception import inception
from hpctrain.models.layers import Shape
from hpctrain.models.library import library
from hpctrain.models.plain import affine, cnn, lenet, mlp
from hpctrain.models.resnet import resnet
from hpctrain.models.vit import vit

BUILDERS: dict[str, Callable[[Any, Shape, int], nn.Module]] = {
    **dict.fromkeys(("linear", "logistic", "perceptron"), affine),
    "mlp": mlp,
    "cnn": cnn,
    "lenet": lenet,
    **{f"resnet{layers}": functools.partial(resnet, layers) for layers in (18, 34, 50, 101, 152)},
    **{f"resnet{layers}": functools.partial(cifar_resnet, layers) for layers in (20, 32, 44, 56, 110)},
    "inception": inception,
    **{name: functools.partial(vit, name) for name in ("vit-tiny", "vit-small")},
}
"""The models that come along; a test holds the names equal to `schema.MODEL_ARGS`."""


def build(model: schema.Model, *, shape: Shape, outputs: int, seed: int) -> nn.Module:
    """Build a model on the CPU, with initial weights that are a pure function of the seed.

    Dense layers and convolutions start as torch's do (uniform, K. He et al. 2015, "Delving deep into rectifiers", with
    torch's gain) where neither `args.init` nor the paper of a model says otherwise: the residual networks, inception
    and the transformers have their own. Lazy layers get their shapes here. The caller's random state is left as it was.

    Args:
        model: the config's section; a user's function is called with `args` alone.
        shape: channels, height and width of an image; or the number of inputs.
        outputs: how many numbers it gives for each sample; a user's function knows it itself.
        seed: of the weights.

    Raises:
        UsageError: the user's function or the library cannot be found, or the model does not fit the images.
        JobError: the user's function raised, or returned something else than a torch.nn.Module, or lazy layers get no
            shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        if model.name in BUILDERS:
            return BUILDERS[model.name](schema.arguments(schema.MODEL_ARGS[model.name], model.args), shape, outputs)
        if model.name.partition(":")[0] in LIBRARIES:
            return library(model, shape, outputs)
        return _shaped(_users(model), model.name, shape)


def draws(model: nn.Module, name: str) -> bool:
    """Say whether a model of this name may draw random numbers in training; of ours only dropout does."""
    if name not in BUILDERS:
        return True
    rates = {part.p for part in model.modules() if isinstance(part, nn.Dropout)}
    rates |= {part.dropout for part in model.modules() if isinstance(part, nn.MultiheadAttention)}
    return bool(rates - {0.0})


def _users(model: schema.Model) -> nn.Module:
    builder = function.find(model.name, "model.name")
    called = function.call(model.name, model.args)
    try:
        built = builder(**model.args)
    except Exception as error:
        raise JobError(
            f"model.name: {called} raised {type(error).__name__}: {error}\n{function.frames(error)}",
            "correct the function or model.args",
        ) from error
    if not isinstance(built, nn.Module):
        raise JobError(
            f"model.name: {called} returned {type(built).__module__}.{type(built).__qualname__}, not a torch.nn.Module",
            f"let it return the module ({function.where(builder)})",
        )
    return built


def _shaped(model: nn.Module, name: str, shape: Shape) -> nn.Module:
    """Let lazy layers see a batch, so that whoever looks at their weights next finds them, drawn from the seed."""
    if not _lazy(model):
        return model
    training, zeros = model.training, torch.zeros(2, *shape)
    try:
        with torch.no_grad():
            model.eval()(zeros)
    except Exception as error:
        raise JobError(
            f"model.name: {name} failed on a batch of shape {tuple(zeros.shape)}: {type(error).__name__}: {error}"
        ) from error
    if left := _lazy(model):
        raise JobError(
            f"model.name: {name} has lazy layers that get no shape in evaluation: {', '.join(left)}",
            "give these layers their sizes",
        )
    return model.train(training)


def _lazy(model: nn.Module) -> list[str]:
    return [name for name, part in (*model.named_parameters(), *model.named_buffers()) if is_lazy(part)]
