"""Ranks that MPI has started: rank 0's address goes to the others by MPI, before any library of torch is asked.

mpi4py carries bytes only (its lower-case methods pickle). It must be imported before Horovod is initialised; the other
order aborts when Horovod shuts down.
"""

from typing import Any

from hpctrain.errors import UsageError, WorldError
from hpctrain.world import World


def bootstrap(world: World) -> "Mpi":
    """Join MPI's world.

    Raises:
        UsageError: mpi4py is missing, or finds no MPI library.
        WorldError: MPI formed another world than the launcher started, such as one of a single rank each.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise UsageError(
            f"{world} was started by MPI, and mpi4py " + ("is not installed" if missing else f"finds no MPI: {error}"),
            "pip install 'hpctrain[mpi]' in the job's Python"
            + ("" if missing else ", and load the module of the MPI that starts the ranks (env.modules)")
            + "; or use dist.launcher=srun",
        ) from None
    formed = (MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank())
    if formed != (world.size, world.rank):
        library = MPI.Get_library_version().partition("\n")[0].strip()
        raise WorldError(
            f"{world.launcher} started {world}, but MPI formed a world of {formed[0]} in which this is rank {formed[1]}; "
            f"mpi4py loaded {library}",
            "start the ranks by the MPI that mpi4py loads (MPI4PY_LIBMPI names its library), or use dist.launcher=srun",
        )
    return Mpi(MPI)


class Mpi:
    """MPI's world."""

    def __init__(self, module: Any) -> None:
        self._mpi, self._world = module, module.COMM_WORLD

    def broadcast(self, content: bytes) -> bytes:
        """Return rank 0's bytes on every rank."""
        length = bytearray(len(content).to_bytes(8, "little"))
        self._world.Bcast([length, self._mpi.BYTE], root=0)
        count = int.from_bytes(length, "little")
        carried = bytearray(content) if self._world.Get_rank() == 0 else bytearray(count)
        self._world.Bcast([carried, self._mpi.BYTE], root=0)
        return bytes(carried)

    def close(self) -> None:
        """Leave MPI's world; mpirun takes the end of a rank that has not done so for a failure."""
        self._mpi.Finalize()


def require_in_torch() -> None:
    """Refuse `dist.backend: mpi` with a torch that was built without it.

    Raises:
        UsageError: it was; PyPI's and conda's builds all are.
    """
    import torch.distributed as dist

    if not dist.is_mpi_available():
        import torch

        raise UsageError(
            f"dist.backend: mpi, but torch {torch.__version__} was built without MPI, as all that PyPI offers",
            "use dist.backend=auto: MPI then starts the ranks and brings them together, and Gloo or NCCL sums; or "
            "strategy: horovod, which sums by MPI",
        )
