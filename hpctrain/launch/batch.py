"""What the batch script asks before and after an attempt: `python -m hpctrain.launch.batch begin|end|fail RUN ...`.

The script knows the environment of the job and holds the ranks; what that means is judged here, by the same ledger as
the local supervisor's. Exit codes: 0 go on, or completed; 3 another job owns the run; 4 failed, or not to be tried
again; 75 requeued.
"""

import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hpctrain.config.load import load
from hpctrain.config.schema import Config
from hpctrain.errors import ClusterError, HpctrainError, UsageError
from hpctrain.launch import ledger, owner, requeue, slurm, verdict
from hpctrain.launch.render import RELAYED
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir, publish_first, read_json


def main(argv: Sequence[str]) -> int:
    """Answer one question of the script; return its exit code."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):  # Slurm ends the job that requeues itself
        signal.signal(number, signal.SIG_IGN)
    question, path, *rest = argv
    try:
        run = RunDir.open(Path(path))
        if question == "begin":
            return _begin(run, hosts=rest)
        if question == "fail":
            return _fail(run, message=rest[0], hosts=rest[1:])
        return _end(run, number=int(rest[0]), code=int(rest[1]))
    except HpctrainError as error:
        _say(str(error))
        return error.exit_code if error.exit_code == 3 else 4


def _begin(run: RunDir, hosts: Sequence[str]) -> int:
    """Claim the run and its next attempt, whose number goes to standard output; `completed` if there is nothing to do.

    A job that was requeued by Slurm itself, because the node of its script was lost, is judged only now.
    """
    job_id, claim = _claim(run)
    for number in run.attempt_numbers():
        if not run.verdict(number).exists():
            verdict.cut_off(run, number)
    last, budgets = ledger.last_decision(run, job_id), load(run.config).config.restart
    mine = [entry for entry in ledger.read(run) if entry.job_id == job_id]
    if mine and not last:
        decision = ledger.decide(mine, budgets)
        ledger.write(run, mine[-1].attempt, decision)
        last = msgspec.to_builtins(decision)
    # One that was cancelled comes back only if somebody, or a requeue that looked like it, has brought it back.
    if last and not last.get("again") and last.get("cause") != "cancelled":
        if last.get("exit_code") == 0:
            print("completed")
            return 0
        _give_up(run, job_id, claim, str(last.get("reason")))
        return 4
    print(_attempt(run, job_id, hosts))
    return 0


def _claim(run: RunDir) -> tuple[str, int]:
    job_id = os.environ.get("SLURM_JOB_ID", "")
    if not job_id:
        raise UsageError("this is a batch script", "start it with sbatch")
    return job_id, owner.claim(run, owner.of_job(job_id, slurm.sandbox()))


def _attempt(run: RunDir, job_id: str, hosts: Sequence[str]) -> int:
    """Make the next attempt's directory."""
    try:
        return run.begin_attempt(
            {
                "job_id": job_id,
                "scheduler": "slurm",
                "cluster": os.environ.get("SLURM_CLUSTER_NAME", ""),
                "sandbox": slurm.sandbox(),
                "hosts": list(hosts),
                "started": time.time(),
            }
        )
    except OSError as error:
        raise UsageError(f"cannot write to {run.attempts}: {error.strerror}") from None


def _fail(run: RunDir, message: str, hosts: Sequence[str]) -> int:
    """Record what went wrong in the script before there was an attempt, as one that failed."""
    job_id, claim = _claim(run)
    number = _attempt(run, job_id, hosts)
    outcome = {"verdict": "failed", "cause": "error", "message": message, "host": platform.node()}
    publish_first(run.outcome(number), msgspec.json.encode(outcome))
    ledger.write(run, number, ledger.Decision(again=False, exit_code=4, cause="error", reason=message))
    owner.release(run, claim)
    return 4


def _end(run: RunDir, number: int, code: int) -> int:
    """Judge an attempt, and put the job back into the queue if there is to be another.

    Not where a newer one has begun: Slurm gave this node up and started the job again, under the same id, while the
    script still ran. What it asked Slurm now would hit the newer attempt.
    """
    if _is_outdated(run, number):
        _say(f"attempt {number} is outdated by a newer one: it is not judged here")
        return 4
    job_id, config = os.environ["SLURM_JOB_ID"], load(run.config).config
    launcher = msgspec.json.decode(run.plan.read_bytes(), type=Plan).launcher
    state = _state(job_id)
    ending = state not in {"", "RUNNING"}  # Slurm is taking the job away
    verdict.on_slurm(
        run,
        number,
        code,
        ending=ending,
        is_command=config.command is not None,
        is_task_rank=launcher not in RELAYED,
    )
    decision = ledger.conclude(run, config.restart)
    written = read_json(run.outcome(number))
    cause = f" ({written['cause']})" if written.get("cause") else ""
    _say(
        f"attempt {number}: {written.get('verdict') or 'no verdict'}{cause}, exit code of srun {code}; "
        f"logs in {run.attempt(number)}"
    )
    claim, _ = owner.newest(run)
    if not decision.again:
        if decision.exit_code == 0:
            owner.release(run, claim)
        else:
            _give_up(run, job_id, claim, decision.reason)
        return decision.exit_code
    return _once_more(run, number, claim, config, decision, ending=ending)


def _once_more(run: RunDir, number: int, claim: int, config: Config, decision: ledger.Decision, *, ending: bool) -> int:
    _say(decision.reason)
    job_id = os.environ["SLURM_JOB_ID"]
    refused = requeue.requeue(job_id, lambda: _is_outdated(run, number))
    if refused and _is_outdated(run, number):
        return 4
    if refused and not ending:
        _give_up(run, job_id, claim, f"Slurm refused to requeue job {job_id} ({refused})")
        return 4
    # A preempted job is requeued by Slurm itself, which refuses ours, unless the site cancels what it preempts.
    if decision.exclude:
        requeue.exclude(run, job_id, config.slurm.exclude, decision.exclude)
    return 75


def _is_outdated(run: RunDir, number: int) -> bool:
    return run.attempt_numbers()[-1] > number


def _give_up(run: RunDir, job_id: str, claim: int, reason: str) -> None:
    _say(f"{reason}\n  hpctrain why {run.path} says more; hpctrain resume {run.path} goes on from the last checkpoint")
    requeue.comment(job_id, reason)
    owner.release(run, claim)


def _state(job_id: str) -> str:
    try:
        job = slurm.jobs([job_id]).get(job_id)
    except ClusterError:  # then it is for the requeue to wait for it
        return ""
    return job.state if job is not None else ""


def _say(text: str) -> None:
    print(f"hpctrain: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
