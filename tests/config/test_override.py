import pytest


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("slurm.nodes=2", lambda config: config.slurm.nodes, 2),
        ("train.epochs=7", lambda config: config.train.epochs, 7),
        ("optim.lr=1e-3", lambda config: config.optim.lr, 0.001),
        ("slurm.time=12:00:00", lambda config: config.slurm.time, "12:00:00"),
        ("slurm.nodelist=n[1-4],n7", lambda config: config.slurm.nodelist, "n[1-4],n7"),
        ("slurm.account='null'", lambda config: config.slurm.account, "null"),
        ('slurm.account="a"', lambda config: config.slurm.account, "a"),
        ("runs=/a b # c: d", lambda config: config.runs, "/a b # c: d"),
        ("name=no", lambda config: config.name, "no"),
        ("env.modules=[a, b]", lambda config: config.env.modules, ("a", "b")),
        ("env.setup=['export A=1']", lambda config: config.env.setup, ("export A=1",)),
        ("model.args.hidden=[8, 8]", lambda config: config.model.args, {"hidden": [8, 8]}),
        ("model={name: cnn}", lambda config: config.model.name, "cnn"),
        ("slurm.account=", lambda config: config.slurm.account, None),
        ("slurm=", lambda config: config.slurm.nodes, 1),
        ("log.every=5 steps", lambda config: str(config.log.every), "5 steps"),
        ("env.container.image=i.sif", lambda config: config.env.container.image, "i.sif"),
    ],
)
def test_an_override_is_read_by_the_type_of_its_key(load, good, override, get, value):
    assert get(load(f"{good}slurm: {{nodes: 3, account: x}}\n", override).config) == value


def test_the_rest_of_the_section_stays(load, good):
    config = load(f"{good}slurm:\n  nodes: 3\n  account: x\n", "slurm.nodes=4").config
    assert (config.slurm.nodes, config.slurm.account) == (4, "x")


def test_an_override_of_an_aliased_section_changes_that_one_alone(load, good):
    text = good.replace("{name: mlp}", "{name: 'a:b', args: {x: &x {n: 1}, y: *x}}")
    assert load(text, "model.args.y.n=2").config.model.args == {"x": {"n": 1}, "y": {"n": 2}}


@pytest.mark.parametrize(
    ("override", "section", "left"),
    [
        ("train.steps=9", "train", (None, 9)),
        ("train.epochs=9", "train", (9, None)),
        ("train={steps: 9}", "train", (None, 9)),
        ("batch.per_rank=9", "batch", (None, 9)),
        ("batch.global=9", "batch", (9, None)),
    ],
)
@pytest.mark.parametrize(
    ("batch", "train"),
    [("global: 4", "epochs: 3"), ("per_rank: 4", "steps: 3"), ("global: 4, per_rank: ", "epochs: 3")],
)
def test_one_of_a_pair_replaces_the_other_of_the_file(load, good, override, section, left, batch, train):
    config = load(good.replace("global: 128", batch).replace("epochs: 3", train), override).config
    both = (
        (config.train.epochs, config.train.steps)
        if section == "train"
        else (config.batch.global_, config.batch.per_rank)
    )
    assert both == left


def test_both_of_a_pair_on_the_command_line_is_an_error(problems, good):
    assert problems(good, "train.epochs=1", "train.steps=2") == [
        "command line: train.steps=2: give one of epochs and steps, not both"
    ]


def test_both_of_a_pair_in_the_file_is_an_error_whatever_is_overridden(problems, good):
    text = good.replace("epochs: 3", "steps: 3, epochs: 3")
    assert problems(text, "train.epochs=1") == ["run.yaml:6:16: train.steps: give one of epochs and steps, not both"]


def test_nothing_does_not_replace(load, good):
    assert load(good, "train.steps=").config.train.epochs == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["slurm.nodse=2"], "command line: slurm.nodse=2: unknown key; did you mean nodes?"),
        (["slurm={nodse: 2}"], "command line: slurm={nodse: 2}: slurm.nodse: unknown key; did you mean nodes?"),
        (["slurm.nodes=two"], "command line: slurm.nodes=two: expected a whole number of at least 1, got 'two'"),
        (["slurm.nodes="], "command line: slurm.nodes=: expected a whole number of at least 1, got nothing"),
        (
            ["slurm.nodes='2'"],
            "command line: slurm.nodes='2': expected a whole number of at least 1, got '2'; leave out the quotes",
        ),
        (["slurm.nodes"], "command line: slurm.nodes: expected key=value, such as train.epochs=3"),
        (["=2"], "command line: =2: expected key=value, such as train.epochs=3"),
        (["slurm..nodes=2"], "command line: slurm..nodes=2: expected key=value, such as train.epochs=3"),
        (["name.x=2"], "command line: name.x=2: name is not a section (see run.yaml:1:1)"),
        (["seed=1", "seed=2"], "command line: seed=2: given twice on the command line; give it once"),
        (
            ["slurm.nodes=1", "slurm={nodes: 2}"],
            "command line: slurm={nodes: 2}: slurm.nodes is given too on the command line; give it once",
        ),
        (
            ["slurm={nodes: 2}", "slurm.nodes=1"],
            "command line: slurm.nodes=1: slurm is given too on the command line; give it once",
        ),
        (
            ["env.modules=[a"],
            (
                "command line: env.modules=[a: not YAML: did not find expected ',' or ']', while parsing a flow "
                "sequence that starts on line 1"
            ),
        ),
        (
            ["slurm={nodes: 1, nodes: 2}"],
            "command line: slurm={nodes: 1, nodes: 2}: nodes: given twice",
        ),
        (
            ["env.modules=[!x a]"],
            "command line: env.modules=[!x a]: the tag !x is not allowed; the key decides the type of its value",
        ),
        (["seed=1\x1b"], "command line: 'seed=1\\x1b': unprintable character; remove it"),
        (["seed=1\udcff"], "command line: 'seed=1\\udcff': unprintable character; remove it"),
        (["env.modules=" + "[" * 500], f"command line: env.modules={'[' * 105}...: nested deeper than 32 levels"),
        (
            ["optim.nesterov=true"],
            "command line: optim.nesterov=true: needs momentum greater than 0, such as momentum: 0.9",
        ),
    ],
)
def test_a_bad_override_is_named_by_itself(problems, good, overrides, message):
    assert problems(good, *overrides) == [message]


def test_what_misses_in_a_section_of_the_file_is_named_there(problems, good):
    assert problems(good.replace("lr: 0.1", "momentum: 0.9"), "optim.scale=none") == [
        "run.yaml:5:1: optim.lr: missing; expected a number greater than 0"
    ]


def test_what_misses_in_a_section_of_the_command_line_is_named_there(problems, good):
    assert problems(good.replace("optim: {lr: 0.1}", ""), "optim.scale=none") == [
        "command line: optim.scale=none: optim.lr: missing; expected a number greater than 0"
    ]


def test_an_override_mends_what_the_file_has_wrong(load, good):
    assert load(good.replace("lr: 0.1", "lr: fast"), "optim.lr=0.5").config.optim.lr == 0.5
