import os
import subprocess
from pathlib import Path

import msgspec
import pytest

import hpctrain
from hpctrain.config.schema import Config
from hpctrain.errors import UsageError
from hpctrain.launch import snapshot
from hpctrain.rundir import changed_since, sums_of

BUILT_IN = Config(name="a")
OWN = Config(name="a", command=("python", "train.py"))


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "train.py").write_text("print(1)")
    (folder / "pkg" / "net.py").write_text("x = 1")
    (folder / ".env").write_text("TOKEN=1")
    (folder / "server.key").write_text("key")
    return folder


def git(folder, *arguments):
    argv = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    subprocess.run(argv, check=True, capture_output=True)


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        name for name in (str(p.relative_to(folder)) for p in folder.rglob("*")) if name.startswith("hpctrain/")
    }


def test_in_a_repository_what_git_tracks_or_would_track_is_taken(project, tmp_path):
    git(project, "init", "-q")
    (project / ".gitignore").write_text("*.bin\n")
    (project / "data.bin").write_text("big")
    git(project, "add", "train.py")
    hidden = snapshot.take(BUILT_IN, project, tmp_path / "code")
    assert names(tmp_path / "code") == {"train.py", "pkg/net.py", ".gitignore"}
    assert sorted(hidden) == [".env", "server.key"]


def test_elsewhere_files_are_taken_only_when_the_config_names_code(project, tmp_path):
    snapshot.take(BUILT_IN, project, tmp_path / "a")
    assert names(tmp_path / "a") == set()
    snapshot.take(OWN, project, tmp_path / "b")
    assert names(tmp_path / "b") == {"train.py", "pkg/net.py"}


def test_the_package_itself_is_part_of_it(project, tmp_path):
    snapshot.take(BUILT_IN, project, tmp_path / "code")
    mine = Path(hpctrain.__file__).parent
    assert (tmp_path / "code/hpctrain/plan.py").read_bytes() == (mine / "plan.py").read_bytes()


def test_virtual_environments_and_run_directories_are_left_out(project, tmp_path):
    for folder, mark in (("env", "pyvenv.cfg"), ("runs/a-1", "plan.json")):
        (project / folder).mkdir(parents=True)
        (project / folder / mark).write_text("")
        (project / folder / "x.py").write_text("")
    snapshot.take(OWN, project, tmp_path / "code")
    assert names(tmp_path / "code") == {"train.py", "pkg/net.py"}


def test_run_directories_that_git_does_not_ignore_are_left_out_too(project, tmp_path):
    git(project, "init", "-q")
    run = project / "runs" / "a-1"
    (run / "attempts" / "1").mkdir(parents=True)
    for name in ("plan.json", "config.yaml", "attempts/1/secret"):
        (run / name).write_text("")
    (project / "runs" / "notes.txt").write_text("")
    snapshot.take(BUILT_IN, project, tmp_path / "code")
    assert names(tmp_path / "code") == {"train.py", "pkg/net.py", "runs/notes.txt"}


def test_names_that_are_no_utf8_are_copied_and_summed(project, tmp_path):
    git(project, "init", "-q")
    odd = os.fsdecode(b"caf\xe9.txt")
    (project / odd).write_text("x")
    snapshot.take(BUILT_IN, project, tmp_path / "code")
    sums = os.fsencode(sums_of(tmp_path / "code"))
    assert b"caf\xe9.txt" in sums
    assert changed_since(tmp_path / "code", os.fsdecode(sums)) == []


def test_too_much_code_names_the_largest_files(project, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "LIMIT_MIB", 1)
    (project / "big.txt").write_bytes(b"x" * (2 << 20))
    with pytest.raises(UsageError, match=r"is more than 1 MiB; the largest files: big\.txt \(2 MiB\)"):
        snapshot.take(OWN, project, tmp_path / "code")


def test_a_broken_link_and_a_deleted_file_do_no_harm(project, tmp_path):
    git(project, "init", "-q")
    (project / "gone.py").write_text("")
    git(project, "add", "gone.py")
    (project / "gone.py").unlink()
    (project / "link").symlink_to("/nowhere/at/all")
    snapshot.take(OWN, project, tmp_path / "code")
    assert names(tmp_path / "code") == {"train.py", "pkg/net.py"}


def test_the_revision_says_whether_there_are_changes(project):
    assert snapshot.revision(project) == {}
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "a")
    assert snapshot.revision(project)["changed"] is False
    (project / "train.py").write_text("print(2)")
    assert snapshot.revision(project)["changed"] is True


def test_a_users_own_model_counts_as_own_code():
    config = msgspec.convert({"name": "a", "model": {"name": "pkg.net:build"}}, Config)
    assert snapshot.uses_own_code(config)
