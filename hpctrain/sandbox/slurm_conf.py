"""The text of every configuration file of a sandbox; pure functions."""

import re
from collections.abc import Sequence
from pathlib import Path

from hpctrain.sandbox.root import Root
from hpctrain.sandbox.spec import Spec

CLUSTER = "sandbox"
LOGIN = "login"
LOGIN_ADDRESS = 254
SLURMCTLD_PORT = 6817
SLURMD_PORT = 6818
SLURMDBD_PORT = 6819
URGENT = "urgent"
MEMORY_MB = 1_000_000  # a job that asks for a cluster's memory shall start here, too; nothing enforces it

# A key that Slurm does not know kills every client, so these are keys of Slurm 22.05 that are still there.
_SETTINGS = f"""\
AuthType=auth/munge
CredType=cred/munge
SlurmctldPort={SLURMCTLD_PORT}
SlurmdPort={SLURMD_PORT}

# no cgroups, no binding: the CPUs are more than the machine has
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
SlurmdParameters=config_overrides
MpiDefault=none

SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
JobRequeue=1

# a lost node is DOWN after 15 s, and back as soon as it answers
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=10
TCPTimeout=1
MessageTimeout=5
BatchStartTimeout=10
UnkillableStepTimeout=120
KillWait=3
CompleteWait=0
InactiveLimit=0
MinJobAge=300
SlurmctldDebug=verbose
SlurmdDebug=verbose
"""


def slurm_conf(spec: Spec, root: Root, user: str) -> str:
    """Return slurm.conf; all daemons run as `user`."""
    names, addresses = _range("n", spec.nodes), _range(f"{spec.network}.", spec.nodes)
    gpus = spec.gpus_per_node
    paths = f"""\
ClusterName={CLUSTER}
SlurmctldHost={LOGIN}({spec.network}.{LOGIN_ADDRESS})
SlurmUser={user}
SlurmdUser={user}
# cred_expire: a requeued job waits this long; Slurm takes less than 5 for 120
AuthInfo=socket={root.munge_socket},cred_expire=5
StateSaveLocation={root.path}/state
SlurmdSpoolDir={root.path}/spool/%n
SlurmctldPidFile={root.path}/run/slurmctld.pid
SlurmdPidFile={root.path}/run/slurmd.%n.pid
SlurmctldLogFile={root.log("slurmctld")}
SlurmdLogFile={root.path}/log/slurmd.%n.log
"""
    # NodeAddr: slurmctld would look names up, 10 s for each
    nodes = (
        f"NodeName={names} NodeAddr={addresses} CPUs={spec.cpus_per_node} Boards=1 SocketsPerBoard=1 "
        f"CoresPerSocket={spec.cpus_per_node} ThreadsPerCore=1 RealMemory={MEMORY_MB}{f' Gres=gpu:{gpus}' * bool(gpus)}"
    )
    gres = ["GresTypes=gpu"] if gpus else []
    accounting = _accounting(spec, root) if spec.accounting else []
    return "\n".join([paths, _SETTINGS, *accounting, *gres, nodes, *_partitions(spec), ""])


def _partitions(spec: Spec) -> list[str]:
    lines = [
        f"PartitionName={name} Nodes=ALL Default={'NO' if number else 'YES'} MaxTime=INFINITE PriorityTier=1"
        for number, name in enumerate(spec.partitions)
    ]
    if URGENT not in spec.partitions:  # what preempts the others
        lines.append(f"PartitionName={URGENT} Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF")
    return lines


def _accounting(spec: Spec, root: Root) -> list[str]:
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={spec.network}.{LOGIN_ADDRESS}",
        f"AccountingStoragePort={SLURMDBD_PORT}",
        f"AccountingStoragePass={root.munge_socket}",  # or it asks the machine's munge
        *(["AccountingStorageTRES=gres/gpu"] if spec.gpus_per_node else []),
    ]


def gres_conf(spec: Spec, devices: Sequence[Path]) -> str:
    """Return gres.conf, in which `devices` (the same on every node) stand for GPUs."""
    names = _range("n", spec.nodes)
    return "".join(f"NodeName={names} Name=gpu File={device}\n" for device in devices)


def cgroup_conf() -> str:
    """Return cgroup.conf: slurmd loads this plugin even if nothing uses it, and `autodetect` wants systemd."""
    return "CgroupPlugin=cgroup/v1\n"


def mpi_conf() -> str:
    """Return mpi.conf: PMIx makes a directory of the same name on every node, so not in a /tmp that they share."""
    return "PMIxCliTmpDirBase=/dev/shm\n"


def hosts(spec: Spec) -> str:
    """Return /etc/hosts of the login node and of every node."""
    nodes = [f"{spec.network}.{number} {name}" for number, name in enumerate(spec.node_names, start=1)]
    lines = ["127.0.0.1 localhost", "::1 localhost", f"{spec.network}.{LOGIN_ADDRESS} {LOGIN}", *nodes]
    return "".join(f"{line}\n" for line in lines)


def nsswitch_conf(of_the_machine: str) -> str:
    """Return nsswitch.conf with host names from the hosts file only: a DNS look-up would wait 10 s for nobody."""
    kept = [line for line in of_the_machine.splitlines() if not re.match(r"\s*hosts\s*:", line)]
    return "".join(f"{line}\n" for line in [*kept, "hosts: files"])


def slurmdbd_conf(spec: Spec, root: Root, user: str, *, database_port: int, password: str) -> str:
    """Return slurmdbd.conf, which must not be readable by others."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={root.munge_socket}
DbdHost={LOGIN}
DbdAddr={spec.network}.{LOGIN_ADDRESS}
DbdPort={SLURMDBD_PORT}
SlurmUser={user}
LogFile={root.log("slurmdbd")}
PidFile={root.path}/run/slurmdbd.pid
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""


def _range(prefix: str, count: int) -> str:
    return f"{prefix}1" if count == 1 else f"{prefix}[1-{count}]"
