"""End a run, on Slurm or on this machine."""

import os
import platform
import signal
import time
from collections.abc import Callable

import msgspec

from hpctrain.errors import ClusterError, UsageError
from hpctrain.launch import owner, slurm
from hpctrain.launch.status import FINAL, status
from hpctrain.processes import is_alive
from hpctrain.rundir import RunDir, publish, read_json

_WAIT_S = 60


def cancel(run: RunDir) -> str:
    """Cancel a run and wait until nothing of it runs any more; return a sentence about what was done.

    Raises:
        UsageError: it runs on another machine.
        ClusterError: it still runs after a minute.
    """
    row = status([run])[0]
    if row["state"] in FINAL:
        return f"{run.name} has ended already: {row['state']}"
    job, job_id = read_json(run.job), str(row["job_id"])
    # a run that was made here may be queued by hand later: then its job is Slurm's, whatever job.json says
    is_local = job_id.startswith("local-")
    holder = owner.newest(run)[1]
    known = holder if holder.get("job_id") == job_id else job
    if is_local and known.get("host") != platform.node():
        raise UsageError(f"{run.name} runs on {known.get('host')}, not here", f"type there: hpctrain cancel {run.path}")
    publish(run.job, msgspec.json.encode(job | {"cancelled": job_id}))
    if is_local:
        pid, started = int(known["pid"]), known.get("pid_start")
        if is_alive(pid, started):
            os.kill(pid, signal.SIGTERM)
        _await(run, lambda: not is_alive(pid, started))
    else:
        slurm.cancel(job_id)
        _await(run, lambda: status([run])[0]["state"] in FINAL)
    return f"{run.name} is cancelled"


def _await(run: RunDir, gone: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + _WAIT_S, 0.05
    while not gone():
        if time.monotonic() > deadline:
            raise ClusterError(f"{run.name} was told to end but still runs after {_WAIT_S} s", "hpctrain status")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
