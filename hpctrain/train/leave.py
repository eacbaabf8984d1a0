"""How a rank leaves after an error: it says what happened where people look, and ends at once.

Nothing is torn down in order: `destroy_process_group` can hang when a peer is gone.
"""

import os
import signal
import sys
import time
import traceback
from typing import NoReturn

import msgspec

from hpctrain.errors import HpctrainError
from hpctrain.rundir import RunDir, publish_first
from hpctrain.train import stop
from hpctrain.world import World

_ECHO_S = 30.0
_ECHOES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out",
    "Horovod has been shut down",
)


def leave(error: BaseException, run: RunDir | None, attempt: int, world: World | None, *, debug: bool) -> NoReturn:
    """Print and record an error, open the debugger if that is asked for, end this process."""
    origin = error.__cause__ if isinstance(error, HpctrainError) else error
    cause, code, message = "error", 4, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, HpctrainError):
        code, message = error.exit_code, str(error)
    if _lost_a_peer(error):
        cause = "rank_killed"
        print("hpctrain: lost another rank; if that one left an error, it is the cause", file=sys.stderr, flush=True)
        _let_the_cause_be_known()
    if origin is not None:
        traceback.print_exception(origin)
    if isinstance(error, HpctrainError):
        print(f"hpctrain: {message}", file=sys.stderr)
    if debug and origin is not None and not isinstance(origin, KeyboardInterrupt) and sys.stdin.isatty():
        import pdb  # noqa: T100 - that is what --debug is for

        pdb.post_mortem(origin.__traceback__)
    _record(run, attempt, {"verdict": "failed", "cause": cause, "message": message[:4000], "exit_code": code}, world)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _lost_a_peer(error: BaseException) -> bool:
    """Say whether this is what a collective raises on the ranks that are left when another one has gone."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _ECHOES)


def _let_the_cause_be_known() -> None:
    """Wait for the end that is due to the rank that failed first: this rank's error is only its echo.

    The launcher ends all ranks as soon as it notices, which is at once; if it never does, this rank reports its own.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
        if number in stop.caught:  # it came while this rank still waited for its peer
            os.kill(os.getpid(), number)
    time.sleep(_ECHO_S)


def _record(run: RunDir | None, attempt: int, record: dict[str, str | int], world: World | None) -> None:
    if run is None or not attempt or not run.attempt(attempt).is_dir():
        return
    if world is not None:
        record |= {"rank": world.rank, "host": world.host}
    try:
        publish_first(run.outcome(attempt), msgspec.json.encode(record))
    except OSError as failure:  # a full disk must not hide the error itself, which is in the log by now
        print(f"hpctrain: the outcome could not be written: {failure}", file=sys.stderr)
