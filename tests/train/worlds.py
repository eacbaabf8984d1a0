"""Planned worlds, and what ranks claim of themselves."""

from hpctrain.plan import Plan
from hpctrain.train.claims import Claim, Expectation


def plan_of(ranks, nodes=1):
    return Plan(
        name="p",
        seed=0,
        nodes=nodes,
        ranks_per_node=ranks // nodes,
        ranks=ranks,
        device="cpu",
        strategy="ddp",
        backend="gloo",
        launcher="local",
        precision="fp32",
    )


def expected_of(ranks, *, nodes=1, timeout_s=20.0, cpus=None):
    hosts = tuple(f"n{i + 1}" for i in range(nodes))
    return Expectation(plan=plan_of(ranks, nodes), hosts=hosts, cpus_per_task=cpus, timeout_s=timeout_s)


def claim_of(rank, size, /, **changes):
    fields = {
        "rank": rank,
        "size": size,
        "local_rank": rank,
        "host": "n1",
        "job": "7",
        "attempt": 1,
        "config": "c",
        "code": "k",
        "device": "cpu",
        "cpus": (0, 1),
    }
    return Claim(**(fields | changes))
