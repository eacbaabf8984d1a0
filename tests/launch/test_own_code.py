import pytest

from hpctrain.config.load import load
from hpctrain.launch.own_code import problems

MODEL = """name: a
data: {{dataset: digits}}
model: {{name: '{}'}}
batch: {{global: 60}}
optim: {{lr: 1}}
train: {{steps: 1}}
"""


@pytest.fixture
def found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("from os import *\n")
    (tmp_path / "pkg" / "net.py").write_text("import torch as t\nif True:\n    def build(): ...\nother = build\n")
    (tmp_path / "bad.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "train.py").write_text("raise SystemExit('it must not run')")

    def call(text):
        (tmp_path / "c.yaml").write_text(text)
        return [line.replace(str(tmp_path), "HERE") for line in problems(load(tmp_path / "c.yaml"))]

    return call


@pytest.mark.parametrize("name", ["pkg.net:build", "pkg.net:other", "pkg.net:t", "pkg:anything", "json:loads"])
def test_what_is_there_is_found_without_running_it(found, name):
    assert found(MODEL.format(name)) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pkg.net:biuld", "pkg/net.py has no function biuld; did you mean build?"),
        ("pkg.nets:build", "there is no module pkg.nets in HERE: neither pkg/nets.py nor pkg/nets/__init__.py"),
        ("nowhere:build", "there is no module nowhere in HERE: neither nowhere.py nor nowhere/__init__.py"),
        ("bad:f", "bad.py:2 cannot be read as Python: invalid syntax"),
    ],
)
def test_what_is_missing_is_named_with_its_place(found, name, message):
    assert found(MODEL.format(name)) == [f"HERE/c.yaml:3:15: {message}"]


def test_a_module_of_the_jobs_own_python_may_be_there(found):
    assert found(MODEL.format("nowhere:build") + "env: {venv: /v}\n") == []


@pytest.mark.parametrize(
    "command", ["[python, train.py]", "[python3, -u, train.py, x]", "[python, -m, a.py]", "[bash, x.py]"]
)
def test_a_script_that_is_there_or_no_script_is_no_problem(found, command):
    assert found(f"name: a\ncommand: {command}\n") == []


def test_a_missing_script_is_named(found):
    assert found("name: a\ncommand: [python, tarin.py]\n") == [
        "HERE/c.yaml:2:1: there is no file tarin.py in HERE, which the job gets a copy of"
    ]


def test_a_loss_of_ones_own_is_looked_for_too(found):
    assert found(MODEL.format("mlp") + "loss: pkg.net:build\n") == []
    assert found(MODEL.format("mlp") + "loss: pkg.net:biuld\n") == [
        "HERE/c.yaml:7:7: pkg/net.py has no function biuld; did you mean build?"
    ]


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_a_library_that_is_not_installed_is_named(found, monkeypatch, name):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else there(asked))
    problem = f"{name} is not installed; python -m pip install --no-deps {name} installs it beside this torch"
    text = MODEL.format(f"{name}:resnet18").replace("digits", "synthetic, args: {shape: [3, 32, 32]}")
    assert found(text) == [f"HERE/c.yaml:3:15: {problem}"]
    assert found(text + "env: {venv: /v}\n") == []
