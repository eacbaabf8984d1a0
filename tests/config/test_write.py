import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hpctrain.config import load as loading
from hpctrain.config import schema
from hpctrain.config.check import NEEDED, check
from hpctrain.config.duration import Duration
from hpctrain.config.fields import Spec, fields, take_apart
from hpctrain.config.optim import unread
from hpctrain.config.scalars import LARGEST

ODD = [
    *("no", "null", "~", "", "true", "010", "1e3", "0x1F", ".inf", "-", "<<", "=", "a: b", "# x", "x #", "12:00:00"),
    *(
        "- a",
        "!x",
        "&a",
        "*a",
        "a\nb",
        "a\n",
        " a",
        "\t",
        "%",
        "@",
        "`",
        "\u2028",
        "\x85",
        "\ufeff",
        "\0",
        "'",
        '"',
        "|",
    ),
    "9" * 5000,
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(ODD)
FREE = st.recursive(
    st.none() | st.booleans() | st.integers(-LARGEST, LARGEST) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def values(spec: Spec) -> st.SearchStrategy[Any]:
    """Return a strategy for the values that a spec allows."""
    made: st.SearchStrategy[Any]
    if spec.base is Duration:
        made = st.builds(Duration, st.integers(0, 10**6).map(float), st.sampled_from(["steps", "epochs"])) | st.builds(
            Duration, st.integers(0, 100_000).map(lambda thousandths: thousandths / 1000), st.just("%")
        )
    elif issubclass(spec.base, msgspec.Struct):
        made = structs(spec.base)
    elif spec.base is tuple:
        if spec.endless:
            made = st.lists(values(spec.items[0]), min_size=spec.bounds.get("min_length", 0), max_size=3).map(tuple)
        else:
            made = st.tuples(*map(values, spec.items))
    elif spec.base is bool:
        made = st.booleans()
    elif spec.base is int:
        made = st.integers(spec.bounds.get("ge", 0), spec.bounds.get("le", LARGEST))
    elif spec.base is float:
        made = st.floats(
            spec.bounds.get("ge", spec.bounds.get("gt", 0)),
            spec.bounds.get("le", spec.bounds.get("lt", 1e308)),
            exclude_min="gt" in spec.bounds,
            exclude_max="lt" in spec.bounds,
        )
    elif spec.base is dict:
        made = st.just({})
    else:
        made = texts(spec)
    return st.none() | made if spec.optional else made


def texts(spec: Spec) -> st.SearchStrategy[Any]:
    words = st.sampled_from(spec.choices) if spec.choices else st.nothing()
    if spec.pattern is not None:
        short = re.sub(r"\{(\d),\d{3,}\}", r"{\1,8}", spec.pattern)  # text of 4,096 characters shows nothing new
        words |= st.from_regex(re.compile(short, re.ASCII), fullmatch=True)
    return words if spec.choices or spec.pattern is not None else TEXTS


@cache
def structs(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{field.name: values(field.spec) for field in fields(kind).values()})


def arguments(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    # as `load` leaves them: with lists
    return (
        structs(kind)
        .map(msgspec.to_builtins)
        .map(lambda made: {key: list(v) if isinstance(v, tuple) else v for key, v in made.items()})
    )


def with_arguments(data: schema.Data) -> st.SearchStrategy[schema.Data]:
    kind = schema.DATASET_ARGS.get(data.dataset)
    return st.just(data) if kind is None else arguments(kind).map(lambda args: msgspec.structs.replace(data, args=args))


def read(optim):
    """Take back what nothing reads, or hardly any example would pass."""
    plain = schema.Optim(lr=1.0)
    idle = {key: getattr(plain, key) for key, _ in unread(optim)}
    return msgspec.structs.replace(optim, **idle)


TRAINING = st.fixed_dictionaries({
    "model": st.sampled_from(sorted(schema.MODEL_ARGS)).flatmap(
        lambda name: st.builds(schema.Model, name=st.just(name), args=arguments(schema.MODEL_ARGS[name]))
    )
    | st.builds(schema.Model, name=st.just("pkg.net:build"), args=st.dictionaries(TEXTS, FREE, max_size=3)),
    "data": structs(schema.Data).flatmap(with_arguments),
    "batch": st.builds(schema.Batch, per_rank=st.integers(1, 10**6), tail=st.sampled_from(["keep", "drop"])),
    "optim": structs(schema.Optim).map(read),
    "train": st.builds(schema.Train, epochs=st.integers(1, 10**6), eval_every=values(take_apart(Duration))),
})  # fmt: skip
COMMAND = st.fixed_dictionaries({"command": st.lists(TEXTS, min_size=1, max_size=3).map(tuple)})
SECTIONS = [key for key, field in fields(schema.Config).items() if key not in {*NEEDED, "command"}]
SAFE = {
    "command": ("python",),
    "data": schema.Data(dataset="mnist"),
    "model": schema.Model(name="mlp"),
    "loss": "auto",
    "metrics": (),
    "optim": schema.Optim(lr=0.1),
    "train": schema.Train(epochs=1),
    "slurm": schema.Slurm(),
    "env": schema.Env(),
    "dist": schema.Dist(),
    "folds": None,
    "log": schema.Log(),
}
"""Sections to put in the place of those that `check` blames."""


@st.composite
def configs(draw):
    """Return a config that `check` lets pass."""
    given = draw(TRAINING | COMMAND) | {"name": "run"}
    for key in draw(st.lists(st.sampled_from(SECTIONS), max_size=3, unique=True)):
        given[key] = draw(values(fields(schema.Config)[key].spec))
    while blamed := {re.split(r"[.\[]", key)[0] for key, _ in check(schema.Config(**given))}:
        given |= {key: SAFE[key] for key in blamed}
    return schema.Config(**given)


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
@given(config=configs())
def test_what_is_dumped_is_loaded_again(config, folder):
    path = folder / "dumped.yaml"
    path.write_text(loading.dump(config), encoding="utf-8")
    assert loading.load(path).config == config


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_text_is_loaded_again_as_word_key_and_value(load, good, text):
    config = load("name: a\ncommand: [x]").config
    config = msgspec.structs.replace(config, command=("x", text.replace("\0", "")))
    assert load(loading.dump(config)).config == config
    model = schema.Model(name="pkg.net:build", args={text: [text, {text: text}]})
    config = msgspec.structs.replace(load(good).config, model=model)
    assert load(loading.dump(config)).config == config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("law")


def test_a_dump_is_short_and_reads_as_people_write(load, good):
    text = good + "slurm: {nodes: 2, time: 12:00:00, account: '010'}\nlog: {every: 50 steps}\n"
    assert (
        loading.dump(load(text, "model.args.hidden=[8, 8]").config)
        == """\
name: run
runs: ./runs
seed: 0
device: auto
slurm:
  account: '010'
  nodes: 2
  gpus_per_node: 0
  time: 12:00:00
data:
  dataset: mnist
  shuffle: full
  block: 256
  workers: auto
  loader: threads
  on_error: stop
model:
  name: mlp
  args:
    hidden: [8, 8]
  batch_norm: local
loss: auto
batch:
  global: 128
  accumulate: 1
  tail: keep
optim:
  name: sgd
  lr: 0.1
  scale: linear
  warmup: 0 steps
  schedule: constant
  momentum: 0.0
  nesterov: false
  dampening: 0.0
  weight_decay: 0.0
  weight_decay_on: auto
precision: fp32
train:
  epochs: 3
  eval_every: 1 epoch
  l1: 0.0
  l2: 0.0
  compile: false
  on_nan: stop
"""
    )


@pytest.mark.parametrize("text", ["no", "yes", "on", "12:00:00", "1_000", "a"])
def test_text_that_needs_no_quotes_has_none(load, text):
    config = load("name: a\ncommand: [x]").config
    assert f"name: {text}\n" in loading.dump(msgspec.structs.replace(config, name=text))


@pytest.mark.parametrize("text", ["null", "true", "010", "1e3", "0x1F", "1."])
def test_text_that_reads_as_something_else_is_quoted(load, text):
    config = load("name: a\ncommand: [x]").config
    assert f"name: '{text}'\n" in loading.dump(msgspec.structs.replace(config, name=text))


def test_an_argument_that_looks_like_a_merge_key_is_quoted(load, good):
    config = load(good.replace("mlp", "'a:b', args: {'<<': '<<'}")).config
    assert "    '<<': '<<'\n" in loading.dump(config)


def test_what_is_dumped_holds_what_was_asked_however_it_was_asked(load, good):
    first = loading.dump(load(good, "optim.lr=1e-3", "train.steps=5").config)
    Path("again.yaml").write_text(first, encoding="utf-8")
    assert loading.dump(loading.load(Path("again.yaml")).config) == first
