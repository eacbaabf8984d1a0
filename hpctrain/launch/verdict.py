"""How an attempt ended, where no rank has said so or could not know: from exit codes, signals and srun's words."""

import re
import signal
from typing import Any, NamedTuple

import msgspec

from hpctrain.rundir import RunDir, publish, publish_first, read_json

_CANCELLED = re.compile(r"CANCELLED AT \S+ DUE TO ([A-Z ]+)")
_FAILED_TASK = re.compile(r"^srun: error: ([^:\s]+): tasks? ([^:]+): (.*)$", re.MULTILINE)
_LOST_NODE = re.compile(r"^srun: error: Node failure on (\S+)", re.MULTILINE)
_EXITED = re.compile(r"Exited with exit code (\d+)")
_OUT_OF_MEMORY = re.compile(r"Detected \d+ oom[-_]kill event|Some of .* (?:have been|was) OOM Killed", re.IGNORECASE)
_ENDINGS = {
    "PREEMPTION": "preempted",
    "JOB REQUEUE": "preempted",
    "TIME LIMIT": "time_limit",
    "NODE FAILURE": "node_failure",
}
_ECHOES = {"error", "rendezvous_failed"}
"""Causes that a rank may name because another one, or its node, has gone."""


class Said(NamedTuple):
    """What Slurm has said of a step in `launch.log`."""

    ending: str | None = None
    """Cause for which Slurm itself ended it; None for scancel, or where it did not."""
    out_of_memory: bool = False
    lost_node: str | None = None
    host: str | None = None
    """Of the first task that failed."""
    tasks: str = ""
    """Numbers of the first tasks that failed, as srun writes them."""
    how: str = ""
    """How these ended, such as `Killed`."""

    @property
    def rank(self) -> int | None:
        """Number of the first task that failed, if it was one."""
        return int(self.tasks) if self.tasks.isdigit() else None

    @property
    def code(self) -> int | None:
        """Exit code of that task; None where a signal ended it."""
        match = _EXITED.match(self.how)
        return int(match[1]) if match else None


def said(run: RunDir, number: int) -> Said:
    """Read what Slurm said of an attempt.

    srun's own exit code is the highest of all tasks, those it ended itself included: a rank that exits 1 makes it 143.
    """
    try:
        text = run.launch_log(number).read_bytes().decode(errors="replace")
    except OSError:
        return Said()
    cancelled, task, lost = _CANCELLED.search(text), _FAILED_TASK.search(text), _LOST_NODE.search(text)
    words = cancelled[1] if cancelled else ""
    return Said(
        ending=next((cause for sign, cause in _ENDINGS.items() if words.startswith(sign)), None),
        out_of_memory=_OUT_OF_MEMORY.search(text) is not None or (task is not None and "Out Of Memory" in task[3]),
        lost_node=lost[1] if lost else None,
        host=task[1] if task else None,
        tasks=task[2] if task else "",
        how=task[3] if task else "",
    )


def on_slurm(run: RunDir, number: int, code: int, *, ending: bool, is_command: bool, is_task_rank: bool) -> None:
    """Write the outcome of an attempt whose ranks wrote none, or mend the cause that a rank could not know.

    Args:
        run: the run directory.
        number: of the attempt.
        code: exit code of srun.
        ending: Slurm is taking the job away: scancel, preemption, time limit, requeue or a lost node.
        is_command: the ranks ran the user's own program, which writes no outcome.
        is_task_rank: tasks of the step are the ranks, and no launcher's relays.
    """
    heard = said(run, number)
    record = _unsaid(heard, code, ending=ending, is_command=is_command, is_task_rank=is_task_rank)
    if publish_first(run.outcome(number), msgspec.json.encode(record)):
        return
    written = read_json(run.outcome(number))
    cause, by_signal = written.get("cause"), bool(heard.how) and heard.code is None
    if written.get("verdict") == "completed" or cause is None:
        return
    if heard.ending == "node_failure" and cause in {*_ECHOES, "preempted", "rank_killed"}:
        _restate(run, number, written, {"cause": "node_failure", "host": heard.lost_node})
    elif ending and cause in {*_ECHOES, "preempted"}:
        if heard.ending or cause == "preempted":
            _restate(run, number, written, {"cause": heard.ending or "cancelled"})
    elif heard.out_of_memory and cause in {*_ECHOES, "rank_killed"}:
        _restate(run, number, written, {**_task(heard, is_task_rank=is_task_rank), "cause": "out_of_memory"})
    elif by_signal and (cause in _ECHOES or written.get("echo")):
        _restate(run, number, written, {**_task(heard, is_task_rank=is_task_rank), "cause": "rank_killed"})


def _restate(run: RunDir, number: int, written: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put the cause in the place of what a rank took for it; what that rank said stays as `echoed`."""
    cause = changes["cause"]
    if cause == written.get("cause") and "echo" not in written and "message" not in changes:
        return
    if "message" in changes:
        changes = {**changes, "echoed": written.get("message", "")}
    if cause in {"node_failure", "rank_killed", "out_of_memory"}:
        written = {key: value for key, value in written.items() if key not in {"rank", "host", "echo"}}
    changes = {key: value for key, value in changes.items() if value is not None}
    publish(run.outcome(number), msgspec.json.encode(written | changes))


def _task(heard: Said, *, is_task_rank: bool) -> dict[str, Any]:
    what = "rank" if is_task_rank and heard.rank is not None else "task"
    found: dict[str, Any] = {"message": f"{what} {heard.tasks} on {heard.host}: {heard.how}"} if heard.tasks else {}
    found |= {"host": heard.host} if heard.host else {}
    return found | ({"rank": heard.rank} if what == "rank" and heard.rank is not None else {})


def _unsaid(heard: Said, code: int, *, ending: bool, is_command: bool, is_task_rank: bool) -> dict[str, Any]:
    """Say how an attempt ended of which no rank has left an outcome."""
    if ending or heard.ending == "node_failure":
        return _taken_away(heard, code)
    task = _task(heard, is_task_rank=is_task_rank)
    who = task["message"].partition(":")[0] if task else "a rank"
    place = {key: value for key, value in task.items() if key != "message"}
    if code == 0 and is_command:
        return {"verdict": "completed"}
    if is_command and code == 143 and (not heard.how or heard.code == 143 or heard.how.startswith("Terminated")):
        return _record("stopped", "preempted", code, "the ranks were told to stop")
    if heard.out_of_memory:
        found = _record("failed", "out_of_memory", code, f"{who} was killed because memory ran out")
    elif heard.code is not None and heard.code <= 128:
        found = _record("failed", "error", heard.code, f"{who} ended with exit code {heard.code}")
    elif code > 128:
        found = _record("failed", "rank_killed", code, f"{who} was killed: {heard.how or f'exit code {code}'}")
    else:
        found = _record("failed", "error", code, f"the ranks ended with exit code {code} and no outcome")
    return found | place


def _taken_away(heard: Said, code: int) -> dict[str, Any]:
    """Say how an attempt ended that Slurm ended."""
    if heard.ending is None:
        return _record("stopped", "cancelled", code, "the job was cancelled")
    if heard.ending == "preempted":
        return _record("stopped", "preempted", code, "Slurm took the job's nodes back (preempted or requeued)")
    words = f"Slurm ended the job: {heard.ending}" + (f" of {heard.lost_node}" if heard.lost_node else "")
    return _record("failed", heard.ending, code, words) | ({"host": heard.lost_node} if heard.lost_node else {})


def cut_off(run: RunDir, number: int) -> None:
    """Give an outcome to an attempt that ended together with the script, or supervisor, that should have judged it."""
    heard, begin = said(run, number), read_json(run.begin(number))
    hosts = begin.get("hosts") or [None]
    cause = heard.ending or "node_failure"
    record = _record("failed", cause, None, "it was cut off together with what should have judged it")
    if cause == "node_failure":
        record["host"] = heard.lost_node or hosts[0]  # the first node is the batch script's
    record = {key: value for key, value in record.items() if value is not None}
    if publish_first(run.outcome(number), msgspec.json.encode(record)):
        return
    written = read_json(run.outcome(number))
    # The error of a step that never ended is that of the ranks which were left.
    step_ended = run.exit_code(number).exists() or not run.launch_log(number).exists()
    if written.get("cause") in {*_ECHOES, "rank_killed"} and not step_ended:
        _restate(run, number, written, {"cause": cause, "host": record.get("host")})
    elif written.get("cause") == "preempted" and heard.ending:
        _restate(run, number, written, {"cause": heard.ending})


def of_local(code: int, *, is_command: bool, rank: int, host: str, out_of_memory: bool = False) -> dict[str, Any]:
    """Work out the outcome of a local attempt whose ranks wrote none, from the first exit code that was not 0.

    Args:
        code: as of `subprocess`: negative for a signal.
        is_command: the ranks ran the user's own program, which writes no outcome.
        rank: the one that ended so.
        host: this machine.
        out_of_memory: the kernel has killed something of ours meanwhile because memory ran out.
    """
    who = {"rank": rank, "host": host}
    if code == 0:
        text = f"rank {rank} ended with exit code 0 before the run had an outcome"
        return {"verdict": "completed"} if is_command else _record("failed", "error", code, text) | who
    if code < 0:
        name = signal.Signals(-code).name
        if out_of_memory and -code == signal.SIGKILL:
            text = f"rank {rank} was killed because memory ran out"
            return _record("failed", "out_of_memory", 128 - code, text) | who
        cause = "preempted" if is_command and -code == signal.SIGTERM else "rank_killed"
        return _record("failed", cause, 128 - code, f"rank {rank} was killed by {name}") | who
    return _record("failed", "error", code, f"rank {rank} ended with exit code {code}") | who


def judge_local(run: RunDir, number: int, outcome: dict[str, Any]) -> None:
    """Publish an outcome of `of_local`; a rank's own stays, unless it is the echo of a killed one."""
    if publish_first(run.outcome(number), msgspec.json.encode(outcome)):
        return
    written = read_json(run.outcome(number))
    killed = outcome.get("cause") in {"rank_killed", "out_of_memory"}
    if killed and (written.get("cause") in _ECHOES or written.get("echo")) and written.get("rank") != outcome["rank"]:
        publish(run.outcome(number), msgspec.json.encode({**outcome, "echoed": written.get("message", "")}))


def _record(verdict: str, cause: str, code: int | None, message: str) -> dict[str, Any]:
    found = {"verdict": verdict, "cause": cause, "exit_code": code, "message": message}
    return {key: value for key, value in found.items() if value is not None}
