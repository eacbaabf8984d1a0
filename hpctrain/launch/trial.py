"""Perform a task with the ranks of a run, in a directory of which nothing stays."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import hpctrain
from hpctrain import task as tasks
from hpctrain.config.load import Loaded
from hpctrain.config.schema import Config, Restart
from hpctrain.errors import ConfigError, JobError
from hpctrain.launch import folds, ready, submit
from hpctrain.launch.follow import Follower
from hpctrain.launch.forks import ForkServer, server_for
from hpctrain.launch.local import supervise
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir, publish, read_json, sums_of

_NEVER = Restart(**dict.fromkeys(Restart.__struct_fields__, 0))


class Ended(NamedTuple):
    """How a task ended."""

    result: dict[str, Any]
    """What came out of it; `{}` if it failed."""
    outcome: dict[str, Any]
    """Verdict, cause and message, as of any attempt."""

    def or_raise(self) -> dict[str, Any]:
        """Return the result.

        Raises:
            JobError: it failed.
        """
        if not self.result:
            hint = "" if self.outcome.get("exit_code") == 2 else "the lines above are of rank 0"
            raise JobError(str(self.outcome.get("message") or "no reason was left"), hint)
        return self.result


def own(loaded: Loaded) -> Loaded:
    """Return the config of a trial: of the first of folds.

    Raises:
        ConfigError: it is that of a command.
    """
    if loaded.config.command is not None:
        raise ConfigError(
            [loaded.problem("command", "a command trains by itself; this is for hpctrain's own training")]
        )
    return folds.one(loaded, 1)


def perform(
    loaded: Loaded, plan: Plan, task: tasks.Task, *, code_of: RunDir | None = None, quiet: bool = False
) -> Ended:
    """Perform a task here, in the foreground; nothing is left of it but what it prints.

    Args:
        loaded: the config.
        plan: made from it.
        task: what to do.
        code_of: take the user's code from this run instead of the working directory.
        quiet: do not show what rank 0 says, nor the plan.

    Raises:
        ConfigError: the plan cannot run here.
    """
    with tempfile.TemporaryDirectory(prefix="hpctrain-", ignore_cleanup_errors=True) as folder, ended_by_signals():
        config = msgspec.structs.replace(loaded.config, runs=folder, restart=_NEVER)
        server = server_for(config, plan)
        run = _freeze(loaded.replaced(config), plan, code_of)
        tasks.write(run, task)
        if not quiet:
            ready.show(loaded, plan, "local")
        return _supervised(run, config, plan, server, quiet=quiet)


def _supervised(run: RunDir, config: Config, plan: Plan, server: ForkServer | None, *, quiet: bool) -> Ended:
    with contextlib.ExitStack() as stack:
        if quiet:
            nothing = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stderr(nothing))
            supervise(run, config, plan, server)
        else:
            follower = Follower(run, out=sys.stderr)
            supervise(run, config, plan, server, follower.pump)
            follower.pump(run.attempt_numbers()[-1], final=True)
    number = run.attempt_numbers()[-1]
    return Ended(tasks.result(run, number), read_json(run.outcome(number)))


def _freeze(loaded: Loaded, plan: Plan, code_of: RunDir | None) -> RunDir:
    """Make the run directory, with the code of the working directory or of another run."""
    if code_of is None:
        ready.refuse_unfit(loaded, plan, "local")
        return submit.freeze(loaded, plan, argv=sys.argv)
    run = RunDir.create(loaded.config.runs, loaded.config.name)
    ours = Path(hpctrain.__file__).parent
    run.code.mkdir(mode=0o700)
    if code_of.code.is_dir():  # an ejected run has no snapshot
        shutil.copytree(code_of.code, run.code, ignore=_without(code_of.code, ours.name), dirs_exist_ok=True)
    shutil.copytree(ours, run.code / ours.name)
    publish(run.code_sums, os.fsencode(sums_of(run.code)))
    submit.write(run, loaded, plan, argv=sys.argv, code=False)
    return run


def _without(top: Path, name: str) -> Callable[[str, list[str]], set[str]]:
    """Return what leaves one entry of a directory out of a copy."""
    return lambda folder, _: {name} if Path(folder) == top else set()


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let TERM and HUP end this process in good order, so that temporary directories go with it."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
