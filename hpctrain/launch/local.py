"""The local supervisor: runs a frozen run directory as processes of this machine, by the rules of the batch script.

`hpctrain run` calls `Supervisor` itself; `hpctrain submit --scheduler local` starts it in the background as
`python -m hpctrain.launch.local RUN`. Either way the ranks are `python -m hpctrain.train RUN`, as on Slurm.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from hpctrain.config.load import load
from hpctrain.config.schema import Config, Restart
from hpctrain.errors import HpctrainError, JobError
from hpctrain.launch import ledger, memory, owner, verdict
from hpctrain.launch.follow import first_cause
from hpctrain.launch.forks import Forked, ForkServer, server_for
from hpctrain.launch.render import absolute
from hpctrain.plan import Plan
from hpctrain.processes import adopt_orphans, end_children
from hpctrain.rundir import RunDir

_KILL_WAIT_S = 5.0  # what Slurm would give, more or less: a rank in the middle of its save needs some
_WATCH_S = 0.1
_RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Supervisor:
    """Runs the attempts of one run until it is completed, failed or told to stop."""

    def __init__(self, run: RunDir, config: Config, plan: Plan, server: ForkServer | None) -> None:
        self._run, self._config, self._plan, self._server = run, config, plan, server
        self._ranks: Sequence[subprocess.Popen[bytes] | Forked] = []
        self._told_s: float | None = None
        self._stop = False

    def run(self, watch: Callable[[int], None] | None = None) -> int:
        """Run all attempts; return the exit code of the last.

        Args:
            watch: called with the attempt's number a few times a second while the ranks run, to show what they do.

        Raises:
            OwnedError: another supervisor, or a job, owns the run directory.
        """
        claim = _claim(self._run)
        adopt_orphans()
        before = {number: signal.signal(number, self._relay) for number in _RELAYED}
        try:
            while True:
                decision = self._once(watch or (lambda _: None))
                if not decision.again:
                    return decision.exit_code
                print(f"hpctrain: {decision.reason}", file=sys.stderr)
        finally:
            end_children(_KILL_WAIT_S)
            owner.release(self._run, claim)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _once(self, watch: Callable[[int], None]) -> ledger.Decision:
        """Run the next attempt to its end, and judge it."""
        run, number = self._run, _begin(self._run)
        kills_before = memory.kills()
        rank, code = self._attempt(number, watch)
        outcome = verdict.of_local(
            code,
            is_command=self._config.command is not None,
            rank=rank,
            host=platform.node(),
            out_of_memory=memory.kills() > kills_before,
        )
        if self._stop and code:
            outcome = {"verdict": "stopped", "cause": "cancelled", "message": "it was told to stop", "rank": rank}
        verdict.judge_local(run, number, outcome)
        decision = ledger.conclude(run, self._config.restart)
        if self._stop and decision.again:
            decision = ledger.Decision(again=False, exit_code=4, cause="cancelled", reason="it was told to stop")
            ledger.write(run, number, decision)
        elif decision.exit_code == 4 and decision.reason != ledger.read(run)[-1].message:
            print(f"hpctrain: {decision.reason}", file=sys.stderr)
        return decision

    def _relay(self, number: int, _frame: object) -> None:
        """Pass a signal on; the second Ctrl-C or TERM ends the ranks at once."""
        if number != signal.SIGUSR2:
            again = self._told_s is not None and time.monotonic() - self._told_s > 0.5
            number = signal.SIGKILL if again else number
            self._told_s = self._told_s or time.monotonic()
            self._stop = True
        self._tell(number)

    def _tell(self, number: int) -> None:
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def _attempt(self, number: int, watch: Callable[[int], None]) -> tuple[int, int]:
        """Run one attempt; return the rank that failed first and its exit code, or 0 and 0."""
        if self._plan.launcher == "mpirun":  # one process, which starts the ranks and then looks after them
            envs = [environment(self._run, number, os.environ)]
        else:
            ranks = self._plan.ranks
            envs = [rank_environment(self._run, number, rank, ranks, os.environ) for rank in range(ranks)]
        log, server = self._run.launch_log(number), self._server
        log.touch()
        self._server = None  # it serves one attempt; the ranks of a restart import torch themselves
        self._ranks = (server and server.fork(self._run, log, envs, lambda: self._stop)) or self._start(log, envs)
        if self._stop:  # told to stop while the ranks were being started
            self._tell(signal.SIGTERM)
        try:
            return _first_failure(self._ranks, lambda: watch(number), self._is_over(number))
        finally:
            end_children(_KILL_WAIT_S)
            self._ranks = []
            watch(number)

    def _is_over(self, number: int) -> Callable[[], bool]:
        """Return what says whether a rank may end with 0: once rank 0 has written the outcome."""
        path = self._run.outcome(number)
        return lambda: self._config.command is not None or path.exists()

    def _start(self, log: Path, envs: Sequence[Mapping[str, str]]) -> list[subprocess.Popen[bytes]]:
        """Start each rank, or the relay of mpirun, as a process of its own."""
        module = "hpctrain.train.relay" if self._plan.launcher == "mpirun" else "hpctrain.train"
        with log.open("ab") as output:
            return [
                subprocess.Popen(
                    [_python(self._config), "-m", module, str(self._run.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._run.code,
                    env=env,
                    process_group=0,  # a Ctrl-C of the terminal reaches the supervisor alone, which relays it
                )
                for env in envs
            ]


def supervise(
    run: RunDir, config: Config, plan: Plan, server: ForkServer | None, watch: Callable[[int], None] | None = None
) -> int:
    """Run all attempts of a run; the arguments and what comes back are those of `Supervisor`.

    Raises:
        JobError: the run directory cannot be written, as on a full disk.
    """
    try:
        return Supervisor(run, config, plan, server).run(watch)
    except OSError as error:
        raise JobError(
            f"{error.filename or run.path}: {error.strerror}; how the attempt ended could not be written down",
            f"make room; hpctrain resume {run.path} goes on from the last checkpoint",
        ) from error


def rank_environment(run: RunDir, attempt: int, rank: int, ranks: int, env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of one local rank: torchrun's variables, and where the run is."""
    return {
        **environment(run, attempt, env),
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
    }


def environment(run: RunDir, attempt: int, env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of what the supervisor starts: where the run is, and whose child it is."""
    return {
        **env,
        "HPCTRAIN_RUN": str(run.path),
        "HPCTRAIN_ATTEMPT": str(attempt),
        "HPCTRAIN_HOSTS": platform.node(),
        "HPCTRAIN_SUPERVISOR": str(os.getpid()),
        "PYTHONPATH": os.pathsep.join([str(run.code), *filter(None, [env.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
    }


def debug(run: RunDir, config: Config) -> int:
    """Run the one rank of a debugging session on this terminal, without log files; return its exit code."""
    claim = _claim(run)
    number = _begin(run)
    env = rank_environment(run, number, 0, 1, os.environ) | {"HPCTRAIN_DEBUG": "1"}
    with subprocess.Popen([_python(config), "-m", "hpctrain.train", str(run.path)], cwd=run.code, env=env) as rank:
        # Ctrl-C is for the debugger and the rank; set only now, because the rank would inherit what is ignored
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = rank.wait()
    outcome = verdict.of_local(code, is_command=config.command is not None, rank=0, host=platform.node())
    verdict.judge_local(run, number, outcome)
    ledger.conclude(run, Restart(**dict.fromkeys(Restart.__struct_fields__, 0)))  # nobody restarts a debugger
    owner.release(run, claim)
    return 4 if code else 0


def _claim(run: RunDir) -> int:
    """Own the run, and give an outcome to what an earlier owner has left without one."""
    handed_over = os.environ.pop(owner.HANDED_OVER, "")
    claim = owner.claim(run, owner.of_process(), handed_over=int(handed_over) if handed_over else None)
    for number in run.attempt_numbers():
        if not run.verdict(number).exists():
            verdict.cut_off(run, number)
    return claim


def _begin(run: RunDir) -> int:
    """Make the next attempt's directory; return its number."""
    return run.begin_attempt({
        "scheduler": "local",
        "job_id": f"local-{os.getpid()}",
        "hosts": [platform.node()],
        "started": time.time(),
    })  # fmt: skip


def _python(config: Config) -> str:
    """Return the interpreter of the ranks, which start in another directory."""
    asked = config.env.python
    return sys.executable if asked is None else absolute(asked) if "/" in asked else asked


def _first_failure(
    ranks: Sequence[subprocess.Popen[bytes] | Forked], watch: Callable[[], None], is_over: Callable[[], bool]
) -> tuple[int, int]:
    """Wait until all ranks ended or one failed; that one and its code come back at once, as `srun -K` does it.

    One that leaves with 0 too early has failed as well: the others would wait for it.

    Not by `os.pidfd_open`, which kernels before 5.3 lack, and interpreters that were built on old systems.
    """
    waiting = dict(enumerate(ranks))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        while True:
            for number, rank in list(waiting.items()):
                if (code := rank.poll()) is not None:
                    del waiting[number]
                    if code or not is_over():
                        return number, code
            if not waiting:
                return 0, 0
            signal.sigtimedwait({signal.SIGCHLD}, _WATCH_S)
            watch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> None:
    """Supervise the run directory given as the only argument."""
    run = RunDir.open(Path(sys.argv[1]))
    try:
        config = load(run.config).config
        plan = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
        code = supervise(run, config, plan, server_for(config, plan))
        if code:
            print(f"hpctrain: {first_cause(run, shown=-1)}", file=sys.stderr)
        sys.exit(code)
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
