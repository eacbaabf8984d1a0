"""What users type is a contract: commands, flags and config keys change only together with these lists."""

import subprocess
import sys

import click
import msgspec
import pytest

from hpctrain.cli import cli
from hpctrain.config.duration import Duration
from hpctrain.config.schema import CnnArgs, Config, Container, MlpArgs, SyntheticArgs

COMMANDS = """
cancel RUN...
check CONFIG [key=value]... --ranks --scheduler
ckpt export RUN OUT --force --step
ckpt list RUN --json
ckpt verify RUN [STEP] --json
doctor --json
eject CONFIG [key=value]...
eval RUN [key=value]... --ckpt --ranks --split
find-batch CONFIG [key=value]... --ranks
find-lr CONFIG [key=value]... --from --picture --ranks --steps --to
list --json
logs RUN --attempt --follow --rank
pack [SRC] [OUT] --on-error --quality --resize --seed --shard-mb --verify --workers
resume RUN [key=value]... --code --dry-run --follow --scheduler
run CONFIG [key=value]... --debug --overfit --overfit-steps --ranks
sandbox down
sandbox node VERB NAME
sandbox run -- CMD [ARG]... --accounting --cpus-per-node --gpus-per-node --network --nodes --partition
sandbox status
sandbox up --accounting --cpus-per-node --gpus-per-node --network --nodes --partition
status [RUN]... --json
submit CONFIG [key=value]... --dry-run --follow --scheduler
why RUN --json
"""

KEYS = """
name runs seed device precision command folds
slurm.partition slurm.account slurm.qos slurm.nodes slurm.gpus_per_node slurm.ranks_per_node slurm.cpus_per_task
slurm.time slurm.mem slurm.constraint slurm.gres slurm.exclude slurm.nodelist slurm.reservation slurm.dependency
slurm.mail_type slurm.mail_user slurm.signal_s slurm.template
env.modules env.venv env.container env.setup env.python
dist.strategy dist.backend dist.fork dist.launcher dist.compression dist.mpi dist.horovod.op dist.horovod.groups
dist.horovod.fusion_mb dist.horovod.cycle_ms dist.hang dist.ranks dist.interface dist.host_suffix dist.timeout
data.dataset data.path data.samples data.split.test data.split.validation data.split.fold data.shuffle data.block
data.workers data.loader data.on_error data.stage data.args
data.augment.crop data.augment.scale data.augment.ratio data.augment.padding data.augment.flip data.augment.jitter
data.augment.cutout data.augment.mixup data.augment.cutmix data.augment.label_smoothing
model.name model.args model.weights model.weights_skip model.freeze model.batch_norm model.ghost_batch
loss metrics
batch.global batch.per_rank batch.accumulate batch.tail
optim.name optim.lr optim.base_batch optim.scale optim.warmup optim.schedule optim.decay optim.decay_every
optim.milestones optim.decay_over optim.floor optim.power optim.rise optim.start optim.legs optim.cycle_momentum
optim.period optim.period_growth optim.patience optim.threshold optim.cooldown
optim.momentum optim.nesterov optim.dampening optim.betas optim.alpha optim.rho optim.centered optim.eps optim.trust
optim.weight_decay optim.weight_decay_on
train.epochs train.steps train.eval_every train.stop_early.patience train.stop_early.min_delta
train.clip_norm train.clip_value train.max_norm train.l1 train.l2 train.ema train.channels_last
train.compile train.on_nan
checkpoint.every checkpoint.keep checkpoint.keep_best checkpoint.background
restart.preempted restart.time_limit restart.node_failure restart.rank_killed restart.hang restart.out_of_memory
restart.rendezvous_failed
log.every log.samples log.noise_scale
"""


def lines_of(group, prefix=""):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from lines_of(command, f"{prefix}{name} ")
            continue
        context = click.Context(command)
        arguments = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
        arguments = [text.split("}")[0].strip("{") if "|" in text else text for text in arguments]
        flags = sorted(p.opts[-1] for p in command.params if isinstance(p, click.Option))
        yield " ".join([f"{prefix}{name}", *arguments, *flags])


def test_commands_and_flags():
    found = [line.replace("crash|cut|join|up|kill-slurmd|start-slurmd", "VERB") for line in lines_of(cli)]
    assert sorted(found) == COMMANDS.strip().splitlines()


def keys_of(kind, prefix=""):
    for field in msgspec.structs.fields(kind):
        inner = [t for t in getattr(field.type, "__args__", (field.type,)) if hasattr(t, "__struct_fields__")]
        sections = [t for t in inner if t.__module__.startswith("hpctrain.config.") and t not in {Container, Duration}]
        if sections:
            yield from keys_of(sections[0], f"{prefix}{field.encode_name}.")
        else:
            yield prefix + field.encode_name


def test_config_keys():
    assert sorted(keys_of(Config)) == sorted(KEYS.split())
    assert sorted(keys_of(Container)) == ["image", "mounts", "runtime"]
    assert [sorted(keys_of(kind)) for kind in (MlpArgs, CnnArgs, SyntheticArgs)] == [
        ["activation", "batch_norm", "dropout", "dropout_input", "hidden", "init", "init_value"],
        [
            "activation",
            "channels",
            "dense",
            "dropout",
            "dropout_blocks",
            "hidden",
            "init",
            "init_value",
            "kernel",
            "norm",
            "norm_blocks",
            "padding",
            "pool",
        ],
        ["classes", "shape"],
    ]


@pytest.mark.parametrize(
    "command", [["--help"], ["check", "c.yaml", "--scheduler", "local"], ["submit", "c.yaml", "--dry-run"]]
)
def test_no_command_of_the_login_node_imports_what_is_slow(tmp_path, command):
    (tmp_path / "c.yaml").write_text(
        "name: a\ndata: {dataset: digits}\nmodel: {name: mlp}\nbatch: {global: 60}\n"
        "optim: {lr: 0.1}\ntrain: {epochs: 1}\n"
    )
    program = (
        "import sys\n"
        f"sys.argv = ['hpctrain', *{command!r}]\n"
        "from hpctrain.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "print('MODULES', *sorted({m.partition('.')[0] for m in sys.modules}))\n"
        "print('OURS', *sorted(m for m in sys.modules if m.startswith('hpctrain.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    *_, modules, ours = done.stdout.splitlines()
    slow = {"torch", "numpy", "safetensors", "dataclasses", "json", "asyncio", "multiprocessing", "jinja2", "pydantic"}
    assert not slow & set(modules.split())
    assert not {"hpctrain.sandbox.cluster", "hpctrain.launch.local", "hpctrain.train"} & set(ours.split())
    if command == ["--help"]:
        assert not {"msgspec", "yaml"} & set(modules.split())
