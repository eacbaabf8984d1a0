import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpctrain.config import load as loading
from hpctrain.config.schema import Batch, Config, Optim
from hpctrain.errors import UsageError


def test_a_config_is_typed_and_has_its_defaults(load, good):
    config = load(good).config
    assert isinstance(config, Config)
    assert (config.name, config.runs, config.seed) == ("run", "./runs", 0)
    assert config.batch == Batch(global_=128)
    assert config.optim == Optim(lr=0.1)
    assert (config.slurm.nodes, config.checkpoint.keep) == (1, 2)


def test_a_section_with_every_line_commented_out_is_empty(load, good):
    assert load(f"{good}slurm:\n  # nodes: 2\nlog:\n").config.slurm.nodes == 1


def test_the_arguments_of_the_users_own_are_plain_values(load, good):
    text = good.replace(
        "{name: mlp}", "\n  name: my_pkg.net:build\n  args: {a: 1, b: 1e3, c: no, d: [x, ~], e: {f: '1'}, g: 010}"
    )
    args = load(text).config.model.args
    assert args == {"a": 1, "b": 1000.0, "c": "no", "d": ["x", None], "e": {"f": "1"}, "g": 10}
    assert type(args["a"]) is int


def test_the_arguments_of_our_own_are_what_was_given(load, good):
    assert load(good).config.model.args == {}
    assert load(good.replace("mlp", "mlp, args: ")).config.model.args == {}
    assert load(good.replace("mlp", "mlp, args: {hidden: [1]}")).config.model.args == {"hidden": [1]}


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("optim.lr", "run.yaml:5:13"),
        ("optim", "run.yaml:5:1"),
        ("optim.momentum", "run.yaml:5:1"),
        ("slurm.nodes", "run.yaml:8:10"),
        ("slurm.time", "run.yaml:7:1"),
        ("env.modules[1]", "run.yaml:9:20"),
        ("env.modules[7]", "run.yaml:9:7"),
        ("env.container.image", "run.yaml:9:1"),
        ("dist.ranks", "run.yaml:1:1"),
        ("", "run.yaml:1:1"),
        ("log.every", "command line: log.every=5 steps"),
        ("log.samples", "command line: log.every=5 steps"),
    ],
)
def test_a_problem_found_later_has_the_place_of_its_key(load, good, key, place):
    loaded = load(f"{good}slurm:\n  nodes: 2\nenv: {{modules: [a, b]}}\n", "log.every=5 steps")
    assert loaded.problem(key, "too many") == f"{place}: too many"


def test_a_missing_file_is_named_with_its_neighbours(tmp_path):
    for name in ("train.yaml", "other.yml", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError) as caught:
        loading.load(tmp_path / "trian.yaml")
    assert str(caught.value) == f"{tmp_path}/trian.yaml: no such file\n  did you mean {tmp_path}/train.yaml?"
    with pytest.raises(UsageError, match="no such file") as caught:
        loading.load(tmp_path / "zzz")
    assert caught.value.hint == f"did you mean {tmp_path}/other.yml or {tmp_path}/train.yaml?"


def test_a_missing_file_in_an_empty_or_missing_folder(tmp_path):
    with pytest.raises(UsageError, match="no such file") as caught:
        loading.load(tmp_path / "a.yaml")
    assert caught.value.hint == f"no .yaml file in {tmp_path}"
    with pytest.raises(UsageError, match="no such file") as caught:
        loading.load(tmp_path / "b" / "a.yaml")
    assert caught.value.hint == f"{tmp_path}/b is no directory that can be read"


def test_a_directory_is_no_config(tmp_path):
    (tmp_path / "a.yaml").touch()
    with pytest.raises(UsageError) as caught:
        loading.load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: a directory, not a config file\n  did you mean {tmp_path}/a.yaml?"


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.touch()

    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read what has mode 000
    with pytest.raises(UsageError, match=r"a.yaml: cannot be read: Permission denied\n  ls -l .*a.yaml shows who may"):
        loading.load(path)


def test_a_path_through_a_file(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UsageError, match="cannot be read: Not a directory"):
        loading.load(tmp_path / "a" / "b.yaml")


def test_loading_imports_next_to_nothing(tmp_path, good):
    (tmp_path / "run.yaml").write_text(good)
    code = """
import sys
before = set(sys.modules)
import msgspec, re, yaml
from pathlib import Path
libraries = set(sys.modules)
from hpctrain.config.load import load
load(Path("run.yaml"), ["train.epochs=5"])
print(*sorted(set(sys.modules) - libraries))
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(loading.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    ours, all_of_them = (set(line.split()) for line in done.stdout.splitlines())
    parts = ("check", "check_data", "check_models", "cluster", "datasets", "document", "duration", "fields", "load",
             "models", "optim", "override", "scalars", "schema", "texts", "values")  # fmt: skip
    assert ours == {"hpctrain", "hpctrain.config", "hpctrain.errors", *(f"hpctrain.config.{part}" for part in parts)}
    assert not all_of_them & {
        "torch",
        "numpy",
        "dataclasses",
        "difflib",
        "json",
        "click",
        "asyncio",
        "importlib_metadata",
    }
