"""`run --debug`: one process on the terminal, with the debugger where an error is."""

import fcntl
import os
import pty
import subprocess
import sys
import termios
import time

import pytest

pytestmark = pytest.mark.torch

CONFIG = """
name: debug
data: {dataset: digits}
model: {name: net:build}
batch: {global: 60}
optim: {lr: 0.1}
train: {steps: 3}
"""
BROKEN = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, images):
        answer = 6 * 7
        raise ValueError("broken here")

def build():
    return Net()
"""
WHOLE = BROKEN.replace('raise ValueError("broken here")', "return self.layer(images.flatten(1))")


@pytest.fixture
def debug(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(program, typed="", when="(Pdb)"):
        """Run on a terminal of its own; type `typed` as soon as it shows `when`."""
        (tmp_path / "debug.yaml").write_text(CONFIG)
        (tmp_path / "net.py").write_text(program)
        ours, theirs = pty.openpty()
        argv = [sys.executable, "-m", "hpctrain", "run", "debug.yaml", "--debug"]
        running = subprocess.Popen(
            argv,
            cwd=tmp_path,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - Ctrl-C needs a terminal that it owns
        )
        os.close(theirs)
        shown, deadline, told = "", time.monotonic() + 60, False
        while time.monotonic() < deadline:
            try:
                shown += os.read(ours, 4096).decode(errors="replace")
            except OSError:  # the terminal's other end is closed
                break
            if typed and not told and when in shown:
                os.write(ours, typed.encode())
                told = True
        os.close(ours)
        return running.wait(30), shown

    return call


def test_an_error_opens_the_debugger_where_it_was_raised(debug):
    code, shown = debug(BROKEN, "p 'answer', answer\nq\n")
    assert code == 4
    assert "ValueError: broken here" in shown
    assert "('answer', 42)" in shown


def test_a_whole_model_trains_in_this_process(debug):
    code, shown = debug(WHOLE)
    assert code == 0, shown
    assert "completed: step 3/3" in shown
    assert "(Pdb)" not in shown


def test_an_interrupt_from_the_terminal_ends_the_rank(debug):
    endless = WHOLE.replace(
        "return self.layer", "print('here', flush=True); __import__('time').sleep(60)\n        return self.layer"
    )
    code, shown = debug(endless, "\x03", when="here")
    assert code == 4
    assert "KeyboardInterrupt" in shown
