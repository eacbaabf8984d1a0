"""One owner per run directory: the job, or the supervisor, that may run its attempts.

`owners/N.json` is made by a link, which only one can make; the highest number counts. Whoever finds that the newest
owner is gone claims the next number, and of two at once one does. Nothing is ever deleted, so there is no moment at
which a claim could hit the record of a third. The requeues of a job keep its claim.
"""

import os
import platform
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from hpctrain.errors import ClusterError, OwnedError, UsageError
from hpctrain.launch import slurm, states
from hpctrain.processes import is_alive, start_time
from hpctrain.rundir import RunDir, publish, publish_first, read_json

_ENDING_S = 30.0  # between a job's last outcome and its verdict
_LOOK_S = 0.2

HANDED_OVER = "HPCTRAIN_OWNER"
"""Environment variable of a supervisor that takes over from the command that started it: the number of its claim."""


def of_process() -> dict[str, Any]:
    """Return the record of this process as an owner."""
    pid = os.getpid()
    return {
        "scheduler": "local",
        "job_id": f"local-{pid}",
        "host": platform.node(),
        "pid": pid,
        "pid_start": start_time(pid),
        "since": time.time(),
    }


def of_job(job_id: str, sandbox: str) -> dict[str, Any]:
    """Return the record of a Slurm job as an owner; `sandbox` as `slurm.sandbox` gives it."""
    return {"scheduler": "slurm", "job_id": job_id, "sandbox": sandbox, "since": time.time()}


def newest(run: RunDir) -> tuple[int, dict[str, Any]]:
    """Return the number and record of the newest owner; 0 and nothing if there never was one."""
    try:
        numbers = [int(path.stem) for path in run.owners.iterdir() if path.suffix == ".json" and path.stem.isdigit()]
    except OSError:
        return 0, {}
    number = max(numbers, default=0)
    return number, read_json(run.owner(number)) if number else {}


def claim(run: RunDir, me: Mapping[str, Any], *, handed_over: int | None = None) -> int:
    """Own a run directory; return the number of the claim, for `release`.

    Args:
        run: the run directory.
        me: `of_process()` or `of_job()`.
        handed_over: number of the claim of whoever started this process in order to hand the run over.

    Raises:
        OwnedError: somebody else owns it; nothing was written then.
        UsageError: the run directory cannot be written.
    """
    while True:
        number, holder = newest(run)
        if holder and not holder.get("released"):
            if _is_same(holder, me):
                return number
            if number != handed_over:
                refuse_owned(run)
        try:
            run.owners.mkdir(mode=0o700, exist_ok=True)
            if publish_first(run.owner(number + 1), msgspec.json.encode(me)):
                return number + 1
        except OSError as error:
            raise UsageError(f"{run.owners}: {error.strerror}", "make room, or look at its permissions") from None


def refuse_owned(run: RunDir) -> None:
    """Return when a run is nobody's; an owner that has one more line to write is waited for.

    Raises:
        OwnedError: somebody owns it.
    """
    deadline = time.monotonic() + _ENDING_S
    while why := why_alive(holder := newest(run)[1]):
        if time.monotonic() > deadline or not _is_about_to_end(run, holder):
            raise _owned(run, holder, why)
        time.sleep(_LOOK_S)


def release(run: RunDir, number: int) -> None:
    """Give a claim back, so that the next owner need not ask whether this one is gone."""
    record = read_json(run.owner(number))
    if record:
        publish(run.owner(number), msgspec.json.encode(record | {"released": time.time()}))


def why_alive(holder: Mapping[str, Any]) -> str:
    """Say in a few words why an owner must be taken for alive; '' if it is gone."""
    if not holder or holder.get("released"):
        return ""
    if holder.get("scheduler") == "slurm":
        return _why_job_alive(holder)
    host = str(holder.get("host", ""))
    if host != platform.node():
        return f"a process of {host}; whether it still runs can be seen only there"
    return "a process of this machine" if is_alive(int(holder.get("pid", 0)), holder.get("pid_start")) else ""


def _why_job_alive(holder: Mapping[str, Any]) -> str:
    job_id, sandbox = str(holder.get("job_id", "")), str(holder.get("sandbox", ""))
    if sandbox != slurm.sandbox():
        if sandbox and not os.path.exists(sandbox):  # noqa: PTH110 - a Path raises where it may not look
            return ""  # that private Slurm is gone, and its jobs with it
        return f"a job of another Slurm{f' ({sandbox})' if sandbox else ''}, which cannot be asked from here"
    try:
        job = slurm.jobs([job_id]).get(job_id)
    except ClusterError as error:
        return f"whether that job still runs cannot be asked: {error.message.splitlines()[0]}"
    return job.state if job is not None and states.our_state(job.state) not in states.FINAL else ""


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    keys = ("scheduler", "job_id", "sandbox", "host", "pid", "pid_start")
    return all(one.get(key) == other.get(key) for key in keys)


def _is_about_to_end(run: RunDir, holder: Mapping[str, Any]) -> bool:
    """Say whether the owner's newest attempt has ended for good, or is being judged at this moment."""
    numbers = run.attempt_numbers()
    if not numbers or read_json(run.begin(numbers[-1])).get("job_id") != holder.get("job_id"):
        return False
    verdict = read_json(run.verdict(numbers[-1]))
    return run.outcome(numbers[-1]).exists() if not verdict else not verdict.get("again")


def _owned(run: RunDir, holder: Mapping[str, Any], why: str) -> OwnedError:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder.get("since") or 0)))
    is_job = holder.get("scheduler") == "slurm"
    who = f"job {holder.get('job_id')}" if is_job else f"process {holder.get('pid')} on {holder.get('host')}"
    return OwnedError(
        f"{run.path} belongs to {who} since {since} ({why}); nothing was changed",
        f"hpctrain status {run.path} shows it, hpctrain cancel {run.path} ends it; then try again",
    )
