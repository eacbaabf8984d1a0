"""How a rank ends after an error, in a process of its own: it ends by `os._exit` or by a signal."""

import signal
import subprocess
import sys

import pytest

LOST_A_PEER = """
import os, signal, sys
from hpctrain.train.leave import leave
from hpctrain.train.stop import Stop
Stop().install()
os.kill(os.getpid(), int(sys.argv[1]))
leave(RuntimeError("[..] Connection closed by peer [127.0.0.1]:1"), None, 0, None, debug=False)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_was_told_to_end_before_it_saw_its_peer_gone_does_not_wait_to_be_told_again(number):
    argv = [sys.executable, "-c", LOST_A_PEER, str(int(number))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == -number, done.stderr
    assert "lost another rank" in done.stderr
