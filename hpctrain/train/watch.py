"""Watches mpirun or horovodrun, and says what became of the ranks where they cannot."""

import math
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from hpctrain.dist.mpirun import Failure, first_failure
from hpctrain.plan import Plan
from hpctrain.processes import kill_tree
from hpctrain.rundir import publish, publish_first, read_json

_KEPT_LINES = 400
_LOOK_S = 1.0  # between two looks for an outcome: that is a file on a network file system


class Watch:
    """Shows what a launcher says, keeps the end of it, and ends a launcher that does not end by itself.

    Args:
        launcher: a process whose standard output is a pipe.
        outcome: file of the outcome that a rank writes when it fails.
        grace_s: how long a launcher may take to end the other ranks after one has failed. Those of MPICH and Intel MPI
            do not care for an exit code, and wait for all ranks.
    """

    def __init__(self, launcher: "subprocess.Popen[bytes]", outcome: Path, *, grace_s: float) -> None:
        self._launcher, self._outcome, self._grace_s = launcher, outcome, grace_s
        self._kept: list[bytes] = []
        self._lines = self._looked_at = 0
        self._looked_s = time.monotonic()
        self._deadline_s = math.inf
        if launcher.stdout is None:
            raise AssertionError("it is a pipe")
        self._reader = threading.Thread(target=self._read, args=(launcher.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
                self._kept.append(line)
                del self._kept[:-_KEPT_LINES]
                self._lines += 1

    def end_when_failed(self) -> None:
        """End the launcher if it takes too long to end after a failure. To be called often."""
        now = time.monotonic()
        if self._deadline_s == math.inf and self._has_failed(now):
            self._deadline_s = now + self._grace_s
        if now >= self._deadline_s:
            kill_tree(self._launcher.pid)

    def _has_failed(self, now: float) -> bool:
        if self._lines > self._looked_at:
            self._looked_at = self._lines
            if first_failure(self._text()) is not None:
                return True
        if now < self._looked_s + _LOOK_S:
            return False
        self._looked_s = now
        return read_json(self._outcome).get("verdict") == "failed"

    def words(self) -> str:
        """Return what the launcher has said, after it has ended."""
        self._reader.join(1)  # not longer: what the launcher has left behind may hold the pipe open
        return self._text()

    def _text(self) -> str:
        return b"".join(self._kept).decode(errors="replace")


def conclude(outcome: Path, plan: Plan, hosts: Sequence[str], failure: Failure) -> None:
    """Write the outcome that no rank could write, or mend one that was the echo of a killed rank.

    Args:
        outcome: its file.
        plan: the plan.
        hosts: names of the nodes, in the order of the ranks.
        failure: what the launcher said of the first rank that failed.
    """
    by_signal = failure.code > 128
    host = failure.host or (hosts[failure.rank // plan.ranks_per_node] if failure.rank is not None else None)
    who = "a rank" if failure.rank is None else f"rank {failure.rank}"
    who += f" on {host}" if host else ""
    how = f"was killed by signal {failure.code - 128}" if by_signal else f"ended with exit code {failure.code}"
    record = {
        "verdict": "failed",
        "cause": "rank_killed" if by_signal else "error",
        "exit_code": failure.code,
        "message": f"{who} {how}",
    }
    record |= {} if failure.rank is None else {"rank": failure.rank}
    record |= {} if host is None else {"host": host}
    if publish_first(outcome, msgspec.json.encode(record)):
        return
    written = read_json(outcome)
    if by_signal and written.get("cause") == "error" and written.get("rank") != failure.rank:
        publish(outcome, msgspec.json.encode(written | {"cause": "rank_killed"}))
