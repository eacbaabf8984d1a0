"""Weights and optimizer state <-> files of tensors and JSON. No pickle: it runs code that a file brings along."""

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from hpctrain.dist.comm import Comm
from hpctrain.errors import CheckpointError

Scalars = dict[str, Any]
"""What of an optimizer's state is no tensor, as JSON: `state` by parameter and name, and `groups`."""


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name; not copies.

    Raises:
        CheckpointError: it keeps something else (`get_extra_state`).
    """
    found = {key: value.detach() if isinstance(value, Tensor) else value for key, value in model.state_dict().items()}
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"the model keeps {key} as {type(value).__name__}: not savable")
    return found


def load_model(model: nn.Module, content: bytes, name: str) -> None:
    """Put the state of `model_tensors`, as a safetensors file, into a model.

    Raises:
        CheckpointError: the model has other parameters or shapes; the message lists them.
    """
    saved, wanted = tensors(content, name), model.state_dict()
    problems = [f"{key}: not in the checkpoint" for key in wanted.keys() - saved.keys()]
    problems += [f"{key}: not in the model" for key in saved.keys() - wanted.keys()]
    problems += [
        f"{key}: {_shape(saved[key])} in the checkpoint, {_shape(wanted[key])} in the model"
        for key in saved.keys() & wanted.keys()
        if saved[key].shape != wanted[key].shape or saved[key].dtype != wanted[key].dtype
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise CheckpointError(
            f"{name} holds another model than the config's: {len(problems)} differences\n  {shown}",
            "go on with the model and precision of the checkpoint, or start a new run",
        )
    model.load_state_dict(saved)


def share_buffers(model: nn.Module, comm: Comm) -> None:
    """Give all ranks rank 0's buffers, such as the running averages of batch norm.

    Each rank's own follow its own samples since the last forward pass. The ones of rank 0 are those that the others get
    in the next step and that a checkpoint holds, so an evaluation must use them, too.
    """
    buffers = dict(model.named_buffers())
    if comm.size == 1 or not buffers:
        return
    content = comm.broadcast(write_tensors(_apart(buffers)) if comm.rank == 0 else b"")
    with torch.no_grad():
        for key, value in tensors(content, "the buffers of rank 0").items():
            buffers[key].copy_(value)


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], Scalars]:
    """Return an optimizer's state: tensors by name, which are not copies, and the rest as JSON values.

    Works for every optimizer of torch whose state is tensors and plain numbers, by parameter.

    Raises:
        CheckpointError: the optimizer keeps something else.
    """
    packed = optimizer.state_dict()
    found: dict[str, Tensor] = {}
    scalars: dict[str, Scalars] = {}
    for parameter, entries in packed["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                found[f"{parameter}.{name}"] = value.detach()
            elif value is None or isinstance(value, bool | int | float | str):
                scalars.setdefault(str(parameter), {})[name] = value
            else:
                raise CheckpointError(f"{type(optimizer).__name__} keeps {name} as {type(value).__name__}: not savable")
    groups = [len(group["params"]) for group in packed["param_groups"]]
    return found, {"kind": kind(optimizer), "state": scalars, "groups": groups}


def kind(optimizer: Optimizer) -> str:
    """Return the class of an optimizer, with the options that decide which state it keeps."""
    name, group = type(optimizer).__name__, optimizer.param_groups[0]
    options = [option for option in ("amsgrad", "centered") if group.get(option)]
    if name == "RMSprop" and group["momentum"]:
        options.append("momentum")
    return " with ".join([name, " and ".join(options)]) if options else name


def load_optimizer(optimizer: Optimizer, content: bytes, scalars: Scalars, name: str) -> None:
    """Put the state of `optimizer_tensors`, its tensors as a safetensors file, into an optimizer.

    Rates, momentum and the like stay as the config says: they are settings, and a checkpoint holds state.

    Raises:
        CheckpointError: it is the state of another kind of optimizer, or of other parameters.
    """
    packed = optimizer.state_dict()
    groups = [len(group["params"]) for group in packed["param_groups"]]
    if scalars["kind"] != kind(optimizer) or scalars["groups"] != groups:
        same = scalars["kind"] == kind(optimizer) and sum(scalars["groups"]) == sum(groups)
        raise CheckpointError(
            f"{name} holds the state of {scalars['kind']} over {scalars['groups']} parameters; the config's "
            f"optimizer is {kind(optimizer)} over {groups}",
            f"go on with the {'optim.weight_decay_on' if same else 'optimizer'} of the checkpoint, or start a new run",
        )
    state: dict[int, dict[str, Any]] = {int(key): dict(entries) for key, entries in scalars["state"].items()}
    parameters = [part for group in optimizer.param_groups for part in group["params"]]
    for key, tensor in tensors(content, name).items():
        number, _, entry = key.partition(".")
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:
            # Fused kernels walk through memory: what belongs to a parameter must lie as it does (channels last).
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)  # noqa: PLW2901
        state.setdefault(int(number), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": packed["param_groups"]})
    for index, entries in state.items():  # torch gives all of it the dtype of the parameters: back again
        loaded = optimizer.state[parameters[index]]
        for entry, value in entries.items():
            if isinstance(value, Tensor) and loaded[entry].dtype != value.dtype:
                loaded[entry] = value.to(loaded[entry].device)


def _apart(shared: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, each into memory of its own: safetensors refuses the shared one of tied weights."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in shared.items()}


def tensors(content: bytes, name: str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it is none.
    """
    try:
        return read_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{name}: {error}") from None


def _shape(tensor: Tensor) -> str:
    return f"{' x '.join(map(str, tensor.shape)) or 'a number'} {str(tensor.dtype).removeprefix('torch.')}"
