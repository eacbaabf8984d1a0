"""How a rank leaves after an error: it says what happened where people look, and ends at once.

Nothing is torn down in order: `destroy_process_group` can hang when a peer is gone.
"""

import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from hpctrain.errors import HpctrainError, RendezvousError
from hpctrain.rundir import RunDir, publish_first
from hpctrain.train import stop
from hpctrain.world import World

SAVING = "hpctrain save"
"""Name of the thread that writes a checkpoint."""
_SAVE_S = 60.0
_ECHO_S = 30.0
_ECHOES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out",
    "Horovod has been shut down",
)
_NO_HOST_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def leave(error: BaseException, run: RunDir | None, attempt: int, world: World | None, *, debug: bool) -> NoReturn:
    """Print and record an error, open the debugger if that is asked for, end this process."""
    origin = error.__cause__ if isinstance(error, HpctrainError) else error
    code, message = 4, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, HpctrainError):
        code, message = error.exit_code, str(error)
    who: dict[str, Any] = {} if world is None else {"rank": world.rank, "host": world.host}
    why = classified(error)
    if why["cause"] == "out_of_memory":
        message = f"{_memory_of(error)}: {message}"
    if "echo" in why:
        print("hpctrain: lost another rank; if that one left an error, it is the cause", file=sys.stderr, flush=True)
        _finish_saving()
        _let_the_cause_be_known()
    if origin is not None:
        traceback.print_exception(origin)
    if isinstance(error, HpctrainError) or why["cause"] == "out_of_memory":
        print(f"hpctrain: {message}", file=sys.stderr)
    if debug and origin is not None and not isinstance(origin, KeyboardInterrupt) and sys.stdin.isatty():
        import pdb  # noqa: T100 - that is what --debug is for

        pdb.post_mortem(origin.__traceback__)
    _finish_saving()
    _record(run, attempt, {"verdict": "failed", "message": message[:4000], "exit_code": code, **who, **why})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _finish_saving() -> None:
    """Let a checkpoint be finished: the steps before it were right, whatever went wrong after."""
    for thread in threading.enumerate():
        if thread.name == SAVING:
            thread.join(_SAVE_S)


def classified(error: BaseException) -> dict[str, Any]:
    """Return the cause that an error is, as `outcome.json` has it; with the rank and host at fault if these are others.

    What an error was raised from counts as well: a checkpoint that could not be written tells of the full disk.
    """
    if _lost_a_peer(error):
        return {"cause": "rank_killed", "echo": True}  # which rank was lost, the launcher knows
    chain = list(_chain(error))
    if any(_is_memory(one) for one in chain):
        return {"cause": "out_of_memory"}
    if any(isinstance(one, OSError) and one.errno in {errno.ENOSPC, errno.EDQUOT} for one in chain):
        return {"cause": "disk_full"}
    if not isinstance(error, HpctrainError):
        return {"cause": "error"}
    at_fault = {"rank": error.rank, "host": error.host} if isinstance(error, RendezvousError) else {}
    return {"cause": error.cause, **{key: value for key, value in at_fault.items() if value is not None}}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or _is_on_device(error)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_HOST_MEMORY))
    )


def _is_on_device(error: BaseException) -> bool:
    """Say whether this is torch.OutOfMemoryError, without importing torch."""
    return type(error).__name__ == "OutOfMemoryError" and type(error).__module__.partition(".")[0] == "torch"


def _memory_of(error: BaseException) -> str:
    """Say which memory ran out, and what to type."""
    less = "the same global batch in smaller passes needs less: batch.accumulate=N"
    if any(map(_is_on_device, _chain(error))):
        return f"the memory of the device ran out ({less})"
    return f"the memory of the host ran out ({less}; also fewer data.workers, or more memory by slurm.mem)"


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


def _record(run: RunDir | None, attempt: int, record: dict[str, Any]) -> None:
    if run is None or not attempt or not run.attempt(attempt).is_dir():
        return
    try:
        publish_first(run.outcome(attempt), msgspec.json.encode(record))
    except OSError as failure:  # a full disk must not hide the error itself, which is in the log by now
        print(f"hpctrain: the outcome could not be written: {failure}", file=sys.stderr)
