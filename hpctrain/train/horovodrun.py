"""horovodrun, as the relay of the first node starts it: `python -m hpctrain.train.horovodrun ARGUMENTS`.

The same program with differences for which it has no options. It reaches other nodes by our agent instead of ssh. It
does not write the whole environment, and the secrets in it, into the command lines of the ranks, because it is there on
each node. And it and what it starts stay deaf to the signals for the ranks, see `hpctrain.train.hub`.
"""

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

from hpctrain.errors import HpctrainError, JobError
from hpctrain.rundir import RunDir
from hpctrain.train.hub import DEAF_TO


def main() -> None:
    """Become horovodrun."""
    try:
        from horovod.runner import gloo_run, launch
        from horovod.runner.common.util import env
        from horovod.runner.util import remote
    except ImportError as error:
        raise JobError(
            f"horovodrun is not installed for {sys.executable}: {error}",
            "bash jobs/build-horovod.sh builds it; or use dist.launcher=srun, or strategy: ddp",
        ) from None
    resource_tracker.ensure_running()  # lifts what is blocked, but only where it is not running yet
    signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)
    run = RunDir(Path(os.environ["HPCTRAIN_RUN"]))
    # each shell becomes what it starts: dash lifts what is blocked
    remote.SSH_COMMAND_PREFIX = f"exec {run.agent(int(os.environ['HPCTRAIN_ATTEMPT']))}"
    env.IGNORE_REGEXES = {"(?!HOROVOD_)"}
    command_of = gloo_run._slot_info_to_command_fn

    def no_shell_stays(run_command: str, variables: dict[str, str]) -> Callable[[object], str]:
        to_command = command_of(run_command, variables)
        return lambda slot: f"exec {to_command(slot)}"

    gloo_run._slot_info_to_command_fn = no_shell_stays
    launch.run_commandline()


if __name__ == "__main__":
    try:
        main()
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
