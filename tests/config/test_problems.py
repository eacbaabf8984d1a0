"""Messages are part of what hpctrain promises: each is compared whole, with its line and column."""

import pytest

from hpctrain.config.fields import fields
from hpctrain.config.schema import MODEL_ARGS, CnnArgs

NUMBER = "expected a whole number of at least 1"
WHOLE = "expected a whole number of at least 0"
WORD = "expected one word of letters, digits and '_.@+-'"
MODULES = "expected a list, each a module such as cuda/12.4"
TIME = "expected a time as HH:MM:SS or D-HH:MM:SS, such as 12:00:00"
QUOTE = "quote it if it is meant as text"
LENGTH = "expected a length such as '5 epochs', '1000 steps' or '10 %'"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: 4.2", f"7:7: seed: {WHOLE}, got 4.2"),
        ("seed: -1", f"7:7: seed: {WHOLE}, got -1"),
        ("seed: '42'", f"7:7: seed: {WHOLE}, got '42'; leave out the quotes"),
        ("seed: true", f"7:7: seed: {WHOLE}, got true"),
        ("seed: 010", f"7:7: seed: {WHOLE}, got 010; write 10"),
        ("seed: -007", f"7:7: seed: {WHOLE}, got -007; write -7"),
        ("seed: 1_000", f"7:7: seed: {WHOLE}, got '1_000'; write 1000"),
        ("seed: 1e3", f"7:7: seed: {WHOLE}, got 1e3; write 1000"),
        ("seed: .inf", f"7:7: seed: {WHOLE}, got .inf"),
        ("seed:", f"7:6: seed: {WHOLE}, got nothing"),
        ("seed: [1]", f"7:7: seed: {WHOLE}, got a list"),
        ("seed: {a: 1}", f"7:7: seed: {WHOLE}, got key: value pairs"),
        (
            "slurm: {signal_s: 65536}",
            "7:19: slurm.signal_s: expected a whole number of at least 1 and at most 65535, got 65536",
        ),
        ("slurm: {nodes: 2 nodes}", f"7:16: slurm.nodes: {NUMBER}, got '2 nodes'"),
        ("slurm: 4", "7:8: slurm: expected key: value pairs, got 4"),
        ("slurm: [nodes]", "7:8: slurm: expected key: value pairs, got a list"),
        ("slurm: {nodse: 2}", "7:9: slurm.nodse: unknown key; did you mean nodes?"),
        (
            "slurm: {time: 720}",
            f"7:15: slurm.time: {TIME}, got 720",
        ),
        (
            'slurm: {account: "a\\nb"}',
            f"7:18: slurm.account: {WORD}, got 'a\\nb'",
        ),
        (
            'slurm: {account: "a\\n"}',
            f"7:18: slurm.account: {WORD}, got 'a\\n'",
        ),
        ("slurm: {qos: é}", f"7:14: slurm.qos: {WORD}, got 'é'"),
        (
            "slurm: {qos: [a]}",
            (f"7:14: slurm.qos: {WORD}, got a list; {QUOTE}"),
        ),
        ("slurm: {mem: 64GB}", "7:14: slurm.mem: expected memory with its unit, such as 64G, got '64GB'"),
        ("device: gpu", "7:9: device: expected one of auto, cpu, cuda, got 'gpu'; did you mean cpu?"),
        ("device: [cpu]", "7:9: device: expected one of auto, cpu, cuda, got a list"),
        (
            "precision: FP32",
            "7:12: precision: expected one of fp64, fp32, tf32, bf16, fp16, got 'FP32'; did you mean fp32?",
        ),
        ("precision: 7", "7:12: precision: expected one of fp64, fp32, tf32, bf16, fp16, got 7"),
        (
            "dist: {strategy: horovds}",
            "7:18: dist.strategy: expected one of ddp, horovod, got 'horovds'; did you mean horovod?",
        ),
        ("log: {samples: yes}", "7:16: log.samples: expected true or false, got 'yes'; write true"),
        ("log: {samples: 'false'}", "7:16: log.samples: expected true or false, got 'false'; write false"),
        ("log: {samples: 0}", "7:16: log.samples: expected true or false, got 0"),
        ("log: {every: 50}", f"7:14: log.every: {LENGTH}, got 50"),
        ("log: {every: often}", f"7:14: log.every: {LENGTH}, got 'often'"),
        ("log: {every: 1.5 steps}", "7:14: log.every: expected a whole number of steps, got '1.5 steps'"),
        ("log: {every: 200 %}", "7:14: log.every: expected at most 100 %, got '200 %'"),
        (
            "env: {modules: gcc}",
            f"7:16: env.modules: {MODULES}, got 'gcc'; write ['gcc']",
        ),
        (
            "env: {modules: }",
            f"7:16: env.modules: {MODULES}, got nothing; write []",
        ),
        ("env: {modules: [gcc, a b]}", "7:22: env.modules[1]: expected a module such as cuda/12.4, got 'a b'"),
        (
            "env: {setup: [a: b]}",
            (f"7:15: env.setup[0]: expected one line of shell code, got key: value pairs; {QUOTE}"),
        ),
        (
            "env: {container: {}}",
            "7:7: env.container.image: missing; expected a path or address of an image, no blanks",
        ),
        ("nam: x", "7:1: nam: unknown key; did you mean name?"),
        ("lr: 0.1", "7:1: lr: unknown key; did you mean optim.lr?"),
        ("every: 1", "7:1: every: unknown key; did you mean checkpoint.every or log.every?"),
        (
            "restart: {zzz: 1}",
            (
                "7:11: restart.zzz: unknown key; allowed: preempted, time_limit, node_failure, rank_killed, hang, "
                "out_of_memory, rendezvous_failed"
            ),
        ),
        ("log: {epochs: 1}", "7:7: log.epochs: unknown key; did you mean train.epochs?"),
    ],
)
def test_a_bad_line_is_named_with_its_place(problems, good, line, message):
    assert problems(f"{good}{line}\n") == [f"run.yaml:{message}"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: 0.1", "lr: fast", "5:13: optim.lr: expected a number greater than 0, got 'fast'"),
        ("lr: 0.1", "lr: 0", "5:13: optim.lr: expected a number greater than 0, got 0"),
        ("lr: 0.1", "lr: 1e400", "5:13: optim.lr: expected a number greater than 0, got 1e400; write a finite one"),
        ("lr: 0.1", "lr: .nan", "5:13: optim.lr: expected a number greater than 0, got .nan; write a finite one"),
        ("lr: 0.1", "lr: 00.1", "5:13: optim.lr: expected a number greater than 0, got 00.1; write 0.1"),
        ("lr: 0.1", "momentum: 0.9", "5:1: optim.lr: missing; expected a number greater than 0"),
        ("{lr: 0.1}", "\n  momentum: 0.9", "5:1: optim.lr: missing; expected a number greater than 0"),
        (
            "lr: 0.1",
            "lr: 1, momentum: 1",
            "5:26: optim.momentum: expected a number of at least 0 and less than 1, got 1",
        ),
        (
            "lr: 0.1",
            "lr: 1, decay: 2",
            "5:23: optim.decay: expected a number greater than 0 and at most 1, got 2",
        ),
        (
            "lr: 0.1",
            "lr: 1, scale: lin",
            "5:23: optim.scale: expected one of linear, sqrt, none, got 'lin'; did you mean linear?",
        ),
        (
            "name: run",
            "seed: 1",
            "1:1: name: missing; expected letters, digits, '.', '_' and '-', at most 64, no '-' in front",
        ),
        (
            "name: run",
            "name: -x",
            "1:7: name: expected letters, digits, '.', '_' and '-', at most 64, no '-' in front, got '-x'",
        ),
        (
            "mlp",
            "resnet",
            (
                f"3:15: model.name: expected one of {', '.join(MODEL_ARGS)}, or "
                "the user's own as package.module:function, got 'resnet'; did you mean resnet56?"
            ),
        ),
        (
            "mlp",
            "pkg.né:f",
            (
                f"3:15: model.name: expected one of {', '.join(MODEL_ARGS)}, or "
                "the user's own as package.module:function, got 'pkg.né:f'"
            ),
        ),
        ("mlp", "mlp, args: {hiden: 3}", "3:27: model.args.hiden: unknown argument of mlp; did you mean hidden?"),
        (
            "mlp",
            "cnn, args: {depth: 3}",
            f"3:27: model.args.depth: unknown argument of cnn; allowed: {', '.join(fields(CnnArgs))}",
        ),
        (
            "name: mlp",
            "args: {hidden: 3}, name: mlp",
            "3:24: model.args.hidden: expected a list, each a whole number of at least 1, got 3; write [3]",
        ),
        (
            "mlp",
            "mlp, args: {hidden: [8, x]}",
            "3:39: model.args.hidden[1]: expected a whole number of at least 1, got 'x'",
        ),
        ("mlp", "mlp, args: 3", "3:26: model.args: expected key: value pairs, got 3"),
        (
            "mlp",
            "cnn, args: {channels: []}",
            f"3:37: model.args.channels: expected a list of at least 1 value, each {NUMBER[9:]}, got one of 0",
        ),
        (
            "{dataset: mnist}",
            "{dataset: table, path: t.csv, split: {test: 0.1}, args: {columns: [a]}}",
            "2:63: data.args.target: missing; expected the name of a column",
        ),
        ("mnist", "mnist, args: {a: 1}", "2:31: data.args.a: unknown argument of mnist; it has none"),
        (
            "mnist",
            "synthetic, args: {shape: [28, 28]}",
            "2:42: data.args.shape: expected a list of 3 values, each a whole number of at least 1, got one of 2",
        ),
        (
            "mnist",
            "mnits",
            (
                "2:17: data.dataset: expected one of mnist, digits, points, synthetic, idx, cifar10, cifar100, folder, "
                "shards, table, or the user's own as package.module:function, got 'mnits'; did you mean mnist?"
            ),
        ),
    ],
)
def test_a_bad_value_is_named_with_its_place(problems, good, old, new, message):
    assert problems(good.replace(old, new)) == [f"run.yaml:{message}"]


def test_all_problems_come_at_once_in_the_order_of_the_file_the_command_lines_last(problems):
    text = """\
nmae: x
slurm: {nodes: 0}
optim: {nesterov: on}
batch: {global: 8, per_rank: 4}
model: {name: cnn, args: {channels: [1, 2, 3, 4, 5]}}
data: {dataset: mnist}
seed: x
seed: 1
"""
    assert problems(text, "log.zzz=1", "device=gpu", "env.venv=/v", "env.container.image=i.sif") == [
        "run.yaml:1:1: nmae: unknown key; did you mean name?",
        "run.yaml:1:1: name: missing; expected letters, digits, '.', '_' and '-', at most 64, no '-' in front",
        "run.yaml:1:1: train: missing; say how long, such as train: {epochs: 3}",
        "run.yaml:2:16: slurm.nodes: expected a whole number of at least 1, got 0",
        "run.yaml:3:1: optim.lr: missing; expected a number greater than 0",
        "run.yaml:3:19: optim.nesterov: expected true or false, got 'on'; write true",
        "run.yaml:4:30: batch.per_rank: give one of global and per_rank, not both",
        "run.yaml:5:27: model.args.channels: 5 blocks leave nothing of 28 pixels; give at most 4 for this dataset",
        f"run.yaml:7:7: seed: {WHOLE}, got 'x'",
        "run.yaml:8:1: seed: given twice, on line 7 and on line 8",
        "command line: log.zzz=1: unknown key; allowed: every, samples, noise_scale",
        "command line: device=gpu: expected one of auto, cpu, cuda, got 'gpu'; did you mean cpu?",
        "command line: env.venv=/v: a container brings its own Python; give one of venv and container",
    ]


def test_long_values_are_shortened(problems, good):
    assert problems(f"{good}seed: {'x' * 100}\n") == [
        f"run.yaml:7:7: seed: expected a whole number of at least 0, got '{'x' * 57}...'"
    ]


def test_a_rule_is_silent_on_a_section_whose_values_cannot_be_read(problems, good):
    assert problems(good.replace("lr: 0.1", "lr: 0.1, nesterov: true, momentum: much")) == [
        "run.yaml:5:44: optim.momentum: expected a number of at least 0 and less than 1, got 'much'"
    ]
