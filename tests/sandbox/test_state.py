import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hpctrain.errors import UsageError
from hpctrain.sandbox import cluster, root, state
from hpctrain.sandbox.root import Root


@pytest.fixture
def sandbox(place):
    """A state file that names this very process as holder."""
    folder = Root.make()
    sandbox = state.Sandbox(
        root=folder.path,
        holder_pid=os.getpid(),
        holder_start=state.start_ticks(os.getpid()) or 0,
        pid_namespace=state.own_pid_namespace(),
        nodes=2,
        gpus_per_node=1,
        bin=folder.bin,
        slurm_conf=folder.slurm_conf,
    )
    _write(sandbox)
    yield sandbox
    folder.remove()


def _write(sandbox: state.Sandbox) -> None:
    state.state_file().parent.mkdir(exist_ok=True, parents=True)
    state.state_file().write_text(json.dumps(asdict(sandbox), default=str))


def test_the_sandbox_that_is_up_is_found(sandbox):
    assert state.current() == sandbox


def test_a_later_process_of_the_same_number_is_not_the_holder(sandbox):
    _write(replace(sandbox, holder_start=sandbox.holder_start - 1))
    assert state.current() is None
    assert state.load() is not None


def test_a_holder_of_another_pid_namespace_is_not_ours(sandbox):
    _write(replace(sandbox, pid_namespace=1))
    assert state.current() is None


def test_a_zombie_does_not_run():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert state.start_ticks(child.pid) is None
    child.wait()
    assert state.start_ticks(child.pid) is None


def test_a_name_with_blanks_and_parentheses_does_not_confuse(tmp_path):
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as child:
        plain = state.start_ticks(child.pid)
        child.kill()
    assert plain is not None
    assert plain >= (state.start_ticks(os.getpid()) or 0)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"root": 1}', '{"root": "/r", "extra": 1}'])
def test_a_broken_state_file_is_none(text):
    state.state_file().parent.mkdir(parents=True)
    state.state_file().write_text(text)
    assert state.current() is None
    assert cluster.down() is False
    assert not state.state_file().exists()


def test_down_cleans_what_a_dead_sandbox_left(sandbox):
    _write(replace(sandbox, holder_start=1))  # as after a reboot
    assert cluster.down() is False
    assert not sandbox.root.exists()
    assert not state.state_file().exists()


def test_down_removes_nothing_but_sandboxes(sandbox, place):
    precious = place / "thesis"
    precious.mkdir()
    _write(replace(sandbox, root=precious))
    cluster.down()
    assert precious.exists()


def test_up_refuses_while_one_is_up(sandbox, monkeypatch):
    monkeypatch.setattr(cluster, "require_packages", lambda spec: None)
    held = Root(sandbox.root).lock()
    with pytest.raises(UsageError) as caught:
        cluster.up(nodes=1, gpus_per_node=0)
    os.close(held)
    assert str(caught.value) == f"sandbox: one is up already, in {sandbox.root}\n  hpctrain sandbox down"


def test_sweep_keeps_the_young_and_the_living(place):
    young, living, dead = Root.make(), Root.make(), Root.make()
    held = living.lock()
    for old in (living, dead):
        os.utime(old.path, (0, 0))
    root.sweep()
    assert sorted(place.glob("hpctrain-sandbox-*")) == sorted([young.path, living.path])
    os.close(held)
    for left in (young, living):
        left.remove()


def test_a_long_tmpdir_is_not_used(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert root._base() == Path("/tmp")


def test_reading_the_state_imports_nothing_heavy():
    heavy = {"subprocess", "socket", "ctypes", "shutil", "tempfile", "click", "msgspec"}
    code = "import sys; from hpctrain.sandbox import state; state.current(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(state.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not heavy & set(done.stdout.split())
