"""What a rank shows of itself in the world proof, and what rank 0 holds that against."""

import hashlib
import os
from collections.abc import Sequence

import msgspec

from hpctrain.errors import WorldError
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir, changed_since, read_json
from hpctrain.world import World


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank shows of itself."""

    rank: int
    size: int
    local_rank: int
    host: str
    job: str
    attempt: int
    config: str
    code: str
    device: str
    cpus: tuple[int, ...]


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What rank 0 holds the claims against."""

    plan: Plan
    hosts: tuple[str, ...]
    cpus_per_task: int | None
    timeout_s: float

    def host_of(self, rank: int) -> str:
        """Name the node on which a rank should be."""
        node = rank // self.plan.ranks_per_node
        return self.hosts[node] if node < len(self.hosts) else f"node {node}"


def claim(run: RunDir, attempt: int, world: World, plan: Plan) -> Claim:
    """Say what this rank is.

    Raises:
        WorldError: its code is not what was submitted, or it was promised a GPU and sees none.
    """
    code = ""
    if run.code_sums.exists():  # an ejected script has no snapshot
        sums = run.code_sums.read_bytes()
        code = hashlib.sha256(sums).hexdigest()
        # one rank of a node reads the snapshot: the others see the same files
        changed = changed_since(run.code, os.fsdecode(sums)) if world.local_rank == 0 else []
        if changed or code != read_json(run.env).get("code"):
            raise WorldError(
                f"{run.code} on {world.host} is not the code that was submitted: "
                f"{', '.join(changed[:5]) or run.code_sums.name} {'was' if len(changed) < 2 else 'were'} changed",
                "submit again to run changed code",
            )
    return Claim(
        rank=world.rank,
        size=world.size,
        local_rank=world.local_rank,
        host=world.host,
        job=os.environ.get("SLURM_JOB_ID") or str(read_json(run.begin(attempt)).get("job_id", "")),
        attempt=attempt,
        config=hashlib.sha256(run.config.read_bytes() + run.plan.read_bytes()).hexdigest(),
        code=code,
        device=_device(plan, world),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
    )


def _device(plan: Plan, world: World) -> str:
    """Name the device this rank will take, without asking the driver: torch checks later that it works."""
    if plan.device == "cpu":
        return "cpu"
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return f"cuda:{world.local_rank}"
    if not visible:
        raise WorldError(
            f"{world} was promised a GPU, but CUDA_VISIBLE_DEVICES is empty",
            "ask for GPUs with slurm.gpus_per_node=N, or run on CPUs with device=cpu",
        )
    # a site that binds one GPU to each task shows each rank only its own
    return "cuda:" + (visible[0] if len(visible) == 1 else visible[world.local_rank % len(visible)])


def check_size(world: World, expected: Expectation) -> None:
    """Refuse a world of another size at once: N worlds of size 1 never meet, so no rank 0 could tell.

    Raises:
        WorldError: naming the ranks that are missing.
    """
    planned = expected.plan.ranks
    if world.size == planned:
        return
    if world.size < planned:
        missing = ", ".join(f"rank {rank} ({expected.host_of(rank)})" for rank in range(world.size, planned)[:8])
        detail = f"missing: {missing}{', ...' if planned - world.size > 8 else ''}"
    else:
        detail = f"{world.size - planned} too many"
    raise WorldError(
        f"{world.launcher} started {world.size} ranks, the plan has {planned}; {detail}",
        "start the run with `hpctrain submit` or `sbatch RUN/job.sbatch`; change the number with slurm.nodes=N, "
        "slurm.ranks_per_node=N or --ranks N",
    )


def problems_of(claims: Sequence[Claim], expected: Expectation) -> list[str]:
    """Compare claims with the plan and with each other; rank 0's claim comes first."""
    reference, found = claims[0], []
    seen: dict[int, Claim] = {}
    devices: dict[tuple[str, str], int] = {}
    for claim in claims:
        who = f"rank {claim.rank} ({claim.host})"
        if claim.rank in seen:
            found.append(f"{who} is there twice, also on {seen[claim.rank].host}")
        seen[claim.rank] = claim
        if not 0 <= claim.rank < expected.plan.ranks:
            found.append(f"{who} is none of the planned ranks 0 to {expected.plan.ranks - 1}")
        for field in ("size", "job", "attempt", "config", "code"):
            mine, other = getattr(reference, field), getattr(claim, field)
            if mine != other:
                found.append(f"{who} has another {field} than rank 0 ({reference.host}): {other} instead of {mine}")
        if claim.device != "cpu":
            rival = devices.setdefault((claim.host, claim.device), claim.rank)
            if rival != claim.rank:
                found.append(f"{who} has the same device as rank {rival}: {claim.device}")
        wanted = expected.cpus_per_task
        if wanted is not None and len(claim.cpus) < min(wanted, os.cpu_count() or 1):
            found.append(f"{who} may run on {len(claim.cpus)} CPUs, {wanted} were asked for; export SRUN_CPUS_PER_TASK")
    return found


def misplaced(claims: Sequence[Claim], expected: Expectation) -> list[str]:
    """Name nodes that hold other ranks than planned: the ranks of a node are neighbours, and each node has as many."""
    found, per_node = [], expected.plan.ranks_per_node
    for first in range(0, expected.plan.ranks, per_node):
        hosts = [claim.host for claim in claims if first <= claim.rank < first + per_node]
        if len(set(hosts)) > 1:
            found.append(
                f"ranks {first} to {first + per_node - 1} should share a node, they are on "
                f"{', '.join(sorted(set(hosts)))}; start them block by block (srun --distribution=block, "
                f"mpirun --map-by ppr:{per_node}:node)"
            )
    if not found and len({claim.host for claim in claims}) != expected.plan.nodes:
        found.append(f"{expected.plan.nodes} nodes are planned, the ranks are on {len({c.host for c in claims})}")
    return found
