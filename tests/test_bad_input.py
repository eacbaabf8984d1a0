"""Bad input through the real command line: what it says, how it exits, and that nothing half-made stays.

`golden/bad_input.txt` holds the cases with their whole output, as a catalogue to read. A case is:

    === what is wrong
    with: SETUP ...            functions below that prepare the project
    | line                     added to mini.yaml; with `>` lines instead they are all of it
    $ hpctrain check mini.yaml
    exit 2
    what it says

Each runs in a project of its own, with a PATH that holds nothing but the fakes of the case.
"""

import difflib
import gzip
import json
import math
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import hpctrain
from hpctrain.sandbox.spec import CLIENTS

GOLDEN = Path(__file__).parent / "golden/bad_input.txt"
RENEW = "HPCTRAIN_RENEW_GOLDEN=1 python -m pytest tests/test_bad_input.py"
SOURCE = Path(hpctrain.__file__).parents[1]

MINI = """\
name: mini
data: {dataset: digits}
model: {name: mlp}
batch: {global: 48}
optim: {lr: 0.1}
train: {epochs: 1}
"""
MODELS = """\
import os, signal

def build():
    if os.environ["RANK"] == "1":
        raise ValueError("no weights")
    signal.pause()
    os._exit(0)

def width():
    return 3
"""
SINFO = r"""#!/bin/sh
printf 'main*\0372\0371-00:00:00\037gpu:a100:4\037up\nlong\0374\0377-00:00:00\037(null)\037up\n'
"""
DOWN = "#!/bin/sh\necho 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1"
REFUSED = "#!/bin/sh\necho 'sbatch: error: Batch job submission failed: Invalid account specified' >&2; exit 1"
TEMPLATE = (SOURCE / "jobs/ddp.sbatch").read_text()
TORCH = {"models", "no_driver"}
OLD_RUN = "runs/mine-0102-030405-abcd"


def idx(*shape: int) -> bytes:
    """Return an IDX file of zeros."""
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape) + bytes(math.prod(shape))


IMAGES, LABELS, FOUR = "mnist/train-images-idx3-ubyte", "mnist/train-labels-idx1-ubyte", idx(4, 28, 28)
TEST_IMAGES, TEST_LABELS = "mnist/t10k-images-idx3-ubyte", "mnist/t10k-labels-idx1-ubyte"
BOMB = [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdef", "bcdefg", strict=True)]

FILES: dict[str, dict[str, str | bytes | None]] = {
    "a_file": {"file": ""},
    "latin1": {"mini.yaml": MINI.replace("mini", "m\xfcni").encode("latin-1")},
    "huge": {"mini.yaml": MINI + "#" * 2**20},
    "bomb": {"mini.yaml": "\n".join([MINI + "a: &a [x, x, x, x, x, x, x, x, x]", *BOMB])},
    "models": {"models.py": MODELS},
    "mnist": {IMAGES: FOUR, LABELS: idx(4), TEST_IMAGES: idx(2, 28, 28), TEST_LABELS: idx(2)},
    "truncated": {IMAGES: FOUR[:-1]},
    "truncated_gz": {IMAGES: None, f"{IMAGES}.gz": gzip.compress(FOUR, mtime=0)[:-6]},
    "no_gz": {IMAGES: None, f"{IMAGES}.gz": FOUR},
    "wrong_magic": {IMAGES: b"\x89PNG" + FOUR[4:]},
    "few_labels": {LABELS: idx(3)},
    "no_labels": {TEST_LABELS: None},
    "table": {"t.csv": "sex,length,rings\nM,0.5,15\nF,?,7\n"},
    "cifar": {"cifar/batches.meta.txt": "airplane automobile bird cat deer dog frog horse ship truck"},
    "cluster": {"bin/sinfo": SINFO, "bin/sbatch": REFUSED},
    "mute": {"bin/sbatch": "#!/bin/sh\necho welcome"},
    "down": dict.fromkeys(("bin/sinfo", "bin/sbatch", "bin/squeue", "bin/scancel", "bin/scontrol"), DOWN),
    "unknown_place": {"site.sbatch": TEMPLATE.replace("bash\n", "bash\n# @{partition}\n", 1)},
    "missing_place": {"site.sbatch": TEMPLATE.replace("@{setup}", "")},
}
"""Setups that do nothing but write files, or remove them; the others are methods of `Project`."""


@dataclass
class Case:
    name: str
    setups: list[str] = field(default_factory=list)
    config: str = MINI
    argv: list[str] = field(default_factory=list)
    code: int = -1
    header: list[str] = field(default_factory=list)
    """The lines up to `exit`, as they stand."""
    said: str = ""


def read_case(text: str) -> Case:
    name, *lines = text.split("\n")
    case = Case(name)
    for number, line in enumerate(lines, 1):
        kind, _, rest = line.partition(" ")
        if kind == "with:":
            case.setups = rest.split()
        elif kind in {"|", ">"}:
            case.config = ("" if kind == ">" and case.config is MINI else case.config) + rest + "\n"
        elif kind == "$":
            case.argv = shlex.split(rest)[1:]
        elif kind == "exit":
            case.code, case.header, case.said = int(rest), lines[:number], "\n".join(lines[number:]).rstrip("\n") + "\n"
            break
    return case


CASES = [read_case(text) for text in GOLDEN.read_text().split("=== ")[1:]]


class Project:
    """A directory to run hpctrain in; the setups of a case are its methods."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bin").mkdir(parents=True)
        self.prefix: list[str] = []
        self.env = {
            "PATH": str(path / "bin"),
            "HOME": str(path),
            "XDG_STATE_HOME": str(path / "state"),
            "SLURM_CONF": str(path / "slurm.conf"),  # a sandbox of the machine is none of ours
            "PYTHONPATH": str(SOURCE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        }
        self.file("mine.yaml", "name: mine\ncommand: [python, -c, pass]\n")

    def call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [*self.prefix, sys.executable, "-m", "hpctrain", *argv]
        return subprocess.run(command, cwd=self.path, env=self.env, capture_output=True, text=True, check=False)

    def file(self, name: str, content: str | bytes = "") -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def set_up(self, name: str) -> None:
        if name not in FILES:
            getattr(self, name)()
        for path, content in FILES.get(name, {}).items():
            if content is None:
                (self.path / path).unlink()
            else:
                self.file(path, content).chmod(0o755)

    def tree(self) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))

    def processes(self) -> list[bytes]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.fsencode(self.path) in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes())
            except OSError:  # gone, or another user's
                continue
        return found

    def shown(self, text: str) -> str:
        """Put placeholders where each machine and run has another text."""
        text = text.replace(str(self.path), "PROJECT").replace(str(SOURCE), "SOURCE")
        text = re.sub(r"-\d{4}-\d{6}-[0-9a-f]{4}", "-ID", text)
        text = re.sub(r"world proven; \S+ to \S+", "world proven; INTERFACE to ADDRESS", text)
        return re.sub(rf"\b{re.escape(platform.node())}\b", "HOST", text)

    def plain(self) -> None:
        """Make root a user like any other as to what it may read and write; others are that already."""
        if os.geteuid() == 0:
            self.prefix = [str(shutil.which("setpriv")), "--bounding-set=-dac_override,-dac_read_search", "--"]

    def unreadable_config(self) -> None:
        (self.path / "mini.yaml").chmod(0)
        self.plain()

    def unreadable_file(self) -> None:
        self.file("weights.bin").chmod(0)
        self.plain()

    def locked(self) -> None:
        (self.path / "locked").mkdir(mode=0o500)
        self.plain()

    def without_slurm(self) -> None:
        """Hide this machine's Slurm in a mount namespace: daemons are looked for beside PATH, too."""
        names, folders = ("slurmctld", "slurmd", "munged", "ip", *CLIENTS), "/usr/sbin:/sbin:/usr/bin:/bin"
        if not (there := [found for name in names if (found := shutil.which(name, path=folders))]):
            return
        hide = 'while [ "$1" != -- ]; do "$mount" --bind /dev/null "$1" || exit 99; shift; done; shift; exec "$@"'
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        unshare, self.env["mount"] = (str(shutil.which(name, path=folders)) for name in ("unshare", "mount"))
        if subprocess.run([unshare, *user, "--mount", "true"], capture_output=True, check=False).returncode:
            pytest.skip("mount namespaces are refused here, so Slurm cannot be hidden")
        self.prefix = [unshare, *user, "--mount", "/bin/sh", "-c", hide, "sh", *there, "--"]

    def ran(self) -> None:
        """Have a run of two ranks, `mine`, with a name that does not change."""
        done = self.call("run", "mine.yaml", "--ranks", "2")
        assert done.returncode == 0, done.stderr
        next((self.path / "runs").iterdir()).rename(self.path / OLD_RUN)

    def not_mine(self) -> None:
        self.ran()
        run = self.path / OLD_RUN
        if os.geteuid() == 0:
            shutil.chown(run, 65534, 65534)
        else:
            run.chmod(0)
        self.plain()

    def unreadable_images(self) -> None:
        (self.path / "mnist/train-images-idx3-ubyte").chmod(0)
        self.plain()

    def empty_data(self) -> None:
        self.env["HPCTRAIN_DATA"] = str(self.path / "nowhere")

    def no_driver(self) -> None:
        if Path("/dev/nvidiactl").exists():
            pytest.skip("there is a GPU here")

    def no_gpu(self) -> None:
        self.env["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path / "project")
    yield project
    for name in (OLD_RUN, "locked"):
        if (project.path / name).exists():
            (project.path / name).chmod(0o700)


def check_what_is_left(project: Project, before: list[str], code: int) -> None:
    """A run that failed is whole and says so; of anything else there is no trace. No process lives on."""
    deadline = time.monotonic() + 5
    while (left := project.processes()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
    if code != 4:
        assert project.tree() == before
        return
    [row] = json.loads(project.call("status", "--json").stdout)
    assert (row["state"], row["attempt"], row["cause"]) == ("FAILED", 1, "error")
    files = ("config.yaml", "plan.json", "env.json", "job.json", "job.sbatch", "attempts/1/outcome.json")
    assert all(Path(row["run"], name).is_file() for name in files)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.torch] if TORCH & {*case.setups} else []) for case in CASES],
)
def test_bad_input_is_explained_and_leaves_nothing_half_made(project, case):
    project.file("mini.yaml", case.config)
    for setup in case.setups:
        project.set_up(setup)
    before = project.tree()
    done = project.call(*case.argv)
    said = project.shown(done.stderr)
    assert (done.returncode, done.stdout) == (case.code, ""), said
    check_what_is_left(project, before, case.code)
    if os.environ.get("HPCTRAIN_RENEW_GOLDEN"):
        renew(case, said)
        case.said = said
    lines = (text.splitlines(keepends=True) for text in (case.said, said))
    diff = "".join(difflib.unified_diff(*lines, "golden", "now"))
    assert not diff, f"{diff}\nif that is meant: {RENEW}"


def renew(case: Case, said: str) -> None:
    old, head = GOLDEN.read_text(), "\n".join([f"=== {case.name}", *case.header, ""])
    start = old.index(head) + len(head)
    end = old.find("\n=== ", start - 1)
    GOLDEN.write_text(f"{old[:start]}{said}{old[end:] if end >= 0 else ''}")
