"""The one directory that a sandbox writes to.

ROOT/  spec.json  lock       what was asked; held locked by whoever keeps the sandbox alive
       bin/  clients/        Slurm's clients: `bin` enters the namespaces, `clients` (mounted over it inside) does not
       etc/  dev/            configuration; device nodes that stand for GPUs
       log/  run/  munge/    logs; sockets and pid files; the private munge
       state/ spool/ nodes/  slurmctld's state; slurmd's spool per node; hosts file and /tmp of each node
       db/                   MariaDB's data
"""

import fcntl
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "hpctrain-sandbox-"
_LONGEST_BASE = 40  # a unix socket's path has at most 107 bytes, and Slurm adds about 50 to ours
_YOUNG_S = 10  # a directory may not have been locked yet by the one who is making it


@dataclass(frozen=True)
class Root:
    """Every path of one sandbox."""

    path: Path

    @classmethod
    def make(cls) -> "Root":
        """Create a new directory, with a name that nobody can guess, and its folders."""
        root = cls(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base())))
        for name in ("bin", "clients", "etc", "dev", "log", "run", "munge", "state", "spool", "nodes", "db"):
            (root.path / name).mkdir()
        for folder in (root.path, *root.path.iterdir()):
            folder.chmod(0o755)  # jobs of other users read the configuration and talk to munge; umask is no matter
        (root.path / "lock").touch(mode=0o600)
        return root

    @property
    def bin(self) -> Path:
        """Clients that enter the namespaces; inside, `clients` is mounted over it."""
        return self.path / "bin"

    @property
    def clients(self) -> Path:
        """Links to the real clients."""
        return self.path / "clients"

    @property
    def slurm_conf(self) -> Path:
        """Slurm's configuration; all its other files lie beside it."""
        return self.path / "etc" / "slurm.conf"

    @property
    def control(self) -> Path:
        """The socket on which the holder takes orders."""
        return self.path / "run" / "control"

    @property
    def munge_socket(self) -> Path:
        """The socket of the private munge."""
        return self.path / "munge" / "socket"

    @property
    def spec(self) -> Path:
        """What was asked for."""
        return self.path / "spec.json"

    def etc(self, name: str) -> Path:
        """Return the path of a configuration file."""
        return self.path / "etc" / name

    def log(self, name: str) -> Path:
        """Return the path of a log."""
        return self.path / "log" / f"{name}.log"

    def node(self, name: str) -> Path:
        """Return the folder of one node."""
        return self.path / "nodes" / name

    def spool(self, name: str) -> Path:
        """Return the spool folder of one node's slurmd."""
        return self.path / "spool" / name

    def lock(self) -> int:
        """Lock the directory and return the descriptor that holds the lock, or -1 if another process holds it.

        The kernel drops the lock with the last process that has the descriptor, however it ends.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return -1
        return descriptor

    def is_alive(self) -> bool:
        """Say whether someone keeps this sandbox alive, in whatever namespace."""
        try:
            descriptor = self.lock()
        except OSError:
            return False
        if descriptor >= 0:
            os.close(descriptor)
        return descriptor < 0

    def remove(self) -> None:
        """Remove the directory, if it is one of ours."""
        if self.path.name.startswith(_PREFIX) and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)


def sweep() -> None:
    """Remove what sandboxes have left whose holder was killed outright."""
    for path in _base().glob(f"{_PREFIX}*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        ours = status.st_uid == os.geteuid() and not path.is_symlink()
        if ours and time.time() - status.st_mtime > _YOUNG_S and not Root(path).is_alive():
            Root(path).remove()


def _base() -> Path:
    base = Path(tempfile.gettempdir()).resolve()
    return base if len(os.fsencode(base)) <= _LONGEST_BASE else Path("/tmp")  # noqa: S108 (mkdtemp makes it safe)
