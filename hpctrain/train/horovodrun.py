"""horovodrun, as the relay of the first node starts it: `python -m hpctrain.train.horovodrun ARGUMENTS`.

The same program with three differences, for which it has no options. It reaches other nodes by our agent instead of
ssh. It does not write the whole environment, and the secrets in it, into the command lines of the ranks, because it is
there on each node. And it stays deaf to TERM: multiprocessing's resource tracker lifts that where it is started.
"""

import os
import signal
import sys
from multiprocessing import resource_tracker
from pathlib import Path

from hpctrain.errors import HpctrainError, JobError
from hpctrain.rundir import RunDir


def main() -> None:
    """Become horovodrun."""
    try:
        from horovod.runner import launch
        from horovod.runner.common.util import env
        from horovod.runner.util import remote
    except ImportError as error:
        raise JobError(
            f"horovodrun is not installed for {sys.executable}: {error}",
            "bash jobs/build-horovod.sh builds it; or use dist.launcher=srun, or strategy: ddp",
        ) from None
    deaf_to = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, deaf_to)
    run = RunDir(Path(os.environ["HPCTRAIN_RUN"]))
    remote.SSH_COMMAND_PREFIX = str(run.agent(int(os.environ["HPCTRAIN_ATTEMPT"])))
    env.IGNORE_REGEXES = {"(?!HOROVOD_)"}
    launch.run_commandline()


if __name__ == "__main__":
    try:
        main()
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
