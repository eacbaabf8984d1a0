"""What a sandbox shall look like, and what this machine must have for it."""

import json
import os
import pwd
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hpctrain.errors import UsageError

CLIENTS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun", "salloc", "sacct", "sacctmgr")

MAX_NODES = 64
MAX_GPUS = 16
MAX_CPUS = 256

# Slurm takes a GPU for present when its File is a device node. Only root can make some; others borrow these.
_BORROWED_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")
_SYSTEM_FOLDERS = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"  # daemons are not on an ordinary user's PATH
_MYSQL_PLUGINS = ("/usr/lib", "*/slurm*/accounting_storage_mysql.so")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What was asked for."""

    nodes: int
    gpus_per_node: int
    cpus_per_node: int = 8
    accounting: bool = False
    """With slurmdbd and MariaDB, so that sacct works; about 2 s more."""
    network: str = "10.231.7"
    """The first three numbers of the nodes' addresses; nobody outside the sandbox sees them."""
    private_tmp: bool = False
    """Every node has a /tmp of its own, as on most clusters."""
    partitions: tuple[str, ...] = ("main",)
    """The first one is the default."""

    def to_json(self) -> str:
        """Return the text from which `from_json` makes an equal one."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "partitions": tuple(fields["partitions"])})

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes: n1, n2, ..."""
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))

    def check(self) -> None:
        """Refuse what cannot be started.

        Raises:
            UsageError: lists every problem.
        """
        if problems := tuple(self._problems()):
            raise UsageError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        most_gpus = MAX_GPUS if os.geteuid() == 0 else len(borrowed_devices())
        for name, value, least, most in (
            ("nodes", self.nodes, 1, MAX_NODES),
            ("gpus_per_node", self.gpus_per_node, 0, most_gpus),
            ("cpus_per_node", self.cpus_per_node, 1, MAX_CPUS),
        ):
            if not least <= value <= most:
                yield f"sandbox: {name} is {value}; it must be {least} to {most}"
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            yield f"sandbox: user {os.geteuid()} is not in /etc/passwd, and Slurm runs only as a user with a name"
        octets = self.network.split(".")
        if len(octets) != 3 or not all(re.fullmatch(r"0|[1-9]\d{0,2}", part) and int(part) < 256 for part in octets):
            yield f"sandbox: network is {self.network!r}; it must be three numbers such as 10.231.7"
        elif not 1 <= int(octets[0]) <= 223 or octets[0] == "127":
            yield f"sandbox: network is {self.network!r}; no host can have an address there; take one such as 10.231.7"
        for name in self.partitions:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
                yield f"sandbox: partition {name!r}: a name is letters, digits, - and _, and starts with a letter"
        if not self.partitions or len(set(self.partitions)) < len(self.partitions):
            yield "sandbox: partitions: name at least one, and none twice"


def borrowed_devices() -> tuple[Path, ...]:
    """Return the device nodes that can stand for GPUs without root."""
    return tuple(path for name in _BORROWED_DEVICES if (path := Path("/dev", name)).is_char_device())


def tool(name: str) -> str:
    """Return the path of a program, or its bare name if it is not there."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_FOLDERS) or name


def require_packages(spec: Spec) -> None:
    """Refuse to start without the programs that `spec` needs.

    Raises:
        UsageError: says what to install.
    """
    needs = {
        "slurm-wlm": ("slurmctld", "slurmd", *CLIENTS),
        "munge": ("munged",),
        "iproute2": ("ip",),
        "util-linux": ("unshare", "nsenter", "setpriv"),
    }
    if spec.accounting:
        needs |= {"slurmdbd": ("slurmdbd",), "mariadb-server": ("mariadbd", "mariadb-install-db", "mariadb")}
    missing = {package: gone for package, programs in needs.items() if (gone := [p for p in programs if not _has(p)])}
    if spec.accounting and not any(Path(_MYSQL_PLUGINS[0]).glob(_MYSQL_PLUGINS[1])):
        missing["slurm-wlm-mysql-plugin"] = ["accounting_storage_mysql.so"]
    if missing:
        programs = ", ".join(program for gone in missing.values() for program in gone)
        raise UsageError(
            f"sandbox: not installed: {programs}",
            f"apt-get install --no-install-recommends {' '.join(sorted(missing))}",
        )


def _has(program: str) -> bool:
    return tool(program) != program
