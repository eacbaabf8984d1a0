"""Rules between the fields of a config: what no field can know alone."""

from collections.abc import Iterator

from hpctrain.config import check_data, check_models, optim
from hpctrain.config.schema import Config, Horovod
from hpctrain.config.texts import seconds

NEEDED = {
    "model": "name it, such as model: {name: mlp}",
    "data": "name it, such as data: {dataset: mnist}",
    "batch": "give its size, such as batch: {global: 128}",
    "optim": "give a learning rate, such as optim: {lr: 0.1}",
    "train": "say how long, such as train: {epochs: 3}",
}
"""The sections that hpctrain's own training needs, and what to write."""

Found = Iterator[tuple[str, str]]


def check(config: Config) -> list[tuple[str, str]]:
    """Return what is wrong between the fields: the dotted key to blame, and a message."""
    sections = (_what, _batch, _optim, _model, _data, check_models.check, _slurm, _env, _dist)
    return [found for section in sections for found in section(config)]


def _what(config: Config) -> Found:
    """Training by hpctrain itself, or the user's command."""
    given = [section for section in NEEDED if getattr(config, section) is not None]
    if config.command is None:
        for section, hint in NEEDED.items():
            if section not in given:
                yield section, f"missing; {hint}" + ("" if given else ", or give a command instead")
        return
    if given:
        yield "command", f"a command trains by itself; remove {', '.join(given)}, or remove command"
    if not config.command or not config.command[0]:
        yield "command", "needs at least a program, such as [python, train.py]"
    if any("\0" in word for word in config.command):
        yield "command", "a word of a command cannot contain a NUL character"


def _batch(config: Config) -> Found:
    if config.batch is not None:
        yield from _one_of("batch", {"global": config.batch.global_, "per_rank": config.batch.per_rank})
    if config.train is not None:
        yield from _one_of("train", {"epochs": config.train.epochs, "steps": config.train.steps})


def _one_of(section: str, values: dict[str, int | None]) -> Found:
    given = [key for key, value in values.items() if value is not None]
    both = " and ".join(values)
    if not given:
        yield section, f"give one of {both}"
    elif len(given) > 1:
        yield f"{section}.{given[-1]}", f"give one of {both}, not both"


def _optim(config: Config) -> Found:
    if config.optim is not None:
        yield from optim.check(config.optim)
    plateau = config.optim is not None and config.optim.schedule == "plateau"
    stops = config.train is not None and config.train.stop_early is not None
    if config.data is not None and not config.data.split.validation and config.data.split.fold is None:
        hint = "looks at a validation set, and there is none; set one apart, such as data.split.validation=0.1"
        if plateau:
            yield "optim.schedule", f"plateau {hint}"
        if stops:
            yield "train.stop_early", hint


def _model(config: Config) -> Found:
    model = config.model
    if model is not None and model.ghost_batch is not None and model.batch_norm != "ghost":
        yield "model.ghost_batch", f"nothing reads this with batch_norm: {model.batch_norm}; remove it, or use ghost"


def _data(config: Config) -> Found:
    yield from _folds(config)
    if config.data is not None:
        yield from check_data.check(config.data)


def _folds(config: Config) -> Found:
    if config.folds is None:
        return
    if config.command is not None:
        yield "folds", "a command splits its own data; remove it"
    elif config.data is not None:
        if config.data.split.fold is not None or config.data.split.validation:
            yield "folds", "sets each part apart in turn; remove data.split.fold and data.split.validation"
        if config.data.dataset == "synthetic":
            yield "folds", "synthetic images are random, there is nothing to set apart; remove it"


def _slurm(config: Config) -> Found:
    slurm = config.slurm
    if slurm.mail_user is not None and slurm.mail_type is None:
        yield "slurm.mail_user", "no mail is sent without mail_type, such as mail_type: END,FAIL"
    if slurm.gres is not None and any(part.startswith("gpu") for part in slurm.gres.split(",")):
        if slurm.gpus_per_node:
            yield "slurm.gres", "asks for GPUs, as gpus_per_node does; give one of them"
        elif config.command is None and config.device == "auto":
            yield "slurm.gres", "asks for GPUs, but device: auto looks at gpus_per_node; give that, or device: cuda"
    limit = seconds(slurm.time) if slurm.time is not None else None
    if limit == 0:
        yield "slurm.time", "must be longer than 0, which Slurm takes for no limit"
    elif limit is not None and slurm.signal_s is not None and slurm.signal_s >= limit:
        yield "slurm.signal_s", f"{slurm.signal_s} s before the end is before the start; time is {limit} s"


def _env(config: Config) -> Found:
    env = config.env
    if env.venv is not None and env.container is not None:
        yield "env.venv", "a container brings its own Python; give one of venv and container"
    for index, line in enumerate(env.setup):
        if line.lstrip().startswith(("#SBATCH", "#PBS", "#BSUB")):
            yield f"env.setup[{index}]", "the scheduler ignores this line so far down; use the keys of slurm"


def _dist(config: Config) -> Found:
    dist = config.dist
    if dist.strategy == "horovod":
        if dist.launcher == "torchrun":
            yield "dist.launcher", "Horovod does not read what torchrun sets; use srun, mpirun or horovodrun"
        if dist.backend == "nccl":
            yield (
                "dist.backend",
                "Horovod agrees by gloo or mpi, and sums on GPUs by NCCL itself; use auto, gloo or mpi",
            )
    else:
        if dist.launcher == "horovodrun":
            yield "dist.launcher", "horovodrun starts Horovod only; use strategy: horovod, or another launcher"
        if dist.horovod != Horovod():
            yield "dist.horovod", "nothing reads this with strategy: ddp; remove it, or use strategy: horovod"
    yield from _compression(config)
    if dist.backend == "mpi" and dist.launcher == "torchrun":
        yield "dist.backend", "torchrun starts no MPI; use launcher: mpirun or srun, or backend: auto"
    if dist.mpi is not None and dist.launcher != "srun":
        yield "dist.mpi", f"is an option of srun; remove it, or use launcher: srun instead of {dist.launcher}"
    yield from _adasum(config)


def _compression(config: Config) -> Found:
    dist, key = config.dist, "dist.compression"
    if dist.compression == "none":
        return
    if config.command is not None:
        yield key, "a command sums its own gradients; remove it"
    if config.precision == "fp64":
        yield key, "would round what precision: fp64 computes; use none, or precision: fp32"
    if dist.strategy == "horovod" and dist.compression == "bf16":
        yield key, "Horovod sums no bfloat16; use fp16, or strategy: ddp"
    if dist.strategy == "ddp" and dist.backend == "mpi":
        yield key, "torch sums no 16-bit numbers by MPI; use none, or backend: auto"


def _adasum(config: Config) -> Found:
    if config.dist.horovod.op != "adasum":
        return
    if config.log.noise_scale:
        yield "log.noise_scale", "adasum makes no mean gradient of the whole batch; remove it, or use op: average"
    if config.dist.backend == "gloo":
        yield "dist.horovod.op", "adasum needs MPI; use backend: mpi with launcher: mpirun or srun"
    if config.train is not None and config.train.on_nan != "stop":
        yield "dist.horovod.op", "adasum joins what the optimizer did, so no step can be left out; use on_nan: stop"
    if config.train is not None:
        for key in ("clip_norm", "clip_value", "l1", "l2"):
            if getattr(config.train, key):
                yield f"train.{key}", "comes too late with adasum: the optimizer has seen the gradient; use op: average"
    if config.precision == "fp16":
        yield "dist.horovod.op", "adasum joins what the optimizer did, so a loss cannot be scaled; use precision: bf16"
