"""The sections of the config that say where a run runs: `slurm`, `env` and `dist`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from hpctrain.config.texts import (
    Constraint,
    Count,
    Dependency,
    Gres,
    HostList,
    HostSuffix,
    Image,
    Interface,
    Line,
    Mail,
    MailType,
    Memory,
    Module,
    Mount,
    MpiType,
    Path,
    Positive,
    Time,
    Word,
    Words,
)


class Slurm(Struct, frozen=True, kw_only=True):
    """What is asked of Slurm; without Slurm only `ranks_per_node`, `gpus_per_node` and `cpus_per_task` count."""

    partition: Words | None = None
    """Partition to queue in; the cluster's default if absent."""
    account: Word | None = None
    """Account (project) that is charged."""
    qos: Word | None = None
    """Quality of service."""
    nodes: Positive = 1
    """Nodes of the job."""
    gpus_per_node: Count = 0
    """GPUs on each node; every rank of a node sees them all and takes the one of its local rank."""
    ranks_per_node: Positive | None = None
    """Ranks (processes) on each node; `gpus_per_node` if absent, else 1."""
    cpus_per_task: Positive | None = None
    """CPUs of each rank, and threads of its arithmetic on CPUs (1 if absent); the ranks check their CPU masks."""
    time: Time | None = None
    """Time limit of one attempt, as HH:MM:SS or D-HH:MM:SS; the partition's default if absent."""
    mem: Memory | None = None
    """Memory of each node, such as 64G."""
    constraint: Constraint | None = None
    """Node features that are required."""
    gres: Gres | None = None
    """Further generic resources of each node; ask for GPUs by `gpus_per_node`."""
    exclude: HostList | None = None
    """Nodes not to be used."""
    nodelist: HostList | None = None
    """Nodes that must be used."""
    reservation: Word | None = None
    """Reservation to run in."""
    dependency: Dependency | None = None
    """Jobs to wait for, such as afterok:1234."""
    mail_type: MailType | None = None
    """Events that Slurm mails about, such as END,FAIL."""
    mail_user: Mail | None = None
    """Address for these mails."""
    signal_s: Annotated[int, Meta(ge=1, le=65535)] | None = None
    """Seconds before the time limit at which the ranks are told to save and stop; if absent: what an earlier attempt of
    the run has measured, at least 60 and at most half of `time`; else 120, or a quarter of `time` where that is less;
    none without `time`. Slurm's clock has a grain of 30 to 60 s. With `command:` nothing is sent unless this is
    given."""
    template: Path | None = None
    """A site's own batch template instead of the one that comes along (see docs/guide.md)."""


class Container(Struct, frozen=True, kw_only=True):
    """A container in which the ranks run."""

    image: Image
    """Image: a path to a .sif or .sqsh file, or an address such as docker://pytorch/pytorch:latest."""
    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """How it is started: `apptainer exec` in each rank, or srun's pyxis plugin."""
    mounts: tuple[Mount, ...] = ()
    """Directories to show inside as SRC[:DST[:ro]]; the run directory and `data.path` are added."""


class Env(Struct, frozen=True, kw_only=True):
    """The software environment of a Slurm job; without Slurm only `python` counts."""

    modules: tuple[Module, ...] = ()
    """Modules to load, in this order, after `module purge`; none: the module system is left alone."""
    venv: Path | None = None
    """Virtual environment to activate."""
    container: Container | None = None
    """Container in which the ranks run."""
    setup: tuple[Line, ...] = ()
    """Lines of shell code that the job runs before the ranks start, as they stand."""
    python: Path | None = None
    """Python of the ranks; if absent: `python` of the venv or container, else the one that runs hpctrain now."""


class Horovod(Struct, frozen=True, kw_only=True):
    """Settings of `strategy: horovod`."""

    op: Literal["average", "adasum"] = "average"
    """How gradients are joined: their mean, or Adasum (Maleki et al. 2020), which needs MPI and a power of two of
    ranks; `scale: linear` then counts the batch that is averaged, see docs/horovod-mpi.md."""
    groups: Positive | None = None
    """Join the gradients in so many groups, each of which travels together; if absent, as they become ready."""
    fusion_mb: Count | None = None
    """Size of the buffer in which small gradients travel together; Horovod's default is 128, 0 turns it off."""
    cycle_ms: Annotated[float, Meta(gt=0)] | None = None
    """How often Horovod looks which gradients are ready; its default is 1."""


class Dist(Struct, frozen=True, kw_only=True):
    """How the ranks find each other."""

    strategy: Literal["ddp", "horovod"] = "ddp"
    """Data-parallel strategy: PyTorch DistributedDataParallel, or Horovod."""
    backend: Literal["auto", "nccl", "gloo", "mpi"] = "auto"
    """Collective library. ddp: auto is nccl on GPUs, gloo on CPUs; mpi is torch's own, which few builds have. horovod:
    what its ranks agree by, auto is mpi under mpirun, else gloo; on GPUs it sums by NCCL where its wheel has it."""
    launcher: Literal["srun", "torchrun", "mpirun", "horovodrun"] = "srun"
    """What starts the ranks inside a Slurm job: one task per rank; one torchrun agent per node (ddp); mpirun;
    horovodrun (horovod)."""
    compression: Literal["none", "bf16", "fp16"] = "none"
    """In which numbers gradients travel and are summed over the ranks; weights and the optimizer keep their own. bf16
    has the range of float32 and 8 significant bits; fp16 has 11, but what is beyond 65504 overflows and what is below
    6e-8 becomes zero. Half the bytes on the network; on one machine it costs time instead. Horovod has fp16 only."""
    mpi: MpiType | None = None
    """The MPI that srun offers its tasks, such as pmix or pmi2 (`srun --mpi=list` shows them); if absent: pmix where
    the backend is mpi, else none."""
    ranks: Positive | None = None
    """Ranks without Slurm; with Slurm it must equal nodes x ranks per node."""
    interface: Interface | None = None
    """Network interface for rendezvous and collectives; if absent: the one that routes to rank 0."""
    host_suffix: HostSuffix = ""
    """Text to append to host names to reach the fast network, on sites where those names end in `i` or `-ib`."""
    timeout: Positive = 600
    """Seconds that ranks wait for each other, at the start and in a collective."""
    hang: Count = 120
    """Seconds without progress after which a rank counts as hanging: it is named, and the attempt ends. Long steps are
    learned; the start, the first step and a save may take `timeout`. 0: nobody looks. With `command:` nobody does."""
    horovod: Horovod = Horovod()
    fork: bool = True
    """Without Slurm: import torch once and fork the ranks, where they cannot tell (see docs/guide.md); false: each
    rank starts as a process of its own."""
