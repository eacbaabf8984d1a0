"""What Slurm's clients say when they refuse, in words of what to change."""

import re
from collections.abc import Sequence

from hpctrain.errors import ClusterError

INVALID_PARTITION = r"[Ii]nvalid partition"

_UNREACHABLE = (
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Connection refused|"
    r"slurm_persist_conn_open|Unable to establish configuration source|Unable to process configuration file|"
    r"Could not establish a configuration source|fetch_config"
)

# What Slurm writes -> what it means, and what to type or change. The first that matches counts.
_REASONS = (
    (_UNREACHABLE, "Slurm's controller cannot be reached", "hpctrain doctor shows what answers; try again later"),
    (
        r"[Mm]unge|Protocol authentication error|Invalid authentication credential",
        "Slurm does not accept this user's credentials",
        "ask your site's support: munge is not running here, or this machine is no login node",
    ),
    (
        r"[Ii]nvalid account",
        "slurm.account is missing, unknown or not allowed in this partition",
        "slurm.account=NAME; sacctmgr show associations user=$USER format=account,partition lists yours",
    ),
    (
        r"[Ii]nvalid qos",
        "slurm.qos is unknown or not allowed for this account",
        "slurm.qos=NAME; sacctmgr show associations user=$USER format=account,qos lists yours",
    ),
    (
        r"time limit is invalid|exceeds partition time limit|Requested time limit",
        "slurm.time is missing, or longer than the partition allows",
        "slurm.time=HH:MM:SS; sinfo -o '%P %l' shows the limits",
    ),
    (
        r"not permitted to use this partition|partition not available|is not in the user's group",
        "slurm.partition does not take jobs of this user now",
        "slurm.partition=NAME; hpctrain doctor lists the partitions",
    ),
    (
        r"[Ii]nvalid generic resource|gres specification|[Ii]nvalid Trackable RESource",
        "slurm.gpus_per_node or slurm.gres asks for what no node has",
        "hpctrain doctor shows the GPUs of each partition",
    ),
    (r"[Ii]nvalid feature", "slurm.constraint names a feature that no node has", "sinfo -o '%N %f' lists features"),
    (
        r"[Mm]emory specification|[Mm]emory required",
        "slurm.mem is more than a node has",
        "slurm.mem=64G; sinfo -o '%P %m' shows megabytes per node",
    ),
    (r"[Rr]eservation", "slurm.reservation is unknown or not for this user", "scontrol show reservation lists them"),
    (r"[Ii]nvalid node name", "slurm.nodelist or slurm.exclude names an unknown node", "sinfo -N lists the nodes"),
    (r"mail-type", "slurm.mail_type is not known to this Slurm", "slurm.mail_type=END,FAIL"),
    (r"[Dd]ependency", "slurm.dependency cannot be met", "squeue --me shows your jobs and their ids"),
    (
        r"node configuration is not available|Node count specification|More processors requested|too many|CPU count",
        "no nodes of the partition fit: slurm.nodes, gpus_per_node, ranks_per_node, cpus_per_task or mem is too large",
        "hpctrain doctor shows what the partitions have",
    ),
    (
        r"accounting/QOS policy|QOSMax|AssocMax|AssocGrp|QOSGrp|submit limit|maximum job",
        "a limit of your account or quality of service is used up",
        "squeue --me shows your jobs; ask for fewer nodes or a shorter slurm.time",
    ),
    (r"[Ii]nvalid user|Access/permission denied|not authori[sz]ed", "this user may not do that on this cluster", ""),
    (r"script|DOS line breaks", "Slurm does not accept the script", "--dry-run prints it"),
)


def explain(client: str, stderr: str, *, asked: str = "", partitions: Sequence[str] = ()) -> ClusterError:
    """Turn a client's refusal into an error that says what to change; Slurm's own words are kept.

    Args:
        client: its name.
        stderr: what it wrote.
        asked: the partition that was asked for.
        partitions: those that there are.
    """
    said = " ".join(_words(line) for line in stderr.splitlines() if line.strip()) or "no reason given"
    if re.search(INVALID_PARTITION, stderr):
        allowed = f"slurm.partition=NAME, one of: {', '.join(partitions)}" if partitions else "sinfo lists partitions"
        return ClusterError(f"{unknown_partition(asked, partitions)}\n  {client}: {said}", allowed)
    for pattern, meaning, hint in _REASONS:
        if re.search(pattern, stderr):
            return ClusterError(f"{meaning}\n  {client}: {said}", hint)
    return ClusterError(f"Slurm refused\n  {client}: {said}")


def _words(line: str) -> str:
    return re.sub(r"^(sbatch|squeue|sinfo|scancel|scontrol): |(error|fatal): |Batch job submission failed: ", "", line)


def unknown_partition(asked: str, partitions: Sequence[str]) -> str:
    """Say that there is no such partition, and which one may be meant."""
    import difflib

    near = difflib.get_close_matches(asked, partitions, n=1)
    return f"there is no partition {asked!r}" + (f"; did you mean {near[0]!r}?" if near else "")
