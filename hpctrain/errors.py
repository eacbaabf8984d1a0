"""The errors hpctrain raises for its users; everything else that escapes is a bug of ours.

HpctrainError             exit 1   never raised itself
├── UsageError            exit 2   a command was called wrongly, or a file is missing
│   └── ConfigError       exit 2   one or more problems in a config, each with file:line:col
├── ClusterError          exit 3   Slurm refused, or is not there
│   └── OwnedError        exit 3   another job or supervisor owns the run directory
├── JobError              exit 4   the job failed
│   ├── WorldError        exit 4   the world that formed is not the one that was planned
│   │   └── RendezvousError exit 4 a rank did not come, so that no world formed; another try may do
│   ├── DataError         exit 4   a dataset cannot be read
│   └── CheckpointError   exit 4   a checkpoint cannot be written or read
│       └── DiskFullError exit 4   because there is no room for it

75 is the batch script's code for "requeue me"; no exception owns it.
"""

from collections.abc import Sequence
from typing import ClassVar


class HpctrainError(Exception):
    """A message for the user: what went wrong and where, and in `hint` what to type next."""

    exit_code: ClassVar[int] = 1
    cause: ClassVar[str] = "error"
    """What `outcome.json` calls it when an attempt ends by it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, and the hint on a line of its own."""
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(HpctrainError):
    """A command was called wrongly, or names something that does not exist."""

    exit_code = 2


class ConfigError(UsageError):
    """All the problems of one config; each line reads `file:line:col: message`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ClusterError(HpctrainError):
    """Slurm refused what was asked, or cannot be reached."""

    exit_code = 3


class OwnedError(ClusterError):
    """Another job or supervisor owns the run directory; nothing of it was touched."""


class JobError(HpctrainError):
    """The job ended without doing what was planned."""

    exit_code = 4


class WorldError(JobError):
    """The world that formed (ranks, hosts, attempt, config, code) is not the one that was planned."""


class RendezvousError(WorldError):
    """A rank did not come, or could not be reached: unlike a wrong world this need not happen again.

    `rank` and `host` are those of the one that is missed, as far as they are known.
    """

    cause = "rendezvous_failed"

    def __init__(self, message: str, hint: str = "", *, rank: int | None = None, host: str | None = None) -> None:
        super().__init__(message, hint)
        self.rank, self.host = rank, host


class DataError(JobError):
    """A dataset is missing, truncated or not what its header says."""

    cause = "data_error"


class CheckpointError(JobError):
    """A checkpoint cannot be written, or none that verifies can be read."""


class DiskFullError(CheckpointError):
    """There is no room for a checkpoint: bytes, inodes or quota."""

    cause = "disk_full"
