"""Files that are made once and then used by many: whole or not there, made by one process while the others wait."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def user_directory() -> Path | None:
    """Return the user's cache directory, which need not exist; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "hpctrain"
    except RuntimeError:
        return None


def write(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that a reader sees all of it or none, also after a crash; its mode follows the umask.

    Raises:
        OSError: it cannot be written; nothing is left of it then.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")  # random: many nodes may write at once
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Give a file that has been synced its final name, for good."""
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def alone(path: Path | None, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock that belongs to a file; say whether it is held.

    It is not where there is no place for it, where the file system knows no locks (Lustre without `-o flock`), or
    where another process has it and `wait` is false.
    """
    descriptor = -1
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            name = path.with_name(f".{path.name}.lock")
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        held = path is not None
    except OSError:
        held = False
    try:
        yield held
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # which lets the lock go; the file stays, as removing it would let two hold it
