import pytest

from hpctrain.config.texts import seconds

COMMAND = "name: run\ncommand: [python, train.py]\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data: {dataset: mnist}", "", "1:1: data: missing; name it, such as data: {dataset: mnist}"),
        ("model: {name: mlp}", "", "1:1: model: missing; name it, such as model: {name: mlp}"),
        ("model: {name: mlp}", "model:", "3:1: model: missing; name it, such as model: {name: mlp}"),
        ("batch: {global: 128}", "", "1:1: batch: missing; give its size, such as batch: {global: 128}"),
        ("optim: {lr: 0.1}", "", "1:1: optim: missing; give a learning rate, such as optim: {lr: 0.1}"),
        ("train: {epochs: 3}", "", "1:1: train: missing; say how long, such as train: {epochs: 3}"),
        ("global: 128", "accumulate: 2", "4:1: batch: give one of global and per_rank"),
        ("global: 128", "per_rank: 2, global: 4", "4:19: batch.per_rank: give one of global and per_rank, not both"),
        ("epochs: 3", "", "6:1: train: give one of epochs and steps"),
        ("epochs: 3", "epochs: 3, steps: 4", "6:27: train.steps: give one of epochs and steps, not both"),
        (
            "lr: 0.1",
            "lr: 0.1, nesterov: true",
            "5:28: optim.nesterov: needs momentum greater than 0, such as momentum: 0.9",
        ),
        (
            "lr: 0.1",
            "lr: 0.1, schedule: step, decay_every: 0 steps",
            "5:47: optim.decay_every: must be longer than 0 with schedule: step",
        ),
        ("mnist", "digits, path: /d", "2:31: data.path: digits reads no files; remove path, or use dataset: mnist"),
        (
            "mnist",
            "synthetic, path: /d",
            "2:34: data.path: synthetic reads no files; remove path, or use dataset: mnist",
        ),
        (
            "mnist",
            "mnist, loader: processes",
            "2:32: data.loader: mnist is read by threads; processes are for a dataset of your own",
        ),
        (
            "mnist",
            "mnist, on_error: skip",
            "2:34: data.on_error: mnist is read as a whole, so nothing can be skipped; remove it",
        ),
        (
            "mnist",
            "folder, path: /d, args: {resize: 200}",
            "2:50: data.args.resize: 200 is less than size, 224, which is cut out of it",
        ),
        (
            "mnist",
            "shards, path: /d, args: {mean: [0.5, 0.5]}",
            "2:42: data.args.mean: has 2 numbers; give one for each channel, 3, or one for all",
        ),
    ],
)
def test_a_rule_of_training(problems, good, old, new, message):
    assert problems(good.replace(old, new)) == [f"run.yaml:{message}"]


TABLE = "{dataset: table, path: t.csv, split: {test: 0.1}, args: {target: y}}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "{dataset: idx}",
            "2:1: data.path: missing; give the directory of its IDX files, named as those of MNIST",
        ),
        ("{dataset: cifar10}", "2:1: data.path: missing; give the directory of its .bin files"),
        ("{dataset: cifar100}", "2:1: data.path: missing; give the directory of its .bin files"),
        ("{dataset: folder}", "2:1: data.path: missing; give the directory of the pictures"),
        ("{dataset: shards}", "2:1: data.path: missing; give the directory of the shards"),
        (TABLE.replace("path: t.csv, ", ""), "2:1: data.path: missing; give the CSV file"),
        (
            TABLE.replace("test: 0.1", "validation: 0.1"),
            "2:37: data.split.test: missing; a table has no test set of its own, so set some apart, such as 0.1",
        ),
        (
            "{dataset: folder, path: p, args: {test: null}}",
            "2:1: data.split.test: missing; with args.test: null set some apart, such as 0.1",
        ),
        (
            "{dataset: shards, path: p, args: {test: null}}",
            "2:1: data.split.test: missing; with args.test: null set some apart, such as 0.1",
        ),
        (
            "{dataset: points, split: {test: 0.2}, args: {kind: xor, test_count: 50}}",
            "2:75: data.args.test_count: split.test sets the test points apart; remove one of the two",
        ),
        (
            "{dataset: mnist, split: {fold: 6/5}}",
            "2:38: data.split.fold: there is no fold 6 of 5; give k/K, K of at least 2 and k from 1 to K",
        ),
        (
            "{dataset: mnist, split: {fold: 1/1}}",
            "2:38: data.split.fold: there is no fold 1 of 1; give k/K, K of at least 2 and k from 1 to K",
        ),
        (
            "{dataset: mnist, split: {fold: 1/5, validation: 0.1}}",
            "2:55: data.split.validation: a fold is what is for validation; give one of fold and validation",
        ),
        (
            "{dataset: mnist, split: {test: 0.5, validation: 0.5}}",
            "2:55: data.split.validation: with split.test nothing is left for training; set fewer apart",
        ),
        (
            "{dataset: synthetic, split: {fold: 1/5}}",
            "2:28: data.split: synthetic images are random, there is nothing to set apart; remove it",
        ),
        (
            "{dataset: cifar10, path: p, args: {only: [bird]}}",
            "2:42: data.args.only: one class leaves nothing to tell apart; name two or more",
        ),
        ("{dataset: cifar10, path: p, args: {only: [a, b, a]}}", "2:42: data.args.only: 'a' is named twice"),
        (
            TABLE.replace("y}", "y, categories: [a, y]}"),
            "2:75: data.args.categories: 'y' is the target, which is no input anyway; remove it here",
        ),
        (
            TABLE.replace("y}", "y, categories: [a], leave_out: [a]}"),
            "2:75: data.args.categories: 'a' is left out by leave_out; name it in one of them",
        ),
        (TABLE.replace("y}", "y, columns: [x, y, x]}"), "2:75: data.args.columns: 'x' is named twice"),
        (
            TABLE.replace("y}", "yy, columns: [x, y]}"),
            "2:72: data.args.target: there is no column 'yy'; did you mean 'y'? the columns are: x, y",
        ),
        (TABLE.replace("y}", "y, columns: [y]}"), "2:57: data.args.leave_out: no column is left as an input"),
        (
            TABLE.replace("y}", "y, task: classification, offset: 1}"),
            "2:105: data.args.offset: is added to numbers, and classes are names; remove it, or use task: regression",
        ),
    ],
)
def test_a_rule_of_data(problems, good, data, message):
    assert problems(good.replace("{dataset: mnist}", data)) == [f"run.yaml:{message}"]


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        TABLE.replace("y}", "y, columns: [x, y, z], categories: [x], task: classification}"),
        "{dataset: cifar100, path: p, args: {only: [bee, bear]}, split: {fold: 5/5}}",
        "{dataset: folder, path: p, args: {test: null}, split: {test: 0.1, validation: 0.2}}",
        "{dataset: idx, path: p}",
    ],
)
def test_what_no_rule_of_data_forbids(load, good, data):
    assert load(good.replace("{dataset: mnist}", data)).config.data.path


def test_a_table_has_no_images(problems, good):
    text = good.replace("{dataset: mnist}", TABLE).replace("mlp", "cnn")
    assert problems(text) == ["run.yaml:3:15: model.name: cnn needs images, and a table has none; use mlp"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "slurm: {mail_user: me}",
            "7:20: slurm.mail_user: no mail is sent without mail_type, such as mail_type: END,FAIL",
        ),
        (
            "slurm: {gpus_per_node: 2, gres: 'gpu:2'}",
            "7:33: slurm.gres: asks for GPUs, as gpus_per_node does; give one of them",
        ),
        (
            "slurm: {gres: 'tmp:1,gpu:2'}",
            "7:15: slurm.gres: asks for GPUs, but device: auto looks at gpus_per_node; give that, or device: cuda",
        ),
        ("slurm: {time: 00:00:00}", "7:15: slurm.time: must be longer than 0, which Slurm takes for no limit"),
        (
            "slurm: {time: 00:01:00, signal_s: 60}",
            "7:35: slurm.signal_s: 60 s before the end is before the start; time is 60 s",
        ),
        (
            "slurm: {time: 0-0:1, signal_s: 60}",
            "7:32: slurm.signal_s: 60 s before the end is before the start; time is 60 s",
        ),
        (
            "env: {venv: /v, container: {image: i.sif}}",
            "7:13: env.venv: a container brings its own Python; give one of venv and container",
        ),
        (
            "env: {setup: [true, '#SBATCH -n 2']}",
            "7:21: env.setup[1]: the scheduler ignores this line so far down; use the keys of slurm",
        ),
    ],
)
def test_a_rule_of_the_job(problems, good, line, message):
    assert problems(f"{good}{line}\n") == [f"run.yaml:{message}"]


@pytest.mark.parametrize(
    "line",
    [
        "slurm: {mail_user: me, mail_type: END}",
        "slurm: {gpus_per_node: 2, gres: 'tmp:1'}",
        "slurm: {gres: 'gpu:2'}\ndevice: cuda",
        "slurm: {time: 1-0, signal_s: 3600}",
        "slurm: {time: 1-00:00, signal_s: 3600}",
        "checkpoint: {every: 0 steps}",
    ],
)
def test_what_no_rule_forbids(load, good, line):
    assert load(f"{good}{line}\n").config.name == "run"


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_adasum_can_leave_no_step_out(problems, load, good, policy):
    text = good.replace("epochs: 3", f"epochs: 3, on_nan: {policy}")
    horovod = "dist: {strategy: horovod, backend: mpi, launcher: mpirun, horovod: {op: OP}}\n"
    assert load(text + horovod.replace("OP", "average")).config.train.on_nan == policy
    [problem] = problems(text + horovod.replace("OP", "adasum"))
    assert problem.endswith(
        "dist.horovod.op: adasum joins what the optimizer did, so no step can be left out; use on_nan: stop"
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("dist: {strategy: horovod, compression: bf16}", "Horovod sums no bfloat16; use fp16, or strategy: ddp"),
        (
            "dist: {backend: mpi, launcher: mpirun, compression: fp16}",
            "torch sums no 16-bit numbers by MPI; use none, or backend: auto",
        ),
        (
            "precision: fp64\ndist: {compression: bf16}",
            "would round what precision: fp64 computes; use none, or precision: fp32",
        ),
    ],
)
def test_compression_where_it_cannot_be(problems, good, lines, message):
    [problem] = problems(f"{good}{lines}\n")
    assert problem.endswith(f": dist.compression: {message}")


def test_a_commands_gradients_are_its_own(problems):
    [problem] = problems(f"{COMMAND}dist: {{compression: fp16}}\n")
    assert problem == "run.yaml:3:21: dist.compression: a command sums its own gradients; remove it"


def test_compression_has_moved_to_a_key_for_both_strategies(problems, good):
    [problem] = problems(f"{good}dist: {{strategy: horovod, horovod: {{compression: fp16}}}}\n")
    assert problem == "run.yaml:7:37: dist.horovod.compression: unknown key; did you mean dist.compression?"


def test_a_step_schedule_and_nesterov_with_what_they_need(load, good):
    new = "lr: 0.1, schedule: step, momentum: 0.9, nesterov: true, warmup: 5 epochs"
    assert load(good.replace("lr: 0.1", new)).config.optim.nesterov


@pytest.mark.parametrize(
    ("dataset", "most"),
    [
        ("mnist", 4),
        ("digits", 3),
        ("cifar10, path: p", 5),
        ("folder, path: p, args: {size: 100}", 6),
        ("synthetic, args: {shape: [1, 64, 33]}", 5),
    ],
)
def test_pooling_must_leave_a_pixel(load, problems, good, dataset, most):
    text = good.replace("mnist", dataset).replace("mlp", "cnn, args: {channels: [BLOCKS]}")
    assert load(text.replace("BLOCKS", ", ".join(["8"] * most)))
    assert f"give at most {most} for this dataset" in problems(text.replace("BLOCKS", ", ".join(["8"] * (most + 1))))[0]


IMAGES = "is for images, not for a table; remove it"
CLASSES = "is for classes, not for a regression; remove it, or use task: classification"


@pytest.mark.parametrize(("data", "message"), [
    ("mnist, augment: {crop: padded, padding: 28}",
     "data.augment.padding: 28 pixels can move all 28 out of sight; give at most 27"),
    ("cifar10, path: /c, augment: {cutout: 32}",
     "data.augment.cutout: a square of 32 blanks all 32 pixels; give at most 31"),
    ("synthetic, args: {shape: [3, 9, 6]}, augment: {cutout: 6}",
     "data.augment.cutout: a square of 6 blanks all 6 pixels; give at most 5"),
    ("folder, path: /p, args: {size: 64}, augment: {cutout: 64}",
     "data.augment.cutout: a square of 64 blanks all 64 pixels; give at most 63"),
    ("digits, augment: {crop: resized}",
     "data.augment.crop: resized is for encoded pictures, not for digits; use padded or none"),
    ("folder, path: /p, augment: {scale: [1, 0.5]}",
     "data.augment.scale: runs from 1 down to 0.5; give the smaller number first"),
    ("folder, path: /p, augment: {ratio: [2, 1.5]}",
     "data.augment.ratio: runs from 2 down to 1.5; give the smaller number first"),
    ("table, path: /t, split: {test: 0.1}, args: {target: y}, augment: {flip: true}", f"data.augment.flip: {IMAGES}"),
    ("table, path: /t, split: {test: 0.1}, args: {target: y, task: classification}, augment: {cutmix: 1}",
     f"data.augment.cutmix: {IMAGES}"),
    ("table, path: /t, split: {test: 0.1}, args: {target: y}, augment: {mixup: 0.2}", f"data.augment.mixup: {CLASSES}"),
    ("table, path: /t, split: {test: 0.1}, args: {target: y}, augment: {label_smoothing: 0.1}",
     f"data.augment.label_smoothing: {CLASSES}"),
    ("mnist, shuffle: blocks, split: {validation: 0.1}",
     "data.shuffle: a split leaves no neighbours together; use shuffle: full, or remove split"),
])  # fmt: skip
def test_a_rule_of_augmentation_and_order(problems, good, data, message):
    [found] = problems(good.replace("mnist", data))
    where, _, said = found.partition(" ")
    assert (where.startswith("run.yaml:2:"), said) == (True, message)


@pytest.mark.parametrize("data", [
    "mnist, augment: {crop: padded, padding: 27, flip: true, jitter: 0.4, cutout: 27, mixup: 1, cutmix: 1}",
    "idx, path: /i, augment: {cutout: 100}",  # the ranks will know how large the images are
    "folder, path: /p, augment: {crop: resized, cutout: 223}",
    "table, path: /t, split: {test: 0.1}, args: {target: y, task: classification}, augment: {mixup: 0.2}",
    "mnist, shuffle: blocks, block: 64, samples: 100",
])  # fmt: skip
def test_what_augmentation_and_order_allow(load, good, data):
    assert load(good.replace("mnist", data))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("command: []", "7:1: command: needs at least a program, such as [python, train.py]"),
        ("command: ['', a]", "7:1: command: needs at least a program, such as [python, train.py]"),
        ('command: [a, "b\\0"]', "7:1: command: a word of a command cannot contain a NUL character"),
        (
            "command: [a]",
            "7:1: command: a command trains by itself; remove model, data, batch, optim, train, or remove command",
        ),
    ],
)
def test_a_command(problems, good, line, message):
    assert f"run.yaml:{message}" in problems(f"{good}{line}\n")


def test_a_command_needs_nothing_else_and_its_words_are_text(load):
    config = load(COMMAND.replace("train.py", 'train.py, --epochs, 3, "3", yes, 0x10')).config
    assert config.command == ("python", "train.py", "--epochs", "3", "3", "yes", "0x10")
    assert config.model is None


def test_a_bad_command_is_not_taken_for_none(problems):
    assert problems("name: run\ncommand: python\n") == [
        "run.yaml:2:10: command: expected a list, each text, got 'python'; write [python]"
    ]


def test_nothing_but_a_name_asks_for_a_command_or_a_training(problems):
    assert problems("name: run\n")[0] == (
        "run.yaml:1:1: model: missing; name it, such as model: {name: mlp}, or give a command instead"
    )


@pytest.mark.parametrize(
    ("text", "expected"), [("1-2", 93600), ("1-02:03", 93780), ("1-2:3:4", 93784), ("100:00:01", 360001)]
)
def test_times_mean_what_slurm_reads(text, expected):
    assert seconds(text) == expected
