"""Is there room for the checkpoints? Asked before the first step, not found out after hours."""

import os

from hpctrain.config.schema import Checkpoint
from hpctrain.errors import DiskFullError
from hpctrain.rundir import RunDir

_FILES = 6  # of a checkpoint: its directory, the manifest and up to four files of tensors


def check(run: RunDir, checkpoint: Checkpoint, size: int) -> None:
    """Refuse to start where the checkpoints that are kept, and one that is being written, have no room.

    Quotas do not show here; what exceeds one fails when it is written.

    Args:
        run: its checkpoints that are there already need no more room.
        checkpoint: how many are kept.
        size: of one, in bytes.

    Raises:
        DiskFullError: with the figures.
    """
    system = os.statvfs(run.ckpt)
    best = int(checkpoint.keep_best)
    count = checkpoint.keep + 1 + best
    missing = max(count - len(run.checkpoints()), 1)
    kept = f"{checkpoint.keep} kept{', the best one' if best else ''} and one that is being written"
    free = system.f_bavail * system.f_frsize
    if free < missing * size:
        raise DiskFullError(
            f"{run.ckpt} has no room for the checkpoints: {count} ({kept}) x {_mib(size)} MiB, of which "
            f"{missing} are to come = {_mib(missing * size)} MiB; {_mib(free)} MiB are free",
            _hint(checkpoint),
        )
    if system.f_files > 0 and system.f_favail < missing * _FILES:  # some file systems do not count them: 0
        raise DiskFullError(
            f"{run.ckpt} has no inodes for the checkpoints: {count} ({kept}) x {_FILES}, of which {missing} are "
            f"to come = {missing * _FILES}; {system.f_favail} are free",
            _hint(checkpoint),
        )


def _hint(checkpoint: Checkpoint) -> str:
    fewer = "checkpoint.keep=1, " if checkpoint.keep > 1 else ""
    return f"make room, or submit again with {fewer}runs=DIR on another file system"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
