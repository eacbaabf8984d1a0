import json
import os
import stat
import subprocess

import pytest

from hpctrain.errors import UsageError
from hpctrain.rundir import RunDir, changed_since, publish, publish_first, sums_of


@pytest.fixture
def run(tmp_path):
    made = RunDir.create(tmp_path / "runs", "mnist")
    publish(made.config, b"name: mnist\n")
    return made


def test_a_run_directory_is_private_and_named_after_its_run(run):
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert run.path.name.startswith("mnist-")
    assert RunDir.open(run.path).path == run.path


def test_two_runs_of_one_name_get_two_directories(tmp_path):
    assert RunDir.create(tmp_path, "a").path != RunDir.create(tmp_path, "a").path


@pytest.mark.parametrize("name", ["my runs", "a#b", "it's", "100%", "a\nb", "back\\slash", "$HOME"])
def test_paths_that_a_batch_script_cannot_carry_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot carry safely"):
        RunDir.create(tmp_path / name, "mnist")
    assert not (tmp_path / name).exists()


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot make a run directory in .*/file: .*\n  give another place"):
        RunDir.create(tmp_path / "file", "mnist")


def test_something_else_is_no_run_directory(tmp_path):
    with pytest.raises(UsageError, match=r"is no run directory: it has no config\.yaml\n  hpctrain list"):
        RunDir.open(tmp_path)


def test_attempts_count_from_one_and_get_a_secret_of_their_own(run):
    assert [run.begin_attempt({"n": 1}), run.begin_attempt({"n": 2})] == [1, 2]
    assert run.attempt_numbers() == [1, 2]
    assert run.secret(1).read_bytes() != run.secret(2).read_bytes()
    assert stat.S_IMODE(run.secret(1).stat().st_mode) == 0o600
    assert json.loads(run.begin(2).read_bytes()) == {"n": 2}


def test_checkpoints_are_listed_by_step_and_leftovers_are_not(run):
    for name in ("step_00000200", "step_00000100", "step_x", "tmp_00000300"):
        (run.ckpt / name).mkdir()
    assert run.checkpoints() == [100, 200]
    assert run.checkpoint(200) == run.ckpt / "step_00000200"


def test_publishing_replaces_a_file_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    publish(path, b"one")
    publish(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_publishing_does_not_follow_a_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / f".a.json.{bytes(6).hex()}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        publish(tmp_path / "a.json", b"x")
    assert victim.read_text() == "precious"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path / "a.json", b"x")
    assert list(tmp_path.iterdir()) == []


def test_the_first_outcome_stays(tmp_path):
    assert publish_first(tmp_path / "o.json", b"first")
    assert not publish_first(tmp_path / "o.json", b"second")
    assert (tmp_path / "o.json").read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["o.json"]


def test_the_sums_of_a_tree_are_those_of_sha256sum(tmp_path):
    code = tmp_path / "code"
    (code / "a b").mkdir(parents=True)
    (code / "a b" / "x.py").write_text("1")
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "x.pyc").write_text("2")
    (tmp_path / "sums").write_text(sums_of(code))
    checked = subprocess.run(["sha256sum", "-c", "../sums"], cwd=code, capture_output=True, text=True, check=True)
    assert checked.stdout == "a b/x.py: OK\n"


def test_edited_and_deleted_files_are_found_and_new_ones_do_not_count(tmp_path):
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_text(name)
    sums = sums_of(tmp_path)
    (tmp_path / "results.csv").write_text("what a script writes where it runs")
    assert changed_since(tmp_path, sums) == []
    (tmp_path / "a.py").write_text("x")
    (tmp_path / "c.py").unlink()
    assert changed_since(tmp_path, sums) == ["a.py", "c.py"]
