"""Name -> module: the models that come along, or the user's own."""

import functools
import importlib
import inspect
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hpctrain.config import schema
from hpctrain.errors import JobError, UsageError
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
    function = _find(model.name)
    try:
        built = function(**model.args)
    except Exception as error:
        raise JobError(
            f"model.name: {_call(model)} raised {type(error).__name__}: {error}\n{_users_frames(error)}",
            "correct the function or model.args",
        ) from error
    if not isinstance(built, nn.Module):
        raise JobError(
            f"model.name: {_call(model)} returned {type(built).__module__}.{type(built).__qualname__}, "
            "not a torch.nn.Module",
            f"let it return the module ({_where(function)})",
        )
    return built


def _find(name: str) -> Callable[..., object]:
    """Import `package.module:function`."""
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise UsageError(
                f"model.name: there is no module {error.name!r} (looked for {path!r} on sys.path)",
                "start hpctrain in the directory that holds it, or install it into the job's Python (env.venv)",
            ) from None
        raise UsageError(
            f"model.name: {path} imports {error.name!r}, which is not installed\n{_users_frames(error)}",
            "install it into the job's Python (env.venv)",
        ) from error
    except Exception as error:
        raise JobError(
            f"model.name: importing {path} raised {type(error).__name__}: {error}\n{_users_frames(error)}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        offered = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        said = "is no function" if hasattr(module, attribute) else "does not exist"
        raise UsageError(
            f"model.name: {attribute!r} {said} in {module.__file__ or path}",
            f"its functions are: {', '.join(offered) or 'none'}",
        )
    return function  # type: ignore[no-any-return]


def _call(model: schema.Model) -> str:
    return f"{model.name}({', '.join(f'{key}={value!r}' for key, value in model.args.items())})"


def _users_frames(error: BaseException) -> str:
    """Return the frames of the user's code: those after ours and after the import machinery."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return "".join(traceback.format_list(frames)).rstrip() or "  (it was called with arguments that it does not take)"


def _where(function: Callable[..., object]) -> str:
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (TypeError, OSError):
        return repr(function)
