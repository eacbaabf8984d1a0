"""The only caller of sbatch, squeue, sacct, scontrol, scancel and sinfo.

Every call has a time limit and a clean environment: SBATCH_* and SLURM_* variables of an outer job or of a profile
would override what the script says. Nothing here needs accounting (slurmdbd); many clusters have none.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from hpctrain.errors import ClusterError

SUBMIT_TIMEOUT_S = 90
"""Slurm's clients give up a dead controller after about 10 s, or three times that with a backup controller."""
ASK_TIMEOUT_S = 45

_PERHAPS_QUEUED = "if squeue --me shows the job, end it: scancel ID; its run directory is gone"
_SEPARATOR = "\x1f"  # the ASCII unit separator: no name, reason or host list holds it
_NOWHERE = "/nowhere/bin/sbatch"
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
_DROPPED = ("SBATCH_", "SLURM_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What Slurm knows of a job."""

    job_id: str
    state: str
    """As Slurm writes it, such as RUNNING or NODE_FAIL."""
    reason: str = ""
    """Why it waits or has ended, such as Priority; empty if Slurm gives none."""
    node_count: int = 0
    node_list: str = ""
    """Slurm's own form, such as n[1-4]; empty while it waits."""
    restarts: int | None = None
    """How often Slurm has restarted it; None where only accounting still knows the job."""
    exit_code: int | None = None
    """Exit code of the batch script, once it has ended."""


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition as sinfo shows it."""

    name: str
    default: bool
    nodes: int
    time_limit: str
    gres: tuple[str, ...]
    """Generic resources of its kinds of nodes, such as gpu:a100:4."""
    state: str
    """up, down, drain or inactive."""


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for Slurm's clients, without the variables that change what they do."""
    kept = {name: text for name, text in env.items() if name in _KEPT or not name.startswith(_DROPPED)}
    return kept | {"LC_ALL": kept.get("LC_ALL", "C.UTF-8")}


def sandbox() -> str:
    """Name the sandbox that Slurm's clients talk to, by its configuration; '' for a real Slurm.

    Every sandbox counts its jobs from 1, so that a job id alone does not tell whose job it is.
    """
    conf = os.environ.get("SLURM_CONF") or os.path.abspath(f"{_sbatch()}/../../etc/slurm.conf")  # noqa: PTH100
    return conf if "/hpctrain-sandbox-" in conf else ""


def available() -> bool:
    """Say whether sbatch is on PATH."""
    return _sbatch() != _NOWHERE


def _sbatch() -> str:
    """Return the path of the sbatch that would be called."""
    paths = (os.path.join(folder, "sbatch") for folder in os.get_exec_path())  # noqa: PTH118 - asked often
    return next((path for path in paths if os.access(path, os.X_OK)), _NOWHERE)


def call(argv: Sequence[str], *, timeout_s: float = ASK_TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
    """Run one of Slurm's clients.

    Raises:
        ClusterError: it is not installed, or did not answer in time.
    """
    try:
        return subprocess.run(
            list(argv),
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{argv[0]} is not installed here, or not on PATH",
            "load your site's Slurm module, or run on this machine: --scheduler local",
        ) from None
    except PermissionError:
        raise ClusterError(f"{argv[0]} may not be executed here") from None
    except subprocess.TimeoutExpired:
        hint = _PERHAPS_QUEUED if argv[0] == "sbatch" else "hpctrain doctor shows what answers; try again later"
        raise ClusterError(f"{argv[0]} did not answer in {timeout_s:g} s", hint) from None


def submit(script: Path, *, hold: bool = False) -> str:
    """Queue a batch script; return its job id. A job on hold waits until `scontrol release`.

    Raises:
        ClusterError: Slurm refused it, or cannot be reached.
    """
    done = call(["sbatch", "--parsable", *(["--hold"] if hold else []), str(script)], timeout_s=SUBMIT_TIMEOUT_S)
    if done.returncode != 0:
        raise _refusal(script, done.stderr)
    # Sites wrap sbatch and print banners; with several clusters `;cluster` follows the id.
    for line in reversed(done.stdout.splitlines()):
        if match := re.fullmatch(r"(\d+)(;\S*)?", line.strip()):
            return match[1]
    raise ClusterError(f"sbatch answered without a job id: {done.stdout.strip()[:200]!r}", _PERHAPS_QUEUED)


def _refusal(script: Path, stderr: str) -> ClusterError:
    from hpctrain.launch.refusal import INVALID_PARTITION, explain

    if not re.search(INVALID_PARTITION, stderr):
        return explain("sbatch", stderr)
    asked = re.search(r"^#SBATCH --partition=(\S+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    try:
        names = [partition.name for partition in partitions()]
    except ClusterError:  # then without the list
        names = []
    return explain("sbatch", stderr, asked=asked[1] if asked else "", partitions=names)


def jobs(ids: Iterable[str]) -> dict[str, Job]:
    """Ask for jobs, by one call of squeue; those that it has forgotten by one of sacct. Unknown ones are left out.

    `scontrol show job` would know no more than `squeue -t all`: both ask the controller, which forgets a job after
    MinJobAge (300 s by default).

    Raises:
        ClusterError: the controller cannot be asked.
    """
    wanted = [job_id for job_id in dict.fromkeys(ids) if re.fullmatch(r"\d+", job_id)]
    found = _from_squeue(wanted) if wanted else {}
    forgotten = [job_id for job_id in wanted if job_id not in found]
    return found | _from_sacct(forgotten) if forgotten else found


def _from_squeue(ids: Sequence[str]) -> dict[str, Job]:
    fields = ("JobID", "State", "Reason", "NumNodes", "NodeList", "RestartCnt", "exit_code")
    shape = ",".join(f"{field}:{_SEPARATOR}" for field in fields)
    done = call(["squeue", "--noheader", "--states=all", f"--jobs={','.join(ids)}", f"--Format={shape}"])
    if done.returncode != 0:
        if "Invalid job id" in done.stderr:  # how it answers when the only job asked for is unknown
            return {}
        from hpctrain.launch.refusal import explain

        raise explain("squeue", done.stderr)
    found = {}
    for line in done.stdout.splitlines():
        job_id, state, reason, count, hosts, restarts, status = (line.split(_SEPARATOR) + [""] * 7)[:7]
        found[job_id] = Job(
            job_id=job_id,
            state=state,
            reason="" if reason == "None" else reason,
            node_count=int(count) if count.isdigit() else 0,
            node_list=hosts,
            restarts=int(restarts) if restarts.isdigit() else None,
            exit_code=_script_code(status),
        )
    return found


def _script_code(status: str) -> int | None:
    """Read what squeue calls exit_code: a wait status."""
    return os.waitstatus_to_exitcode(int(status)) if status.isdigit() and int(status) < 0x10000 else None


def _from_sacct(ids: Sequence[str]) -> dict[str, Job]:
    fields = "JobIDRaw,State,NNodes,NodeList,ExitCode"
    argv = ["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={','.join(ids)}", f"--format={fields}"]
    try:
        done = call(argv)
    except ClusterError:  # no sacct here: the cluster keeps no accounts
        return {}
    if done.returncode != 0:  # accounting is off, or its database is down
        return {}
    found = {}
    for line in done.stdout.splitlines():
        job_id, state, count, hosts, code = (line.split("|") + [""] * 5)[:5]
        head = code.partition(":")[0]
        found[job_id] = Job(
            job_id=job_id,
            state=state.partition(" ")[0],  # CANCELLED by 1000
            node_count=int(count) if count.isdigit() else 0,
            node_list="" if hosts == "None assigned" else hosts,
            exit_code=int(head) if head.isdigit() else None,
        )
    return {job_id: job for job_id, job in found.items() if job_id in ids}


def cancel(job_id: str) -> None:
    """Cancel a job; one that has ended, or that Slurm has forgotten, is no error.

    Raises:
        ClusterError: Slurm refused, or cannot be reached.
    """
    done = call(["scancel", job_id])
    if done.returncode != 0 and not re.search(r"Invalid job id|already complet", done.stderr):
        from hpctrain.launch.refusal import explain

        raise explain("scancel", done.stderr)


def partitions() -> list[Partition]:
    """Ask sinfo for the partitions that this user may see, in its order.

    Raises:
        ClusterError: the controller cannot be asked.
    """
    done = call(["sinfo", "--noheader", f"--format={_SEPARATOR.join(('%P', '%D', '%l', '%G', '%a'))}"])
    if done.returncode != 0:
        from hpctrain.launch.refusal import explain

        raise explain("sinfo", done.stderr)
    found: dict[str, Partition] = {}
    for line in done.stdout.splitlines():  # a line for each kind of node of a partition, and for each of its states
        label, count, limit, gres, state = (line.split(_SEPARATOR) + [""] * 5)[:5]
        name, nodes = label.rstrip("*"), int(count) if count.isdigit() else 0
        before = found.get(name)
        kinds = dict.fromkeys([*(before.gres if before else ()), *([] if gres == "(null)" else [gres])])
        found[name] = Partition(
            name=name,
            default=label.endswith("*"),
            nodes=nodes + (before.nodes if before else 0),
            time_limit=limit,
            gres=tuple(kinds),
            state=state,
        )
    return list(found.values())


def version() -> str:
    """Return what `sinfo --version` says, such as `slurm 22.05.8`."""
    return call(["sinfo", "--version"]).stdout.strip()


def controllers() -> list[str]:
    """Return the lines of `scontrol ping`, such as `Slurmctld(primary) at ctl is UP`."""
    return [line.strip() for line in call(["scontrol", "ping"]).stdout.splitlines() if line.strip()]


def has_accounting() -> bool:
    """Say whether sacct answers."""
    try:
        return call(["sacct", "--noheader", "--allocations", "--starttime=now"]).returncode == 0
    except ClusterError:
        return False


def mpi_flavours() -> list[str]:
    """Return the plugins of `srun --mpi=`."""
    done = call(["srun", "--mpi=list"])
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]  # to stderr until 22.05
    # newer ones add: `specific pmix plugin versions available: pmix_v4,pmix_v5`
    names = [name.strip() for line in lines for name in line.rpartition("available:")[2].split(",")]
    return [name for name in names if re.fullmatch(r"[a-z0-9_]+", name)]


def has_pyxis() -> bool:
    """Say whether srun has the options of the pyxis plugin."""
    return "--container-mounts" in call(["srun", "--help"]).stdout
