"""Count a dataset in a child process, where the login node cannot know its size at a glance."""

import subprocess
import sys

import msgspec

from hpctrain.config.schema import Data
from hpctrain.errors import UsageError
from hpctrain.plan import Samples
from hpctrain.processes import tie_to_parent


def count(data: Data) -> Samples:
    """Return how many samples a dataset has; progress goes to standard error.

    Raises:
        UsageError: it cannot be counted.
    """
    child = subprocess.run(
        [sys.executable, "-m", "hpctrain.data.count"],
        input=msgspec.json.encode(data),
        stdout=subprocess.PIPE,
        check=False,
        preexec_fn=tie_to_parent(),
    )
    if child.returncode == 0:
        return msgspec.json.decode(child.stdout, type=Samples)
    try:
        said = msgspec.json.decode(child.stdout, type=dict[str, str])
    except msgspec.DecodeError:
        raise UsageError(
            f"data.dataset: {data.dataset} could not be counted: its process ended with {child.returncode}"
        ) from None
    raise UsageError(said["message"], said["hint"])
