"""What this machine, its Slurm and this environment have. Nothing is imported or started that could take long."""

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import hpctrain
from hpctrain.dist import horovod_build, mpirun
from hpctrain.errors import ClusterError
from hpctrain.launch import slurm
from hpctrain.launch.render import template_file

_CLIENTS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
_GIB = 1 << 30


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: str
    value: str
    ok: bool = True
    """False where something will not work as it is."""
    hint: str = ""
    """What to type or change."""


def doctor(runs: Path = Path("runs")) -> list[Finding]:
    """Look at everything; `runs` is where run directories would go."""
    return [
        Finding(
            name="python",
            value=f"{platform.python_version()} {sys.executable}",
            ok=sys.version_info >= (3, 11),
            hint="" if sys.version_info >= (3, 11) else "hpctrain needs Python 3.11 or newer",
        ),
        Finding(name="hpctrain", value=f"{hpctrain.__version__} {Path(hpctrain.__file__).parent}"),
        _torch(),
        _horovod(),
        _mpi(),
        _gpus_here(),
        *_slurm(),
        _containers(),
        Finding(
            name="git",
            value=shutil.which("git") or "not found",
            hint="" if shutil.which("git") else "without git a run's code is recorded without its revision",
        ),
        _data(),
        _file_system(runs),
        _interfaces(),
    ]


def table(findings: Sequence[Finding]) -> str:
    """Return findings as aligned lines for people; what needs attention is marked, its hint below."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        first, *rest = finding.value.splitlines() or [""]
        lines.append(f"{' ' if finding.ok else '!'} {finding.name:<{width}}  {first}".rstrip())
        lines += [f"  {'':<{width}}  {line}" for line in rest]
        lines += [f"  {'':<{width}}  -> {finding.hint}"] if finding.hint else []
    return "\n".join(lines)


def _torch() -> Finding:
    """Read torch's version from its files: to import it takes more than a second."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return Finding(name="torch", value="not installed here", ok=False, hint="pip install torch, or set env.python")
    folder = Path(spec.origin).parent
    found = {"__version__": "unknown version", "cuda": "None"}
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    for line in text.splitlines():
        left, equals, right = line.partition(" = ")
        if equals:
            found[left.partition(":")[0].strip()] = right.strip().strip("'\"")
    cuda = f"CUDA {found['cuda']}" if found["cuda"] != "None" else "CPU only"
    return Finding(name="torch", value=f"{found['__version__']} ({cuda}) {folder}")


def _horovod() -> Finding:
    from importlib import metadata

    build = f"dist.strategy: horovod needs one: bash {template_file('build-horovod.sh')}"
    try:
        value = metadata.version("horovod")
    except metadata.PackageNotFoundError:
        return Finding(name="Horovod", value="not installed here", hint=build)
    if found := horovod_build.problem("gloo"):
        return Finding(name="Horovod", value=f"{value}: {found[0]}", ok=False, hint=build)
    return Finding(name="Horovod", value=value + (", without MPI" if horovod_build.problem("mpi") else ""))


def _mpi() -> Finding:
    from importlib import metadata

    program = mpirun.find("mpirun")
    values = [f"mpirun {program}" if program else "no mpirun"]
    try:
        values.append(f"mpi4py {metadata.version('mpi4py')}")
    except metadata.PackageNotFoundError:
        values.append("no mpi4py")
    hint = "" if program else f"dist.launcher: mpirun needs it: a module on a cluster; here {mpirun.GET_MPIRUN}"
    return Finding(name="MPI", value=", ".join(values), hint=hint)


def _gpus_here() -> Finding:
    count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return Finding(name="GPUs here", value=f"{count} NVIDIA" if count else "none; on a login node that is usual")


def _slurm() -> list[Finding]:
    missing = [client for client in _CLIENTS if shutil.which(client) is None]
    if missing:
        return [
            Finding(
                name="Slurm",
                value=f"not found: {', '.join(missing)}",
                ok=len(missing) == len(_CLIENTS),
                hint="load your site's Slurm module; without one: --scheduler local, or hpctrain sandbox",
            )
        ]
    try:
        version = slurm.version()
        controllers = slurm.controllers()
    except ClusterError as error:
        return [Finding(name="Slurm", value=error.message, ok=False, hint=error.hint)]
    up = any(line.endswith("UP") for line in controllers)
    findings = [
        Finding(name="Slurm", value=version),
        Finding(
            name="controller",
            value="; ".join(controllers) or "no answer",
            ok=up,
            hint="" if up else "is this a login node of the cluster? SLURM_CONF says which slurm.conf is read",
        ),
    ]
    return [*findings, *_cluster()] if up else findings


def _cluster() -> list[Finding]:
    try:
        partitions = slurm.partitions()
        findings = [
            Finding(
                name="partitions",
                value="\n".join(
                    f"{part.name}{'*' if part.default else ''}: {part.nodes} nodes, time {part.time_limit}, "
                    f"{', '.join(part.gres) or 'no GPUs'}, {part.state}"
                    for part in partitions
                )
                or "none",
                ok=bool(partitions),
            )
        ]
        accounting = slurm.has_accounting()
        findings += [
            Finding(name="accounting", value="sacct answers" if accounting else "none; hpctrain does without"),
            Finding(name="srun --mpi", value=", ".join(slurm.mpi_flavours()) or "none"),
        ]
    except ClusterError as error:
        return [Finding(name="partitions", value=error.message, ok=False, hint=error.hint)]
    return findings


def _containers() -> Finding:
    found = [name for name in ("apptainer", "singularity", "enroot") if shutil.which(name)]
    try:
        if shutil.which("srun") and slurm.has_pyxis():
            found.append("pyxis")
    except ClusterError as error:
        return Finding(name="containers", value=", ".join(found) or "none here", ok=False, hint=error.message)
    return Finding(name="containers", value=", ".join(found) or "none here; nodes may differ")


def _data() -> Finding:
    path = os.environ.get("HPCTRAIN_DATA")
    if path is None:
        return Finding(name="HPCTRAIN_DATA", value="not set", hint="export HPCTRAIN_DATA=DIR, or give data.path")
    ok = os.access(path, os.R_OK | os.X_OK) and Path(path).is_dir()
    return Finding(name="HPCTRAIN_DATA", value=path, ok=ok, hint="" if ok else "it is no directory that can be read")


def _file_system(runs: Path) -> Finding:
    """Where run directories go: they must be on a file system that all nodes share."""
    place = runs.absolute()
    while not place.exists():
        place = place.parent
    kind, ok = _mounted(place), os.access(place, os.W_OK)
    room = os.statvfs(place)
    hint = "" if ok else f"{place} cannot be written; give another place: runs=DIR"
    if ok and kind in {"tmpfs", "ramfs"}:
        hint = "memory of this machine, which other nodes do not see; give a shared place: runs=DIR"
    free = room.f_bavail * room.f_frsize / _GIB
    return Finding(name="runs", value=f"{runs.absolute()} on {kind}, {free:.1f} GiB free", ok=ok, hint=hint)


def _mounted(path: Path) -> str:
    """Return the kind of file system that holds a path."""
    kinds = {}
    try:
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, point, kind, *_ = line.split(" ")
            kinds[point] = kind
    except OSError:
        return "an unknown file system"
    return next((kinds[str(place)] for place in (path, *path.parents) if str(place) in kinds), "an unknown file system")


def _interfaces() -> Finding:
    """Name the network interfaces and, where the driver tells, their speed."""
    found = []
    for folder in sorted(Path("/sys/class/net").glob("*")):
        if folder.name == "lo":
            continue
        facts = []
        for name, unit in (("operstate", ""), ("speed", " Mb/s")):
            try:
                text = (folder / name).read_text().strip()
            except OSError:  # the speed of what is down cannot be read
                continue
            if text not in {"", "-1", "unknown"}:
                facts.append(text + unit)
        found.append(f"{folder.name} ({', '.join(facts)})" if facts else folder.name)
    return Finding(name="interfaces", value=", ".join(found) or "none but lo")
