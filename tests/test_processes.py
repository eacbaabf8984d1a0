import os
import subprocess
import sys
import time

from hpctrain.processes import children, is_alive, start_time


def test_a_process_is_alive_until_it_ends():
    child = subprocess.Popen(["sleep", "60"])
    started = start_time(child.pid)
    assert is_alive(child.pid, started)
    assert child.pid in children(os.getpid())
    child.kill()
    child.wait()
    assert not is_alive(child.pid, started)


def test_a_reused_process_id_is_another_process():
    assert not is_alive(os.getpid(), (start_time(os.getpid()) or 0) + 1)
    assert not is_alive(os.getpid(), None)


def test_a_zombie_is_not_alive():
    child = subprocess.Popen(["true"])
    started = start_time(child.pid)
    while start_time(child.pid) is not None:
        time.sleep(0.01)
    assert not is_alive(child.pid, started)
    child.wait()


def test_orphans_and_deaf_children_are_ended(tmp_path):
    """A grandchild in a session of its own that ignores TERM is gone after `end_children`."""
    note, script = tmp_path / "pid", tmp_path / "deaf.sh"
    script.write_text(f"trap '' TERM\necho $$ >{note}\nwhile :; do sleep 0.1; done\n")
    program = (
        "import os, pathlib, subprocess, sys, time\n"
        "from hpctrain.processes import adopt_orphans, end_children\n"
        "adopt_orphans()\n"
        f"subprocess.run(['bash', '-c', 'setsid bash {script} &'])\n"
        f"note = pathlib.Path('{note}')\n"
        "while not (note.exists() and note.read_text()): time.sleep(0.01)\n"
        "end_children(0.3)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
    assert start_time(int(note.read_text())) is None
