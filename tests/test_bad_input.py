"""Bad input through the real command line: what it says, how it exits, and that nothing half-made stays.

`tests/golden/bad_input.txt` holds each command with its whole output, as a catalogue to read. Commands run in a project
of their own, with a PATH that holds nothing but the fakes of the case.
"""

import gzip
import json
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import hpctrain
from hpctrain.sandbox.spec import CLIENTS

GOLDEN = Path(__file__).parent / "golden/bad_input.txt"
RENEW = "HPCTRAIN_RENEW_GOLDEN=1 python -m pytest tests/test_bad_input.py"
SOURCE = Path(hpctrain.__file__).parents[1]

TRAIN = """\
name: mini
data: {dataset: digits}
model: {name: mlp}
batch: {global: 48}
optim: {lr: 0.1}
train: {epochs: 1}
"""
OWN = "name: mine\ncommand: [python, -c, pass]\n"
BOMB = "name: mini\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)
MODELS = """\
import os

def tiny():
    if os.environ["RANK"] == "1":
        raise ValueError("no weights")
"""

SINFO = r"printf 'main*\0372\0371-00:00:00\037gpu:a100:4\037up\nlong\0374\0377-00:00:00\037(null)\037up\n'"
DOWN = "echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1"
NO_ACCOUNT = (
    "echo 'sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified' "
    ">&2; exit 1"
)

PLAIN = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if os.geteuid() == 0 else []
"""Makes root a user like any other as to what it may read and write, with an interpreter that it surely may start."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command line that cannot do what it says."""

    line: str
    code: int = 2
    config: str | bytes = TRAIN
    env: dict[str, str] = field(default_factory=dict)
    fakes: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], None] = lambda _: None
    prefix: list[str] = field(default_factory=list)


def idx(count: int, *sides: int, magic: int = 0x800) -> bytes:
    """Return an IDX file of zeros."""
    shape = (count, *sides)
    size = count
    for side in sides:
        size *= side
    return struct.pack(f">{1 + len(shape)}I", magic + len(shape), *shape) + bytes(size)


def mnist(**changed: bytes | None) -> Callable[[Path], None]:
    """Make a small MNIST in which some files are changed, or missing."""

    def prepare(project: Path) -> None:
        folder = project / "mnist"
        folder.mkdir()
        good = {"train_images": idx(4, 28, 28), "train_labels": idx(4), "t10k_images": idx(2, 28, 28)}
        for name, content in (good | {"t10k_labels": idx(2)} | changed).items():
            stem = name.replace("_images", "-images-idx3-ubyte").replace("_labels", "-labels-idx1-ubyte")
            if content is not None:
                suffix = ".gz" if content[:2] == b"\x1f\x8b" else ""
                (folder / f"{stem}{suffix}").write_bytes(content)

    return prepare


def mode(name: str, bits: int) -> Callable[[Path], None]:
    """Make a directory, if there is nothing of that name, and set its mode."""

    def prepare(project: Path) -> None:
        path = project / name
        if not path.exists():
            path.mkdir()
        path.chmod(bits)

    return prepare


def file(name: str, content: str = "") -> Callable[[Path], None]:
    return lambda project: (project / name).write_text(content) and None


def both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare(project: Path) -> None:
        for step in steps:
            step(project)

    return prepare


def ran(project: Path) -> None:
    """Have one run, `mine`, of two ranks, at a known place."""
    done = call(project, ["run", "own.yaml", "--ranks", "2"])
    assert done.returncode == 0, done.stderr
    [run] = (project / "runs").iterdir()
    run.rename(project / "runs/mine-0102-030405-abcd")


def of_another_user(project: Path) -> None:
    ran(project)
    run = project / "runs/mine-0102-030405-abcd"
    if os.geteuid() == 0:
        for path in (run, *run.rglob("*")):
            os.chown(path, 65534, 65534)
    else:
        run.chmod(0)


def without_slurm() -> list[str]:
    """Return a prefix that hides this machine's Slurm: daemons are found beside PATH."""
    names = ("slurmctld", "slurmd", "munged", "ip", *CLIENTS)
    found = [path for name in names if (path := shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"))]
    if not found:
        return []
    mount = shutil.which("mount") or "mount"
    hide = f'while [ "$1" != -- ]; do {mount} --bind /dev/null "$1" || exit; shift; done; shift; exec "$@"'
    become = [] if os.geteuid() == 0 else ["--map-root-user"]
    return [shutil.which("unshare") or "unshare", *become, "--mount", "/bin/sh", "-c", hide, "sh", *found, "--"]


TEMPLATE = (SOURCE / "jobs/ddp.sbatch").read_text()
MNIST = "data.dataset=mnist data.path=mnist"
