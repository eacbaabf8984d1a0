"""Which Horovod is installed, and does it fit? Answered without importing it or torch, so the launcher can ask, too."""

import json
import sys
from pathlib import Path

BUILD = "bash jobs/build-horovod.sh, then pip install the wheel that it names (docs/horovod-mpi.md)"
"""What to type; where hpctrain was installed from a wheel, `hpctrain doctor` says where that script lies."""


def problem(backend: str) -> tuple[str, str] | None:
    """Say what is wrong with this Python's Horovod, and what to type; None: nothing that can be seen from outside.

    Horovod itself only warns when torch is another than the one that it was built for, and one without MPI whose ranks
    mpirun starts forms as many worlds as there are ranks.

    Args:
        backend: by which the ranks shall agree, gloo or mpi.
    """
    from importlib import metadata
    from importlib.util import find_spec

    spec = find_spec("horovod")
    if spec is None or spec.origin is None:
        return f"{sys.executable} has no Horovod", f"build it: {BUILD}"
    home = Path(spec.origin).parent
    try:
        built = json.loads((home / "metadata.json").read_bytes()).get("pytorch")
        here = metadata.version("torch")
    except (OSError, ValueError, metadata.PackageNotFoundError):
        return None
    if built is not None and built.partition("+")[0] != here.partition("+")[0]:
        return (
            f"Horovod in {home} was built for torch {built}, and torch is {here} now",
            f"build it again: {BUILD}; or pip install torch=={built.partition('+')[0]}",
        )
    libraries = list(home.glob("torch/mpi_lib*.so"))
    if not libraries:
        return f"Horovod in {home} was built without PyTorch", f"build it again: {BUILD}"
    if backend == "mpi" and not any(b"libmpi" in path.read_bytes() for path in libraries):
        return (
            f"Horovod in {home} was built without MPI, so each rank would be a world of its own",
            f"build it where MPI is: {BUILD}; or let the ranks agree by Gloo: dist.backend=gloo",
        )
    return None
