"""`hpctrain run`: a run on this machine, in the foreground."""

import os
import sys

from hpctrain.config.load import Loaded
from hpctrain.launch import ready, submit
from hpctrain.launch.forks import server_for
from hpctrain.rundir import RunDir


def run(loaded: Loaded, *, ranks: int | None, debug: bool) -> tuple[int, RunDir]:
    """Run a config to its end; return the exit code and the run directory.

    Args:
        loaded: the config.
        ranks: how many to start, if not as many as it says.
        debug: one process on this terminal.
    """
    plan = ready.make_plan(loaded, "local", 1 if debug else ranks)
    server = None if debug else server_for(loaded.config, plan)  # it works while the run directory is made
    ready.refuse_unfit(loaded, plan, "local")
    directory = submit.freeze(loaded, plan, argv=sys.argv)
    ready.show(loaded, plan, "local")
    print(f"run {directory.path}", file=sys.stderr, flush=True)
    submit.record_local(directory, os.getpid())
    if debug:
        from hpctrain.launch.local import debug as run_debug

        return run_debug(directory, loaded.config), directory
    from hpctrain.launch.follow import Follower, first_cause
    from hpctrain.launch.local import supervise

    follower = Follower(directory)
    code = supervise(directory, loaded.config, plan, server, follower.pump)
    follower.pump(directory.attempt_numbers()[-1], final=True)
    if code:
        print(f"hpctrain: {first_cause(directory)}", file=sys.stderr)
    return code, directory
