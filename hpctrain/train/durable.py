"""Files and directories that survive a power cut."""

import os
import shutil
from pathlib import Path


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a new file, and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def discard(path: Path) -> None:
    """Delete a checkpoint, or what somebody has put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync(directory: Path) -> None:
    """Make what was created or renamed in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
