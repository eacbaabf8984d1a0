"""What Slurm's words mean: one table for states, one for the reasons of waiting or ending. Plain sentences."""

from typing import Literal

State = Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "REQUEUED"]

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
"""States that a run does not leave by itself."""

STATES: dict[str, tuple[State, str]] = {
    "PENDING": ("PENDING", "waits in the queue"),
    "CONFIGURING": ("PENDING", "its nodes are being made ready"),
    "RUNNING": ("RUNNING", ""),
    "COMPLETING": ("RUNNING", "is ending"),
    "SIGNALING": ("RUNNING", "is being signalled"),
    "STAGE_OUT": ("RUNNING", "its files are being copied out"),
    "RESIZING": ("RUNNING", "is changing its size"),
    "SUSPENDED": ("RUNNING", "is suspended: its processes are stopped, its nodes kept"),
    "STOPPED": ("RUNNING", "is stopped: its processes and nodes are kept"),
    "COMPLETED": ("COMPLETED", ""),
    "FAILED": ("FAILED", "the job ended with an error"),
    "TIMEOUT": ("FAILED", "the time limit was reached; slurm.time sets it, slurm.signal_s the warning before it"),
    "NODE_FAIL": ("FAILED", "a node failed"),
    "BOOT_FAIL": ("FAILED", "a node failed to boot"),
    "OUT_OF_MEMORY": ("FAILED", "out of memory; slurm.mem sets the limit"),
    "DEADLINE": ("FAILED", "its deadline passed before it could end"),
    "PREEMPTED": ("FAILED", "it was preempted, and this cluster cancels what it preempts"),
    "LAUNCH_FAILED": ("FAILED", "its script could not be started on the node"),
    "RECONFIG_FAIL": ("FAILED", "its nodes could not be made ready"),
    "CANCELLED": ("CANCELLED", "it was cancelled"),
    "REVOKED": ("CANCELLED", "another cluster of the federation runs it"),
    "REQUEUED": ("REQUEUED", "goes back to the queue"),
    "REQUEUE_FED": ("REQUEUED", "goes back to the queue of the federation"),
    "REQUEUE_HOLD": ("REQUEUED", "was requeued and is held; scontrol release JOB lets it go"),
    "RESV_DEL_HOLD": ("PENDING", "its reservation was deleted, so it is held; scontrol release JOB lets it go"),
    "SPECIAL_EXIT": ("REQUEUED", "was requeued and is held after a special exit; scontrol release JOB lets it go"),
}
"""State of Slurm -> state of a run, and a sentence about it."""

REASONS: dict[str, str] = {
    "Priority": "jobs of higher priority are before it",
    "Resources": "waits for nodes to become free",
    "BeginTime": "its earliest start has not come; a requeued job waits two minutes or so",
    "Dependency": "waits for the jobs it depends on",
    "DependencyNeverSatisfied": "the jobs it depends on failed, so it will never start; cancel it",
    "JobHeldUser": "held by its user; scontrol release JOB lets it go",
    "JobHeldAdmin": "held by an administrator; ask your site's support",
    "JobHoldMaxRequeue": "requeued too often for this site; scontrol release JOB lets it go",
    "JobLaunchFailure": "its script could not be started, or was killed; a file system may be missing on a node",
    "launch_failed_requeued_held": "could not be started and is held; scontrol release JOB lets it go",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs now",
    "PartitionNodeLimit": "asks for more nodes than the partition allows; cancel it and change slurm.nodes",
    "PartitionTimeLimit": "asks for more time than the partition allows; cancel it and change slurm.time",
    "PartitionConfig": "asks for what the partition does not have; cancel it and change the request",
    "ReqNodeNotAvail": "a node it needs is down, drained or reserved",
    "NodeDown": "a node it needs is down",
    "BadConstraints": "no node fits slurm.constraint and the rest of the request; cancel it",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": "its reservation was deleted; cancel it",
    "InvalidAccount": "its account is not valid; cancel it and change slurm.account",
    "InvalidQOS": "its quality of service is not valid; cancel it and change slurm.qos",
    "AccountNotAllowed": "its account may not use the partition; cancel it and change slurm.account",
    "QOSNotAllowed": "its quality of service may not be used in the partition; cancel it and change slurm.qos",
    "Licenses": "waits for licences to become free",
    "Prolog": "the site's prolog is running on its nodes",
    "Cleaning": "its last attempt is still being cleaned up",
    "FrontEndDown": "the front-end node is down",
    "SchedDefer": "will be looked at by the next round of the scheduler",
    "None": "",
    "NonZeroExitCode": "the batch script ended with an error",
    "RaisedSignal": "the batch script was killed by a signal",
    "TimeLimit": "the time limit was reached",
    "InactiveLimit": "it did nothing for longer than the site allows",
    "OutOfMemory": "out of memory; slurm.mem sets the limit",
    "NodeFail": "a node failed",
    "SystemFailure": "Slurm itself, a file system or the network failed",
    "JobArrayTaskLimit": "as many tasks of the array run as are allowed at once",
    "Preempted": "it was preempted",
    "DeadLine": "its deadline passed before it could end",
    "BurstBufferResources": "waits for burst buffer space",
    "BurstBufferStageIn": "its files are being copied in",
    "NodeNotAvail": "a node it needs is not available",
    "AssocGrpGRES": "the account's limit of GPUs is used up by running jobs",
    "QOSMaxGRESPerUser": "your limit of GPUs is used up by running jobs",
}
"""Reason of Slurm -> a sentence."""

# Limits come in dozens of names that are built alike: WHOSE + MAX or GRP + WHAT + LIMIT.
_LIMITS = (
    ("Assoc", "the account's limit of {what} is used up; it waits for other jobs to end"),
    ("QOS", "the limit of {what} of the quality of service is used up; it waits for other jobs to end"),
    ("Max", "a limit of {what} is used up"),
)
_WHAT = (
    ("Node", "nodes"),
    ("Cpu", "CPUs"),
    ("CPU", "CPUs"),
    ("GRES", "GPUs and other resources"),
    ("Mem", "memory"),
    ("Wall", "time"),
    ("Minutes", "CPU minutes"),
    ("Submit", "submitted jobs"),
    ("Job", "jobs"),
)


def our_state(slurm: str) -> State:
    """Return the state of a run for a state of Slurm; one that nobody knows counts as running."""
    return STATES.get(slurm, ("RUNNING", ""))[0]


def sentence(slurm_state: str, reason: str) -> str:
    """Say in plain words why a job is where it is; Slurm's own word is kept in brackets."""
    if reason in {"", "None"}:
        return STATES.get(slurm_state, ("RUNNING", f"Slurm says {slurm_state}"))[1]
    word = reason.split(",", 1)[0].strip()  # ReqNodeNotAvail, UnavailableNodes:n3
    text = REASONS.get(word, REASONS.get(word.replace(" ", "_"), "")) or _limit(word)
    return f"{text} ({reason})" if text else f"Slurm says {reason}"


def _limit(word: str) -> str:
    for prefix, text in _LIMITS:
        if word.startswith(prefix):
            what = next((name for part, name in _WHAT if part in word), "use")
            return text.format(what=what)
    return ""
