"""Freeze a run directory, then hand it to Slurm or to the local supervisor."""

import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import hpctrain
from hpctrain import roots
from hpctrain.config.load import Loaded, dump
from hpctrain.errors import ClusterError, HpctrainError, OwnedError, UsageError
from hpctrain.launch import owner, slurm, snapshot
from hpctrain.launch.render import render
from hpctrain.plan import Plan
from hpctrain.processes import start_time
from hpctrain.rundir import RunDir, publish, read_json, sums_of


def freeze(loaded: Loaded, plan: Plan, *, argv: Sequence[str]) -> RunDir:
    """Make the run directory: config, plan, code, environment record and batch script. It never changes again.

    Raises:
        UsageError: the directory cannot be made, or the code cannot be copied; nothing is left of it then.
    """
    run = RunDir.create(loaded.config.runs, loaded.config.name)
    try:
        write(run, loaded, plan, argv=argv)
    except OSError as error:
        run.remove()
        raise UsageError(
            f"runs: cannot write to {run.path.parent}: {error.strerror or error}",
            "make room, or give another place: runs=DIR",
        ) from None
    except BaseException:
        run.remove()
        raise
    return run


def write(run: RunDir, loaded: Loaded, plan: Plan, *, argv: Sequence[str], code: bool = True) -> None:
    """Write what a run is frozen as into its directory; without `code` the snapshot that is there stays.

    Raises:
        UsageError: the code cannot be copied.
        OSError: the directory cannot be written.
    """
    config, project, before = loaded.config, Path.cwd(), read_json(run.env)
    hidden = before.get("left_out", [])
    if code:
        hidden = snapshot.take(config, project, run.code)
        if hidden:
            listed = ", ".join(hidden[:8]) + (f" and {len(hidden) - 8} more" if len(hidden) > 8 else "")
            print(
                f"hpctrain: not copied into the run, because their names look like secrets: {listed}", file=sys.stderr
            )
        publish(run.code_sums, os.fsencode(sums_of(run.code)))
    publish(run.config, dump(config).encode())
    publish(run.plan, msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
    sums = run.code_sums.read_bytes() if run.code_sums.exists() else b""  # an ejected run has no snapshot
    record = {
        "hpctrain": hpctrain.__version__,
        "python": sys.executable,
        "python_version": platform.python_version(),
        "host": platform.node(),
        "argv": list(argv),
        "cwd": str(project),
        "git": snapshot.revision(project) if code else before.get("git", {}),
        "code": hashlib.sha256(sums).hexdigest(),
        "left_out": hidden,
        "created": time.time(),
    }
    publish(run.env, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    publish(run.script, render(loaded, plan, run, python=sys.executable).encode())


def to_slurm(run: RunDir) -> str:
    """Queue the run; return its job id, which is recorded as soon as Slurm has given it.

    Raises:
        ClusterError: Slurm refused, and nothing is left of the run directory then; or it took the job, whose id the
            message gives, but that could not be recorded.
    """
    try:
        job_id = slurm.submit(run.script)
    except HpctrainError:
        run.remove()
        raise
    return record_slurm(run, job_id)


def record_slurm(run: RunDir, job_id: str, *, handed_over: int | None = None) -> str:
    """Write that a job owns the run, and job.json; return the job id.

    Args:
        run: the run directory.
        job_id: the job that Slurm has made of it.
        handed_over: number of this process's own claim on it.

    Raises:
        OwnedError: somebody else owns it.
        ClusterError: it cannot be written down.
    """
    try:
        owner.claim(run, owner.of_job(job_id, slurm.sandbox()), handed_over=handed_over)
        return _record(run, {"scheduler": "slurm", "job_id": job_id, "sandbox": slurm.sandbox()})
    except OwnedError:
        raise
    except (OSError, UsageError) as error:
        raise ClusterError(
            f"Slurm took the run as job {job_id}, but {run.job} cannot be written: {getattr(error, 'strerror', error)}",
            f"the job runs in {run.path}; scancel {job_id} ends it",
        ) from None


def to_background(run: RunDir, *, handed_over: int | None = None) -> str:
    """Start the local supervisor as a process of its own; return its job id, `local-PID`.

    Args:
        run: the run directory.
        handed_over: number of this process's claim on it, which the supervisor takes over.
    """
    inherited = {} if handed_over is None else {owner.HANDED_OVER: str(handed_over)}
    with (run.path / "supervisor.log").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "hpctrain.launch.local", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **inherited, "PYTHONPATH": os.pathsep.join([str(run.code), *_python_path()])},
            start_new_session=True,
        )
    return record_local(run, supervisor.pid)


def record_local(run: RunDir, pid: int) -> str:
    """Write job.json of a run under the local supervisor with process id `pid`."""
    job = {"scheduler": "local", "job_id": f"local-{pid}"}
    return _record(run, {**job, "pid": pid, "pid_start": start_time(pid), "host": platform.node()})


def _record(run: RunDir, job: dict[str, Any]) -> str:
    publish(run.job, msgspec.json.encode({**job, "submitted": time.time()}))
    roots.remember(run.path.parent)
    return str(job["job_id"])


def _python_path() -> list[str]:
    return [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
