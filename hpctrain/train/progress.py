"""Where an attempt began and how far it came: 16 bytes in the run directory, mapped into rank 0.

After a step rank 0 stores one number in its memory, which costs no system call, and the kernel writes it down; so the
number outlives the process, whatever ended that. Only the loss of the whole node may lose the last seconds of it.
"""

import mmap
import os

from hpctrain.rundir import RunDir

_BYTES = 16  # two signed numbers of 64 bits in the machine's order: first, done


class Progress:
    """What rank 0 has done in one attempt; on other ranks nothing is written.

    Args:
        run: the run directory.
        attempt: number of the attempt.
        first: the step that it goes on from.
        rank: of this process.
    """

    def __init__(self, run: RunDir, attempt: int, first: int, rank: int) -> None:
        self._numbers: memoryview = memoryview(bytearray(_BYTES)).cast("q")
        if rank == 0:
            try:
                self._numbers = _mapped(run, attempt)
            except OSError as error:  # a file system that cannot map costs a figure in the ledger, not the run
                print(f"hpctrain: {run.steps(attempt)} cannot be mapped: {error.strerror}", flush=True)
        self._numbers[0] = self._numbers[1] = first

    def done(self, step: int) -> None:
        """Note that a step is done; one aligned store, so that no reader sees half of it."""
        self._numbers[1] = step


def _mapped(run: RunDir, attempt: int) -> memoryview:
    descriptor = os.open(run.steps(attempt), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # written, not only made longer: a hole that the disk has no room for would kill the process later, by SIGBUS
        os.write(descriptor, bytes(_BYTES))
        return memoryview(mmap.mmap(descriptor, _BYTES)).cast("q")
    finally:
        os.close(descriptor)
