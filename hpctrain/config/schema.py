"""The classes of the config file: what a run is, and how it trains; `models`, `cluster`, `datasets` hold other parts.

Every field has a docstring under it: `docs/config.md`, the JSON Schema for editors and the messages of
`hpctrain check` are made from these lines, so that each fact has this one home. `load` reads each YAML
scalar by its field's type; `check` holds the rules between fields.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from hpctrain.config.cluster import Container, Dist, Env, Horovod, Slurm
from hpctrain.config.datasets import DATASET_ARGS, Data, FolderArgs, NoArgs, SyntheticArgs
from hpctrain.config.duration import Duration
from hpctrain.config.models import MODEL_ARGS, CnnArgs, Loss, Metric, MlpArgs, Model, ResnetArgs
from hpctrain.config.optim import Optim
from hpctrain.config.texts import Count, Name, NonNegative, Path, Positive

__all__ = [
    "DATASET_ARGS", "MODEL_ARGS", "Batch", "Checkpoint", "CnnArgs", "Config", "Container", "Data", "Dist", "Env",
    "FolderArgs", "Horovod", "Log", "MlpArgs", "Model", "NoArgs", "Optim", "ResnetArgs", "Restart", "Slurm",
    "StopEarly", "SyntheticArgs", "Train", "arguments",
]  # fmt: skip

Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]


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


class StopEarly(Struct, frozen=True, kw_only=True):
    """The run ends when the loss on the validation set has stopped falling."""

    patience: Positive
    """Evaluations in a row that do not lower it, after which the run ends as completed."""
    min_delta: NonNegative = 0.0
    """By how much a loss must be lower than the lowest one to count."""


class Train(Struct, frozen=True, kw_only=True):
    """How long to train. Give one of `epochs` and `steps`."""

    epochs: Positive | None = None
    """Passes over the training set."""
    steps: Positive | None = None
    """Optimizer steps."""
    eval_every: Duration = Duration(1, "epochs")
    """Length between two evaluations on the validation set, or on the test set where there is none; the end is always
    evaluated, on both."""
    stop_early: StopEarly | None = None
    clip_norm: Annotated[float, Meta(gt=0)] | None = None
    """Largest 2-norm of the gradient of a step; a longer one is scaled down (Pascanu et al. 2013)."""
    clip_value: Annotated[float, Meta(gt=0)] | None = None
    """Largest magnitude of each number of the gradient of a step; comes before clip_norm."""
    max_norm: Annotated[float, Meta(gt=0)] | None = None
    """Largest 2-norm of the incoming weights of each unit of dense layers and convolutions, such as 3; longer ones are
    scaled down after each step (Srivastava et al. 2014, section 5.1)."""
    l1: NonNegative = 0.0
    """Adds l1 x the sum of the magnitudes of the weights to the loss; not of biases and norms. What is reported is the
    loss without it, as for l2."""
    l2: NonNegative = 0.0
    """Adds l2 x the sum of the squares of the weights to the loss; not of biases and norms. With sgd the same as a
    weight_decay of 2 x l2 on weights."""
    ema: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; where given, that is what is evaluated."""
    channels_last: bool | None = None
    """The channels of images and of convolutions lie next to each other in memory, in any model: mostly faster, on GPUs
    and on CPUs. If absent the model decides; cnn, lenet, inception and the residual networks do it."""
    compile: bool = False
    """Let torch.compile turn the model into fewer kernels for training, which takes a compiler and a minute at the
    start of each attempt; evaluation stays as it is."""
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """Where the loss or the gradient is infinite or no number. stop: end the run as failed. skip: leave such a step
    out, which is looked for in every step; more than ten in a row end the run. rollback: go back to the newest
    checkpoint and leave such steps out on the way, at no cost until then; a fourth time ends the run."""


class Checkpoint(Struct, frozen=True, kw_only=True):
    """Checkpoints."""

    every: Duration = Duration(1, "epochs")
    """Length between two checkpoints; the last step is always saved."""
    keep: Positive = 2
    """How many of the newest to keep."""
    keep_best: bool = False
    """Keep the one with the best score beside them: of those that were saved with an evaluation, on the validation set,
    or on the test set where there is none."""
    background: bool = True
    """Training goes on while a checkpoint is written, from a copy in rank 0's memory; else it waits."""


class Restart(Struct, frozen=True, kw_only=True):
    """How often the run is started again after each cause, before it ends as failed.

    Never after an error of the user's code, data that cannot be read, a full disk or a cancellation, nor after two
    attempts in a row that gained no step.
    """

    preempted: Count = 1000
    """Told to stop by TERM: preempted, or drained by the site."""
    time_limit: Count = 1000
    """Told to stop by USR2: the time limit was near."""
    node_failure: Count = 5
    """Ended without a word: the node died and Slurm requeued the job."""
    rank_killed: Count = 3
    """A rank was killed by a signal."""
    hang: Count = 2
    """A rank made no progress while the others waited for it."""
    out_of_memory: Count = 0
    """The memory of a host or of a GPU ran out; it mostly does so again."""
    rendezvous_failed: Count = 3
    """A rank did not come, or could not be reached, before training began."""


class Log(Struct, frozen=True, kw_only=True):
    """What is written during training."""

    every: Duration = Duration(50, "steps")
    """Length between two lines of metrics.jsonl."""
    samples: bool = False
    """Write which samples each rank saw in each step (attempts/N/samples)."""
    noise_scale: bool = False
    """Measure the gradient noise scale (McCandlish et al. 2018, appendix A.1), a number of samples: a batch far beyond
    it is of little use. Needs two passes per step or two ranks; a step costs some percent more."""


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
    loss: Loss = "auto"
    """What training lowers, summed over the samples and divided by the global batch. auto: cross_entropy for classes,
    mse for numbers; for the models logistic and perceptron their own. With two classes all but cross_entropy have one
    output: yes or no. binary_cross_entropy: two classes. mse, mae, huber (from an error of 1 on linear): numbers, or
    classes as 1 and 0. hinge, perceptron: classes, unmixed. Or the user's own as package.module:function, of outputs
    `(B, K)`, or `(B,)` for numbers, and targets, which returns one loss for each sample, `(B,)`."""
    metrics: tuple[Metric, ...] = ()
    """What evaluations tell besides the score: accuracy (always told), top5 and confusion for classes; mse, mae and r2
    for numbers."""
    batch: Batch | None = None
    optim: Optim | None = None
    precision: Precision = "fp32"
    """fp32; tf32: fp32, but products in matrix multiplications and convolutions with 10 bits after the point instead of
    23, on GPUs since A100; bf16, fp16: autocast with float32 weights, fp16 with a scaled loss; fp64: for proofs of
    equality."""
    train: Train | None = None
    folds: Annotated[int, Meta(ge=2, le=1000)] | None = None
    """K runs, each with another K-th of the training samples for validation (`data.split.fold`), one after the other,
    and mean and deviation of what they found; by hpctrain run."""
    checkpoint: Checkpoint = Checkpoint()
    restart: Restart = Restart()
    log: Log = Log()
    command: tuple[str, ...] | None = None
    """A program to start as every rank instead of hpctrain's own training, such as [python, train.py, --epochs,
    "3"]."""


def arguments(kind: type[Struct], given: dict[str, Any]) -> Any:
    """Build the argument class of a model or dataset from the checked `args` of its section."""
    return msgspec.convert(given, kind)
