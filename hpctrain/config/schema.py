"""The classes of the config file.

Every field has a docstring under it: `docs/config.md`, the JSON Schema for editors and the messages of
`hpctrain check` are made from these lines, so that each fact has this one home. `load` reads each YAML
scalar by its field's type; `check` holds the rules between fields.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from hpctrain.config.duration import Duration
from hpctrain.config.texts import (
    Constraint,
    Count,
    Dependency,
    Fraction,
    Function,
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
    Name,
    NonNegative,
    Path,
    Positive,
    Time,
    Word,
    Words,
)

Precision = Literal["fp64", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]


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
    """Seconds before the time limit at which the ranks are told to save and stop; if absent: 120, or a quarter of
    `time` where that is less; none without `time`. Slurm's clock has a grain of 30 to 60 s. With `command:` nothing
    is sent unless this is given."""
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
    compression: Literal["none", "fp16"] = "none"
    """fp16: gradients travel as 16-bit floats."""
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
    horovod: Horovod = Horovod()
    fork: bool = True
    """Without Slurm: import torch once and fork the ranks, where they cannot tell (see docs/guide.md); false: each
    rank starts as a process of its own."""


class SyntheticArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `dataset: synthetic`."""

    shape: tuple[Positive, Positive, Positive] = (1, 28, 28)
    """Shape of one image: channels, height, width."""
    classes: Annotated[int, Meta(ge=2)] = 10
    """Number of classes."""


class NoArgs(Struct, frozen=True, kw_only=True):
    """A choice that takes no arguments."""


class Data(Struct, frozen=True, kw_only=True):
    """The dataset."""

    dataset: Literal["mnist", "digits", "synthetic"]
    """mnist: IDX files, .gz or not; digits: 1,797 real handwritten 8 x 8 digits that come along; synthetic:
    random images for benchmarks."""
    path: Path | None = None
    """Directory of the files; for mnist `$HPCTRAIN_DATA/mnist` if absent."""
    samples: Positive | None = None
    """Use only the first so many training samples; for synthetic: how many there are (default 10,000)."""
    args: dict[str, Any] = {}
    """Arguments of the dataset; for synthetic: shape, classes."""


class MlpArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `model: {name: mlp}`."""

    hidden: tuple[Positive, ...] = (128,)
    """Widths of the hidden layers."""


class CnnArgs(Struct, frozen=True, kw_only=True):
    """Arguments of `model: {name: cnn}`."""

    channels: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (32, 64)
    """Channels of the blocks; each is a 3 x 3 convolution, ReLU and 2 x 2 max pooling."""
    hidden: Positive = 128
    """Width of the dense layer after the blocks."""


class Model(Struct, frozen=True, kw_only=True):
    """The model."""

    name: Literal["mlp", "cnn"] | Function
    """mlp, cnn, or the user's own function as package.module:function, called with `args` and returning a
    torch.nn.Module."""
    args: dict[str, Any] = {}
    """Arguments of the model."""


class Batch(Struct, frozen=True, kw_only=True):
    """The batch. Give one of `global` and `per_rank`; the other follows."""

    global_: Positive | None = field(default=None, name="global")
    """Samples per optimizer step over all ranks."""
    per_rank: Positive | None = None
    """Samples of one rank in one pass; the global batch is per_rank x accumulate x ranks."""
    accumulate: Positive = 1
    """Passes of each rank per optimizer step."""
    tail: Literal["keep", "drop"] = "keep"
    """The last, smaller batch of an epoch is trained on, or dropped."""


class Optim(Struct, frozen=True, kw_only=True):
    """The optimizer and its learning rate."""

    name: Literal["sgd"] = "sgd"
    """Stochastic gradient descent."""
    lr: Annotated[float, Meta(gt=0)]
    """Learning rate at `base_batch`; what is used follows from `scale`."""
    base_batch: Positive | None = None
    """Global batch for which `lr` was chosen; if absent the rate is used as it stands."""
    scale: Literal["linear", "none"] = "linear"
    """linear: lr x global batch / base_batch (Goyal et al. 2017, section 2.1); none: lr as it stands."""
    warmup: Duration = Duration(0, "steps")
    """Length of the linear ramp from lr / warm-up steps to the full rate (Goyal et al. 2017, section 2.2)."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """constant; step: times `decay` every `decay_every`; cosine: to zero at the end (Loshchilov & Hutter 2017,
    without restarts)."""
    decay: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Factor of the step schedule."""
    decay_every: Duration = Duration(30, "epochs")
    """Length between two decays of the step schedule."""
    momentum: Fraction = 0.0
    """Momentum."""
    nesterov: bool = False
    """Nesterov's momentum; needs momentum > 0."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on every parameter, as torch.optim.SGD applies it."""


class Train(Struct, frozen=True, kw_only=True):
    """How long to train. Give one of `epochs` and `steps`."""

    epochs: Positive | None = None
    """Passes over the training set."""
    steps: Positive | None = None
    """Optimizer steps."""
    eval_every: Duration = Duration(1, "epochs")
    """Length between two evaluations on the test set; the end is always evaluated."""


class Checkpoint(Struct, frozen=True, kw_only=True):
    """Checkpoints."""

    every: Duration = Duration(1, "epochs")
    """Length between two checkpoints; the last step is always saved."""
    keep: Positive = 2
    """How many of the newest to keep."""


class Restart(Struct, frozen=True, kw_only=True):
    """How often the run is started again after each cause, before it ends as failed; never after a user's error."""

    preempted: Count = 1000
    """Told to stop by TERM: preempted, or drained by the site."""
    time_limit: Count = 1000
    """Told to stop by USR2: the time limit was near."""
    node_failure: Count = 5
    """Ended without a word: the node died and Slurm requeued the job."""
    rank_killed: Count = 3
    """A rank was killed by a signal."""


class Log(Struct, frozen=True, kw_only=True):
    """What is written during training."""

    every: Duration = Duration(50, "steps")
    """Length between two lines of metrics.jsonl."""
    samples: bool = False
    """Write which samples each rank saw in each step (attempts/N/samples)."""


class Config(Struct, frozen=True, kw_only=True):
    """One run: `model`, `data`, `batch`, `optim` and `train`, or `command` alone."""

    name: Name
    """Name of the run, of its directory and of its job."""
    runs: Path = "./runs"
    """Where run directories are made."""
    seed: Count = 0
    """Seed of the initial weights and of the order of samples."""
    device: Device = "auto"
    """auto: cuda where GPUs are asked for, else cpu. A rank that was promised a GPU and has none is an error."""
    slurm: Slurm = Slurm()
    env: Env = Env()
    dist: Dist = Dist()
    data: Data | None = None
    model: Model | None = None
    batch: Batch | None = None
    optim: Optim | None = None
    precision: Precision = "fp32"
    """fp32; bf16, fp16: autocast with float32 weights, fp16 with a scaled loss; fp64: for proofs of equality."""
    train: Train | None = None
    checkpoint: Checkpoint = Checkpoint()
    restart: Restart = Restart()
    log: Log = Log()
    command: tuple[str, ...] | None = None
    """A program to start as every rank instead of hpctrain's own training, such as [python, train.py, --epochs,
    "3"]."""


MODEL_ARGS: dict[str, type[Struct]] = {"mlp": MlpArgs, "cnn": CnnArgs}
"""The classes of the arguments of the models that come along."""

DATASET_ARGS: dict[str, type[Struct]] = {"mnist": NoArgs, "digits": NoArgs, "synthetic": SyntheticArgs}
"""The classes of the arguments of the datasets."""


def arguments(kind: type[Struct], given: dict[str, Any]) -> Any:
    """Build the argument class of a model or dataset from the checked `args` of its section."""
    return msgspec.convert(given, kind)
