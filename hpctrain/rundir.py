"""Every path of one run, and the few ways to write there; nobody else joins path strings.

RUNS/NAME-ID/  config.yaml plan.json env.json job.sbatch job.json  config.N.yaml plan.N.json (before the N-th resume)
               code/  ckpt/step_XXXXXXXX/  stage/attempt_N/
               attempts/N/{begin.json,secret,rendezvous.json,metrics.jsonl,outcome.json,verdict.json,launch.log}
               attempts/N/logs/rank_R.{out,err}  attempts/N/samples/rank_R.jsonl  attempts/N/steps  owners/N.json
               attempts/N/hang/HOST.json  attempts/N/ranks/HOST.json  attempts/N/timing.json
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from hpctrain.errors import UsageError

SAFE_PATH = re.compile(r"/[A-Za-z0-9_./+@=,:-]*", re.ASCII)
"""Paths that may stand in a `#SBATCH` line: sbatch's lexer knows backslash, `#`, quotes and `%`."""


class RunDir:
    """The directory of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.env = path / "env.json"
        self.script = path / "job.sbatch"
        self.job = path / "job.json"
        self.code = path / "code"
        self.code_sums = path / "code.sha256"
        self.ckpt = path / "ckpt"
        self.stage = path / "stage"
        self.attempts = path / "attempts"
        self.owners = path / "owners"
        self.task = path / "task.json"
        self._made: tuple[Path, ...] = ()

    @classmethod
    def create(cls, runs: Path | str, name: str) -> "RunDir":
        """Make a new directory NAME-ID, mode 0700, below `runs`.

        Raises:
            UsageError: `runs` cannot be written, or its path holds characters that are not safe in a batch script.
        """
        import secrets
        import time

        root = cls.root(runs)
        if SAFE_PATH.fullmatch(str(root)) is None:
            raise UsageError(
                f"runs: {str(root)!r} holds characters that a batch script cannot carry safely",
                "use letters, digits and / _ . + @ = , : - only, for instance runs=$HOME/runs",
            )
        stamp = time.strftime("%m%d-%H%M%S")
        run = cls(root / f"{name}-{stamp}-{secrets.token_hex(2)}")
        run._made = tuple(folder for folder in (root, *root.parents) if not os.path.exists(folder))  # noqa: PTH110 - a Path raises where it may not look
        try:
            root.mkdir(parents=True, exist_ok=True)
            run.path.mkdir(mode=0o700)
            for part in (run.attempts, run.ckpt, run.stage):
                part.mkdir(mode=0o700)
        except OSError as error:
            run.remove()
            why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise UsageError(
                f"runs: cannot make a run directory in {root}: {why}", "give another place: runs=DIR"
            ) from None
        return run

    @staticmethod
    def root(runs: Path | str) -> Path:
        """Return where `runs` of a config is; a `~` that names no user stays as it is."""
        return Path(os.path.expanduser(runs)).absolute()  # noqa: PTH111 - a Path would raise there

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Take an existing run directory.

        Raises:
            UsageError: there is none, or it cannot be read.
        """
        run = cls(path.absolute())
        try:
            run.config.open("rb").close()
        except PermissionError:
            raise UsageError(
                f"{path}: permission denied; run directories belong to the user who made them",
                "hpctrain list shows yours",
            ) from None
        except OSError:
            is_directory = os.path.isdir(path)  # noqa: PTH112 - a Path raises where a name is too long
            why = "is no run directory: it has no config.yaml" if is_directory else "is no directory"
            raise UsageError(f"{path} {why}", "hpctrain list shows the runs") from None
        return run

    def remove(self) -> None:
        """Delete the directory and what was made above it: of a run that was refused nothing half-made stays."""
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)
        try:
            for folder in self._made:
                folder.rmdir()
        except OSError:  # another run was made there in the meantime
            return

    def attempt(self, number: int) -> Path:
        """Return the directory of one attempt; attempts count from 1."""
        return self.attempts / str(number)

    def begin(self, number: int) -> Path:
        """Job id, hosts and start time of an attempt, written before its ranks start."""
        return self.attempt(number) / "begin.json"

    def secret(self, number: int) -> Path:
        """Key of an attempt, mode 0600: ranks prove by it that they belong together."""
        return self.attempt(number) / "secret"

    def rendezvous(self, number: int) -> Path:
        """Address of an attempt's rank 0."""
        return self.attempt(number) / "rendezvous.json"

    def agents(self, number: int) -> Path:
        """Address at which the relays of an attempt's nodes, or their torchrun agents, meet."""
        return self.attempt(number) / "agents.json"

    def agent(self, number: int) -> Path:
        """Program that mpirun takes for ssh."""
        return self.attempt(number) / "agent"

    def launch_log(self, number: int) -> Path:
        """What the launcher itself says, and ranks before they know their number."""
        return self.attempt(number) / "launch.log"

    def log(self, number: int, rank: int, stream: Literal["out", "err"]) -> Path:
        """Standard output or error of a rank."""
        return self.attempt(number) / "logs" / f"rank_{rank}.{stream}"

    def metrics(self, number: int) -> Path:
        """One JSON object per interval; rank 0 writes it."""
        return self.attempt(number) / "metrics.jsonl"

    def outcome(self, number: int) -> Path:
        """How an attempt ended."""
        return self.attempt(number) / "outcome.json"

    def result(self, number: int) -> Path:
        """What came out of a task, see `hpctrain.task`."""
        return self.attempt(number) / "result.json"

    def verdict(self, number: int) -> Path:
        """What follows from the end of an attempt: once more, or not, and why."""
        return self.attempt(number) / "verdict.json"

    def exit_code(self, number: int) -> Path:
        """Exit code of an attempt's srun, once it has ended."""
        return self.attempt(number) / ".exit_code"

    def steps(self, number: int) -> Path:
        """The step that an attempt went on from and the last one it has done; rank 0 keeps it mapped."""
        return self.attempt(number) / "steps"

    def owner(self, number: int) -> Path:
        """Who may run the attempts: the record with the highest number counts; they begin at 1."""
        return self.owners / f"{number}.json"

    def former(self, path: Path, number: int) -> Path:
        """Where a frozen file is kept that the `number`-th resume has replaced, such as config.1.yaml."""
        return path.with_name(f"{path.stem}.{number}{path.suffix}")

    def hang(self, number: int, host: str) -> Path:
        """Where the ranks of a node stood when one hung, with their stacks; the watchdog of the node writes it."""
        return self.attempt(number) / "hang" / f"{host}.json"

    def ranks(self, number: int, host: str) -> Path:
        """How fast the ranks of a node are, written now and then by its watchdog."""
        return self.attempt(number) / "ranks" / f"{host}.json"

    def timing(self, number: int) -> Path:
        """How long a step, a save and an evaluation of an attempt take."""
        return self.attempt(number) / "timing.json"

    def samples(self, number: int, rank: int) -> Path:
        """Which samples a rank saw, with `log.samples: true`."""
        return self.attempt(number) / "samples" / f"rank_{rank}.jsonl"

    def staging(self, number: int) -> Path:
        """Where an attempt writes what it has not published yet."""
        return self.stage / f"attempt_{number}"

    def checkpoint(self, step: int) -> Path:
        """Directory of the checkpoint after `step` optimizer steps."""
        return self.ckpt / f"step_{step:08d}"

    def checkpoints(self) -> list[int]:
        """Steps of the published checkpoints, oldest first."""
        return sorted(
            int(path.name[5:]) for path in self.ckpt.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name)
        )

    def attempt_numbers(self) -> list[int]:
        """Numbers of the attempts so far, oldest first."""
        try:
            return sorted(int(path.name) for path in self.attempts.iterdir() if path.name.isdigit())
        except FileNotFoundError:
            return []

    def begin_attempt(self, begin: dict[str, Any]) -> int:
        """Claim the next attempt number; make its directory, secret and begin.json, as the script does in bash."""
        import secrets

        number = (self.attempt_numbers() or [0])[-1] + 1
        while True:
            try:
                self.attempt(number).mkdir(mode=0o700)
                break
            except FileExistsError:  # another attempt claimed it in between
                number += 1
        (self.attempt(number) / "logs").mkdir(mode=0o700)
        publish(self.secret(number), secrets.token_hex(32).encode())
        publish(self.begin(number), msgspec.json.encode(begin))
        return number


def publish(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 so that a reader sees all of it or none, also after a crash."""
    temporary = _write_beside(path, content)
    temporary.replace(path)


def publish_first(path: Path, content: bytes) -> bool:
    """Publish a file unless it is there already; say whether this call made it. The first of many ranks wins."""
    temporary = _write_beside(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except PermissionError:  # a file system without hard links: the window in which readers see a part is short
        if path.exists():
            return False
        path.write_bytes(content)
    finally:
        temporary.unlink()
    return True


def _write_beside(path: Path, content: bytes) -> Path:
    # a random name: processes of several nodes may have the same id, and all write an outcome at once
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk gets no fuller by what was not finished
        temporary.unlink()
        raise
    return temporary


def sums_of(root: Path) -> str:
    """List all files below `root` with their SHA-256, as `sha256sum` does; byte code is left out."""
    names = sorted(
        os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118 - Path objects cost more than the hashing
        for folder, _, files in os.walk(root)
        if not folder.endswith("__pycache__")
        for name in files
    )
    return "".join(f"{_sum(root, name)}  {name}\n" for name in names)


def changed_since(root: Path, sums: str) -> list[str]:
    """Return the files of such a list that are gone or have another content; new files do not count."""
    return [line[66:] for line in sums.split("\n") if line and _sum(root, line[66:]) != line[:64]]


def _sum(root: Path, name: str) -> str:
    import hashlib

    try:
        with open(os.path.join(root, name), "rb") as file:  # noqa: PTH118, PTH123
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return "missing"


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object of a run; `{}` if it is not there or not whole."""
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
