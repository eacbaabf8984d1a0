"""The wrapper around torchrun, with a stand-in for torchrun: what it does with signals is its own business."""

import signal
import subprocess
import sys
import time

RANK = """
import os, pathlib, signal, sys, time
log = pathlib.Path(sys.argv[1])
caught = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda n, f: caught.append(signal.Signals(n).name))
log.write_text("ready")
while len(caught) < 2:
    time.sleep(0.01)
time.sleep(0.3)
log.write_text(" ".join(sorted(caught)))
"""
AGENT = """
import pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[1])
ranks = [subprocess.Popen([sys.executable, folder / "rank.py", folder / f"rank{n}"]) for n in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""


def test_each_signal_reaches_each_rank_and_the_agent_lives_on(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "agent.py").write_text(AGENT)
    agent = [sys.executable, str(tmp_path / "agent.py"), str(tmp_path)]
    program = f"import sys\nfrom hpctrain.train.relay import _supervised\nsys.exit(_supervised({agent!r}))"
    wrapper = subprocess.Popen([sys.executable, "-c", program])
    logs = [tmp_path / f"rank{n}" for n in range(2)]
    try:
        until(lambda: all(log.exists() and log.read_text() == "ready" for log in logs))
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2):  # the second USR2 is not passed on
            wrapper.send_signal(number)
        assert wrapper.wait(20) == 0
    finally:
        wrapper.kill()
        wrapper.wait()
    assert [log.read_text() for log in logs] == ["SIGTERM SIGUSR2"] * 2


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_killed_agent_is_told_by_its_signal():
    program = (
        "import sys\nfrom hpctrain.train.relay import _supervised\n"
        "sys.exit(_supervised([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)']))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 137
