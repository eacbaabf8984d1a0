"""Name -> module: the models that come along, or the user's own."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hpctrain import function
from hpctrain.config import schema
from hpctrain.errors import JobError
from hpctrain.models.plain import Shape, cnn, mlp
from hpctrain.models.resnet import resnet

BUILDERS: dict[str, Callable[[Any, Shape, int], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    **{f"resnet{layers}": functools.partial(resnet, layers) for layers in (18, 34, 50, 101, 152)},
}
"""The models that come along; a test holds the names equal to `schema.MODEL_ARGS`."""


def build(model: schema.Model, *, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a model on the CPU, with initial weights that are a pure function of the seed.

    The weights are drawn as torch's layers draw them by default (uniform, K. He et al. 2015, "Delving deep into
    rectifiers", with torch's gain). The caller's random state is left as it was.

    Args:
        model: the config's section; a user's function is called with `args` alone.
        shape: channels, height and width of an image; or the number of inputs.
        classes: number of classes, or 1 for a number.
        seed: of the weights.

    Raises:
        UsageError: the user's function cannot be found, or the model does not fit the images.
        JobError: the user's function raised, or returned something else than a torch.nn.Module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        if model.name in BUILDERS:
            return BUILDERS[model.name](schema.arguments(schema.MODEL_ARGS[model.name], model.args), shape, classes)
        return _users(model)


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
