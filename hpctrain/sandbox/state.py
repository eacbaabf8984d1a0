"""Which sandbox is up: one small file, cheap enough to read at the start of every command."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A sandbox that `up` has started."""

    root: Path
    holder_pid: int  # the process to kill: everything else ends with it
    holder_start: int  # when it started, in clock ticks since boot: tells it from a later process of the same number
    pid_namespace: int  # where `holder_pid` counts: a job on a sandbox's node lives in another one
    nodes: int
    gpus_per_node: int
    bin: Path  # Slurm's clients for use from outside; goes first on PATH
    slurm_conf: Path

    def is_running(self) -> bool:
        """Say whether the holder lives, as far as this process namespace can tell."""
        return self.pid_namespace == own_pid_namespace() and self.holder_start == start_ticks(self.holder_pid)


def current() -> Sandbox | None:
    """Return the sandbox that is up, or None. Reads two small files, changes nothing."""
    sandbox = load()
    return sandbox if sandbox is not None and sandbox.is_running() else None


def load() -> Sandbox | None:
    """Return what the state file says, be it stale or not; None if there is none that can be read."""
    try:
        fields: dict[str, Any] = json.loads(state_file().read_text())
        return Sandbox(**fields | {key: Path(fields[key]) for key in ("root", "bin", "slurm_conf")})
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):  # RuntimeError: this user has no home at all
        return None


def state_file() -> Path:
    """Return the path of the state file, below `$XDG_STATE_HOME`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state", "hpctrain", "sandbox.json")


def own_pid_namespace() -> int:
    """Return the inode of this process's pid namespace."""
    return Path("/proc/self/ns/pid").stat().st_ino


def start_ticks(pid: int) -> int | None:
    """Return when process `pid` started, or None if it is gone or a zombie (proc(5), /proc/pid/stat)."""
    try:  # the name, in parentheses, may itself hold blanks and parentheses
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(fields[18])
