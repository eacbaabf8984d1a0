"""Start from a file of weights (`model.weights`): names and shapes must be the model's, and the bytes the planned."""

import fnmatch
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from hpctrain.config.models import Model
from hpctrain.errors import JobError, UsageError
from hpctrain.models.freeze import listed
from hpctrain.plan import Plan
from hpctrain.train import state
from hpctrain.train.average import Average

_SHOWN = 10


def start(config: Model, plan: Plan, model: nn.Module, average: Average | None) -> None:
    """Put the weights of the plan's file into a model that has no checkpoint yet; every rank reads them.

    Args:
        config: names what is left out.
        plan: has the file and its SHA-256.
        model: on its device.
        average: of its weights, which begins with them.

    Raises:
        JobError: the file cannot be read, or is not the planned one.
        UsageError: it has other names or shapes than the model.
    """
    if plan.weights_path is None:
        return
    found = state.tensors(_content(plan), plan.weights_path)
    chosen = _fitting(found, model.state_dict(), config.weights_skip, plan.weights_path)
    with torch.no_grad():
        _put(chosen, model)
        if average is not None:
            with average.in_use():
                _put(chosen, model)


def _content(plan: Plan) -> bytes:
    path = Path(plan.weights_path or "")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JobError(
            f"model.weights: {path} cannot be read: {error.strerror}", "put it back, or submit the run again"
        ) from None
    if hashlib.sha256(content).hexdigest() != plan.weights_sha256:
        raise JobError(
            f"model.weights: {path} has changed since the run was planned: its SHA-256 is another",
            "put the file back, or submit the run again",
        )
    return content


def _fitting(
    found: dict[str, Tensor], wanted: dict[str, Tensor], skip: tuple[str, ...], path: str
) -> dict[str, Tensor]:
    """Return what of a file goes into the model: all of both but what is skipped.

    Raises:
        UsageError: names or shapes differ, or a pattern matches nothing.
    """
    names = sorted(found.keys() | wanted.keys())
    for pattern in skip:
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"model.weights_skip: nothing in the model or in {path} matches {pattern!r}",
                f"names are: {listed(names)}",
            )
    kept = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in skip)]
    problems = {}
    for name in kept:
        if name not in found:
            problems[name] = "not in the file"
        elif name not in wanted:
            problems[name] = "not in the model"
        elif found[name].shape != wanted[name].shape:
            problems[name] = f"{_shape(found[name])} in the file, {_shape(wanted[name])} in the model"
    if problems:
        shown = "\n  ".join(f"{name}: {problem}" for name, problem in list(problems.items())[:_SHOWN])
        layers = (f"{layer}.*" if (layer := name.rpartition(".")[0]) else name for name in problems)
        patterns = ", ".join(f'"{layer}"' for layer in dict.fromkeys(layers))
        raise UsageError(
            f"model.weights: {path} is of another model: {len(problems)} of {len(names)} tensors differ\n  {shown}",
            f"if these may start at random, as a head for other classes does: model.weights_skip=[{patterns}]"
            if len(problems) * 4 <= len(names) or len(problems) <= 2
            else "give the model that these weights are of, with its args",
        )
    return {name: found[name] for name in kept}


def _put(chosen: dict[str, Tensor], model: nn.Module) -> None:
    own = model.state_dict()
    for name, tensor in chosen.items():
        own[name].copy_(tensor)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
