"""The kinds of harm, each a function that does it here and now; it is given the directory with the addresses."""

import ctypes
import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hpctrain.rundir import RunDir

HELD_S = 90.0
"""How long a rank is held at most."""


def _told(*numbers: signal.Signals) -> Callable[[Path], None]:
    def send(_folder: Path) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


def _read_address_0(_folder: Path) -> None:
    ctypes.string_at(0)


def _raise(error: Callable[[], BaseException]) -> Callable[[Path], None]:
    def fail(_folder: Path) -> None:
        raise error()

    return fail


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 2**26
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _python_memory(_folder: Path) -> None:
    _limit_memory()
    bytearray(2**32)


def _torch_memory(_folder: Path) -> None:
    _limit_memory()
    torch.zeros(2**30)


def _host_memory(_folder: Path) -> None:
    """Take what there is, until the kernel has had enough."""
    taken = []
    while True:
        taken.append(b"x" * 2**24)


def _no_descriptors(_folder: Path) -> None:
    used = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used, *held), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _no_file_growth(_folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def _newest() -> Path:
    run = RunDir(Path(os.environ["HPCTRAIN_RUN"]))
    return run.checkpoint(run.checkpoints()[-1])


def _damage(_folder: Path) -> None:
    file = _newest() / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    os.kill(os.getpid(), signal.SIGKILL)


def _cut_short(_folder: Path) -> None:
    (_newest() / "manifest.json").write_bytes(b"")
    os.kill(os.getpid(), signal.SIGKILL)


def _litter(_folder: Path) -> None:
    run = RunDir(Path(os.environ["HPCTRAIN_RUN"]))
    (run.ckpt / "step_00009999").mkdir()
    (run.stage / "attempt_x").mkdir()
    (run.ckpt / "latest").write_text("step_00009999")
    os.kill(os.getpid(), signal.SIGKILL)


def _listed_as(change: Callable[[list[int]], list[int]]) -> Callable[[Path], None]:
    """As a network file system may do: the next look at a directory shows what was there at another time."""

    def mislead(_folder: Path) -> None:
        listed = RunDir.checkpoints

        def stale(run: RunDir) -> list[int]:
            RunDir.checkpoints = listed  # type: ignore[method-assign]
            return change(listed(run))

        RunDir.checkpoints = stale  # type: ignore[method-assign,assignment]

    return mislead


def _jump(seconds: float) -> Callable[[Path], None]:
    def jump(_folder: Path) -> None:
        real = time.time
        time.time = lambda: real() + seconds

    return jump


def _end_loader(_folder: Path) -> None:
    """Let every thread that makes batches end, wherever it is."""
    import threading

    for thread in threading.enumerate():
        if thread.name == "hpctrain loader" and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


def _fill_disk(folder: Path) -> None:
    """Leave nothing free, and nothing under way that would free something."""
    import threading

    from hpctrain.train.leave import SAVING

    for thread in threading.enumerate():
        if thread.name == SAVING:
            thread.join()
    run = Path(os.environ["HPCTRAIN_RUN"])
    descriptor = os.open(run / "filler", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while True:
            os.write(descriptor, b"\0" * 2**16)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    (folder / "full").touch()


def _hold(folder: Path) -> None:
    """Stay here until the test lets go: what comes from outside then comes in this step."""
    deadline = time.monotonic() + HELD_S
    while not (folder / f"go-{os.environ['HPCTRAIN_ATTEMPT']}").exists():
        time.sleep(0.02)
        if time.monotonic() > deadline:
            print("chaos: held in vain", file=sys.stderr, flush=True)
            return


KINDS: dict[str, Callable[[Path], None]] = {
    "sigkill": _told(signal.SIGKILL),
    "sigsegv": _read_address_0,
    "sigabrt": lambda _: os.abort(),
    "sigbus": _told(signal.SIGBUS),
    "sighup": _told(signal.SIGHUP),
    "sigstop": _told(signal.SIGSTOP),
    "supervisor": lambda _: os.kill(os.getppid(), signal.SIGKILL),
    "term": _told(signal.SIGTERM),
    "usr2": _told(signal.SIGUSR2),
    "int": _told(signal.SIGINT),
    "term twice": _told(signal.SIGTERM, signal.SIGTERM),
    "usr2 and term": _told(signal.SIGUSR2, signal.SIGTERM),
    "exit": lambda _: os._exit(7),
    "exit 0": lambda _: os._exit(0),
    "raise": _raise(lambda: ValueError("injected")),
    "system exit": _raise(lambda: SystemExit(3)),
    "system exit 0": _raise(lambda: SystemExit(0)),
    "eio": _raise(lambda: OSError(errno.EIO, "Input/output error")),
    "python memory": _python_memory,
    "torch memory": _torch_memory,
    "host memory": _host_memory,
    "no descriptors": _no_descriptors,
    "no file growth": _no_file_growth,
    "damage": _damage,
    "cut short": _cut_short,
    "litter": _litter,
    "old listing": _listed_as(lambda steps: steps[:-1]),
    "ghost listing": _listed_as(lambda steps: [*steps, 9998, 9999]),
    "clock forward": _jump(3e8),
    "clock back": _jump(-1e8),
    "end loader": _end_loader,
    "fill disk": _fill_disk,
    "hold": _hold,
}
