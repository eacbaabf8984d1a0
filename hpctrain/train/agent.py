"""The ssh of mpirun and horovodrun: has a command started by the relay of another node, see `hpctrain.train.hub`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hpctrain.errors import HpctrainError, UsageError
from hpctrain.rundir import RunDir
from hpctrain.train import hub

_SSH_OPTIONS_WITH_VALUE = {f"-{letter}" for letter in "BbcDEeFIiJLlmOoPpQRSWw"}


def order_of(arguments: Sequence[str]) -> tuple[str, str]:
    """Return host and command of a call that is meant for ssh: options, the host, more options, the command.

    Raises:
        UsageError: there is no host or no command.
    """
    rest, found = list(arguments), list[str]()
    while rest and len(found) < 2:
        if not rest[0].startswith("-"):
            found.append(" ".join(rest) if found else rest.pop(0))
        else:
            del rest[: 1 + (rest[0] in _SSH_OPTIONS_WITH_VALUE)]
    if len(found) < 2:
        raise UsageError(f"neither host nor command in {' '.join(arguments)!r}", "mpirun calls this, nobody else")
    return found[0], found[1]


def main() -> NoReturn:
    """Be the ssh of a launcher: have a command started on another node, exit with its code."""
    try:
        host, command = order_of(sys.argv[1:])
        connection = hub.connect(RunDir(Path(os.environ["HPCTRAIN_RUN"])), int(os.environ["HPCTRAIN_ATTEMPT"]), 10)
        hub.send(connection, {"host": host, "command": command})
        sys.exit(hub.receive(connection)["code"])
    except EOFError:
        sys.exit(255)
    except HpctrainError as error:
        print(f"hpctrain: {error}", file=sys.stderr)
        sys.exit(255)


if __name__ == "__main__":
    main()
