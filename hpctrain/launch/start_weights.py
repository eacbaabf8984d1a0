"""The file that `model.weights` names, as it is before any rank runs: is it there, whole, and what is its SHA-256?"""

import hashlib
import os
from pathlib import Path

from hpctrain import manifest
from hpctrain.config.load import Loaded
from hpctrain.errors import CheckpointError, ConfigError
from hpctrain.launch.render import absolute
from hpctrain.plan import Plan, Weights


def look(loaded: Loaded, before: Plan | None = None) -> Weights | None:
    """Return path and SHA-256 of the file; None if none is asked for.

    Args:
        loaded: the config.
        before: the plan of a run that has a checkpoint, which needs the file no more.

    Raises:
        ConfigError: it is not there, cannot be read, or is no safetensors file.
    """
    model = loaded.config.model
    if model is None or model.weights is None:
        return None
    path = absolute(model.weights)
    if before is not None and before.weights_path is not None and before.weights_sha256 is not None:
        return Weights(path=before.weights_path, sha256=before.weights_sha256)
    try:
        manifest.tensors(Path(os.path.realpath(path)))
        with open(path, "rb") as file:  # noqa: PTH123 - a Path raises where it may not look
            return Weights(path=path, sha256=hashlib.file_digest(file, "sha256").hexdigest())
    except CheckpointError as error:
        told = error.message
    except OSError as error:
        told = f"{path}: {error.strerror}"
    hint = "give a safetensors file, such as hpctrain ckpt export RUN OUT writes"
    raise ConfigError([loaded.problem("model.weights", f"{told}; {hint}")])
