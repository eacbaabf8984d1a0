"""What a job does to itself through scontrol: back to the queue without some nodes, a comment, its release."""

import re
import sys
import time
from collections.abc import Callable, Sequence

from hpctrain.errors import ClusterError
from hpctrain.launch import slurm
from hpctrain.rundir import RunDir

_TRIES, _PAUSE_S = 12, 5.0
_NO_CONTROLLER = r"Unable to contact slurm controller|Connection (?:refused|timed out)|Socket timed out|Zero Bytes"


def requeue(job_id: str, outdated: Callable[[], bool]) -> str:
    """Put a running job back into the queue; return '' or why that was not done.

    Slurm answers by ending the job, so the caller should ignore TERM. A controller that is being restarted is asked
    again for a minute: the run is worth more than the wait. A job that runs elsewhere by now under the same id, because
    Slurm has given this node up, is left alone.
    """
    for attempt in range(_TRIES):
        if outdated():
            return "a newer attempt runs already"
        try:
            done = slurm.call(["scontrol", "requeue", job_id])
        except ClusterError as error:
            return error.message
        if done.returncode == 0:
            return ""
        if not re.search(_NO_CONTROLLER, done.stderr) or attempt == _TRIES - 1:
            break
        time.sleep(_PAUSE_S)
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"scontrol ended with exit code {done.returncode}"


def exclude(run: RunDir, job_id: str, asked: str | None, hosts: Sequence[str]) -> None:
    """Leave hosts out of the next start of a job that has just been requeued: of a running one Slurm takes no change.

    Args:
        run: its script is held against the cluster first: a job that fits nowhere would wait for ever.
        job_id: the job.
        asked: `slurm.exclude` of the config, which this would replace.
        hosts: names of nodes.
    """
    nodes = ",".join([*([asked] if asked else []), *hosts])
    try:
        fits = slurm.call(["sbatch", "--test-only", f"--exclude={nodes}", str(run.script)])
        done = (
            slurm.call(["scontrol", "update", f"job={job_id}", f"ExcNodeList={nodes}"]) if not fits.returncode else fits
        )
    except ClusterError as error:
        print(f"hpctrain: {', '.join(hosts)} cannot be left out: {error.message}", file=sys.stderr)
        return
    if done.returncode == 0:
        print(f"hpctrain: blamed twice, so the next attempt leaves out {', '.join(hosts)}", file=sys.stderr)
        return
    why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    print(f"hpctrain: {', '.join(hosts)} was blamed twice, but the job does not fit without it: {why}", file=sys.stderr)


def comment(job_id: str, text: str) -> None:
    """Let `squeue` and `sacct` show why a run has ended; a site that refuses costs nothing but that."""
    line = re.sub(r"[^ -~]|[\"'\\]", " ", text.partition("\n")[0])[:200]
    try:
        slurm.call(["scontrol", "update", f"job={job_id}", f"Comment=hpctrain: {line}"])
    except ClusterError:
        return


def let_go(job_id: str) -> None:
    """Release a job that was submitted as held.

    Raises:
        ClusterError: Slurm refused, or cannot be reached.
    """
    done = slurm.call(["scontrol", "release", job_id])
    if done.returncode != 0:
        raise ClusterError(
            f"job {job_id} is held, and Slurm does not release it: {done.stderr.strip()}",
            f"scontrol release {job_id} lets it go, scancel {job_id} ends it",
        )
