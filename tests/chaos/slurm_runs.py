"""Runs on the sandbox Slurm that are held at an exact step while something is done to the cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hpctrain.rundir import RunDir, read_json
from tests.chaos import oracle
from tests.chaos.runs import Chaos
from tests.cluster.conftest import Cluster

T = TypeVar("T")
FINAL = {"COMPLETED", "FAILED", "CANCELLED"}
_OVER_S = 240


def until(condition: Callable[[], T | None], what: Callable[[], str], seconds: float = _OVER_S) -> T:
    """Wait for something that must come true; `what` says more where it does not."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain\n{what()}"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Job:
    """A submitted run."""

    cluster: Cluster
    project: Chaos
    run: RunDir
    job_id: str

    def slurm(self, *argv: str) -> str:
        """Run one of Slurm's clients, which must succeed."""
        done = self.cluster.run(argv)
        assert done.returncode == 0, (argv, done.stderr)
        return done.stdout

    def state_in_slurm(self) -> str:
        """Return the job's state as squeue has it; empty once it is gone."""
        return self.cluster.run(["squeue", "-h", "-t", "all", "-j", self.job_id, "-o", "%T"]).stdout.strip()

    def row(self) -> dict[str, Any]:
        """Return what `hpctrain status --json` says."""
        done = self.cluster.run([sys.executable, "-m", "hpctrain", "status", "--json", str(self.run.path)])
        assert done.returncode == 0, done.stderr
        [row] = json.loads(done.stdout)
        return dict(row)

    def hosts(self, attempt: int) -> list[str]:
        """Return the nodes of an attempt, that of its batch script first."""
        return list(read_json(self.run.begin(attempt)).get("hosts", []))

    def await_marker(self, name: str) -> None:
        """Wait until something was injected."""
        until(lambda: (self.project.folder / name).exists() or self._release(), self.report)

    def let_go(self, attempt: int) -> None:
        """Let the ranks of an attempt go on that are held."""
        (self.project.folder / f"go-{attempt}").touch()

    def await_attempt(self, number: int) -> None:
        """Wait until an attempt trains; it has shut out all older ones by then."""
        paths = self.run.samples(number, 0), self.run.outcome(number)
        until(lambda: any(path.exists() for path in paths) or self._release(), self.report)

    def _release(self) -> bool:
        """Do as an operator does where a slurmd refused a launch, and Slurm holds the job: seen after lost nodes."""
        if "launch failed" in self.cluster.run(["squeue", "-h", "-j", self.job_id, "-o", "%r"]).stdout:
            self.cluster.run(["scontrol", "release", self.job_id])
        return False

    def await_outcome(self, attempt: int) -> dict[str, Any]:
        """Wait for the end of an attempt."""
        return until(lambda: read_json(self.run.outcome(attempt)), self.report)

    def ended(self, *states: str) -> dict[str, Any]:
        """Wait until the run is over, in one of these states."""
        row = until(lambda: found if (found := self.row())["state"] in FINAL else None, self.report)
        assert row["state"] in states, (row, self.report())
        return row

    def report(self) -> str:
        """Return all that helps to understand a failure."""
        texts = [path.read_text() for path in self.run.path.glob("slurm-*.out")]
        queue = self.cluster.run(["squeue"]).stdout + self.cluster.run(["sinfo", "-N"]).stdout
        return "\n".join([queue, oracle.logs(self.run), *texts, str(sorted(self.project.done()))])

    def processes(self, attempt: int) -> list[int]:
        """Return the ids, as seen here, of the processes of an attempt's ranks."""
        wanted = {f"HPCTRAIN_RUN={self.run.path}".encode(), f"HPCTRAIN_ATTEMPT={attempt}".encode()}
        return [
            pid
            for pid in _pids()
            if wanted <= set(_read(pid, "environ")) and _read(pid, "cmdline")[1:3] == [b"-m", b"hpctrain.train"]
        ]


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _read(pid: int, name: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")
    except OSError:
        return []


def parent(pid: int) -> int:
    """Return the parent of a process, whatever namespace it is in."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def batch_scripts(job: Job) -> dict[bool, list[int]]:
    """Return the ids of the shells that run the batch script; False: of the first run, True: after a requeue."""
    mine = f"SLURM_JOB_ID={job.job_id}".encode()
    conf = f"SLURM_CONF={job.cluster.sandbox.slurm_conf}".encode()
    found = [
        pid for pid in _pids()
        if {mine, conf} <= set(_read(pid, "environ")) and any(b"slurm_script" in word for word in _read(pid, "cmdline"))
    ]  # fmt: skip
    again = {pid: any(word.startswith(b"SLURM_RESTART_COUNT=") for word in _read(pid, "environ")) for pid in found}
    return {which: sorted(pid for pid in found if again[pid] is which) for which in (False, True)}


class Controller:
    """The sandbox's slurmctld."""

    def __init__(self, cluster: Cluster) -> None:
        self._conf = str(cluster.sandbox.slurm_conf)
        self._holder = cluster.sandbox.holder_pid

    def kill(self) -> None:
        """End it by kill -9."""
        [pid] = self._pids()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not self._pids(), lambda: "slurmctld is still there", 30)

    def start(self) -> None:
        """Start it where it ran."""
        user: Sequence[str] = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        own = [
            "--net",
            "--uts",
            "--mount",
            "--ipc",
            f"--pid=/proc/{self._holder}/ns/pid_for_children",
        ]  # it ends with them
        argv = ["nsenter", "--target", str(self._holder), *user, *own]
        env = {**os.environ, "SLURM_CONF": self._conf, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        subprocess.run([*argv, "slurmctld", "-f", self._conf], env=env, check=True, timeout=30)

    def _pids(self) -> list[int]:
        mine = self._conf.encode()
        return [
            pid for pid in _pids()
            if (words := _read(pid, "cmdline")) and words[0].endswith(b"slurmctld") and mine in words
        ]  # fmt: skip
