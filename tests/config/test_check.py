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


def test_a_step_schedule_and_nesterov_with_what_they_need(load, good):
    new = "lr: 0.1, schedule: step, momentum: 0.9, nesterov: true, warmup: 5 epochs"
    assert load(good.replace("lr: 0.1", new)).config.optim.nesterov


@pytest.mark.parametrize(
    ("dataset", "most"), [("mnist", 4), ("digits", 3), ("synthetic, args: {shape: [1, 64, 33]}", 5)]
)
def test_pooling_must_leave_a_pixel(load, problems, good, dataset, most):
    text = good.replace("mnist", dataset).replace("mlp", "cnn, args: {channels: [BLOCKS]}")
    assert load(text.replace("BLOCKS", ", ".join(["8"] * most)))
    assert f"give at most {most} for this dataset" in problems(text.replace("BLOCKS", ", ".join(["8"] * (most + 1))))[0]


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
