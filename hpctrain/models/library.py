"""Models of torchvision and timm by name, with random weights: nothing is downloaded, by whatever rank.

Those that classify: torchvision's for detection and segmentation fetch a backbone, and take or give something else.
"""

import importlib
from types import ModuleType

from torch import nn

from hpctrain import function
from hpctrain.config.models import Model
from hpctrain.errors import JobError, UsageError
from hpctrain.models.layers import Shape, image


def library(model: Model, shape: Shape, outputs: int) -> nn.Module:
    """Build `torchvision:NAME` or `timm:NAME`: `(B, C, H, W)` -> `(B, outputs)`.

    Raises:
        UsageError: the library is not installed, or has no such model that classifies, or the inputs are no images it
            can take.
        JobError: it raised, as for an argument that the model does not have.
    """
    where, _, name = model.name.partition(":")
    channels, _, _ = image(model.name, shape)
    module = _load(where)
    if where == "torchvision":
        known, arguments = module.list_models(module=module), {"weights": None, "num_classes": outputs}
        if channels != 3:
            raise UsageError(
                f"model.name: {model.name} takes pictures of 3 channels, and the data have {channels}",
                f"use data.args.channels=rgb, or timm:{name}, which takes any number",
            )
    else:
        known, arguments = module.list_models(), {"pretrained": False, "num_classes": outputs, "in_chans": channels}
    if name not in known:
        what = "no model that classifies images by the name of" if name in module.list_models() else "no model"
        raise UsageError(f"model.name: {where} has {what} {name!r}", _near(name, known))
    make = module.get_model if where == "torchvision" else module.create_model
    try:
        built: nn.Module = make(name, **arguments, **model.args)
    except Exception as error:
        raise JobError(
            f"model.name: {function.call(model.name, model.args)} raised {type(error).__name__}: {error}\n"
            f"{function.frames(error)}",
            "correct model.args",
        ) from error
    return built


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module({"torchvision": "torchvision.models"}.get(name, name))
    except ModuleNotFoundError as error:
        raise UsageError(
            f"model.name: {name} cannot be loaded: there is no module {error.name!r}",
            f"install it into the job's Python (env.venv): python -m pip install --no-deps {name}",
        ) from None
    except Exception as error:  # an extension that was built for another torch
        raise UsageError(
            f"model.name: {name} cannot be loaded: {type(error).__name__}: {error}",
            "install the version that was built for the torch of the job's Python (env.venv)",
        ) from error


def _near(name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {len(known)} models, such as {known[0]}"
