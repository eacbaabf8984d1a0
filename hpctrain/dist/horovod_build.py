"""Which Horovod is installed, and does it fit? Asked before it is imported, which may fail late or only warn."""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

from hpctrain.errors import UsageError

BUILD = "bash jobs/build-horovod.sh, then pip install the wheel that it names (docs/horovod-mpi.md)"


def load() -> ModuleType:
    """Import `horovod.torch`.

    Raises:
        UsageError: it is not installed, was built without or for another torch, or cannot be loaded.
    """
    spec = importlib.util.find_spec("horovod")
    if spec is None or spec.origin is None:
        raise UsageError(f"dist.strategy: horovod, but {sys.executable} has no Horovod", f"build it: {BUILD}")
    _same_torch(Path(spec.origin).parent)
    try:
        import horovod.torch as hvd
    except (ImportError, OSError) as error:
        raise UsageError(
            f"Horovod cannot be loaded in {sys.executable}: {error}",
            "if a library of MPI is missing, load the module that it was built with (env.modules), else build it "
            f"again: {BUILD}",
        ) from error
    if not hasattr(hvd, "init"):  # it only prints that its extension is not there
        raise UsageError(f"Horovod in {spec.origin} was built without PyTorch", f"build it again: {BUILD}")
    return hvd  # type: ignore[no-any-return]


def _same_torch(home: Path) -> None:
    try:
        built = json.loads((home / "metadata.json").read_bytes()).get("pytorch")
    except (OSError, ValueError):
        return
    here = importlib.metadata.version("torch")
    if built is not None and built.partition("+")[0] != here.partition("+")[0]:
        raise UsageError(
            f"Horovod in {home} was built for torch {built}, and torch is {here} now",
            f"build it again: {BUILD}; or install torch=={built}",
        )
