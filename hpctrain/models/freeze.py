"""Parameters that are not trained: no gradient, so no decay either."""

import fnmatch

from torch import nn

from hpctrain.errors import UsageError


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freeze the parameters whose names match any of the patterns.

    A norm all of whose parameters are frozen stays in evaluation mode: what it normalises by belongs to its weights.

    Raises:
        UsageError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"model.freeze: no parameter of the model matches {pattern!r}", f"its parameters are: {listed(names)}"
            )
    for name, part in model.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            part.requires_grad_(False)
    if patterns and not any(part.requires_grad for part in model.parameters()):
        raise UsageError("model.freeze: nothing is left to train", "freeze fewer parameters")
    for layer in model.modules() if patterns else ():
        own = list(layer.parameters(recurse=False))
        if own and isinstance(layer, _NORMS) and not any(part.requires_grad for part in own):
            _keep_in_evaluation(layer)


def listed(names: list[str], most: int = 12) -> str:
    """Return names for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)  # noqa: SLF001 - the class of all sizes
"""The norms that do something else in training."""


def _keep_in_evaluation(layer: nn.Module) -> None:
    """Let `train()`, which is called on the whole model after each evaluation, leave this layer as it is."""
    layer.eval()
    layer.train = lambda mode=True: layer  # type: ignore[method-assign] # noqa: ARG005
