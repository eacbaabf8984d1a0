import os

import pytest

from hpctrain.errors import WorldError
from hpctrain.train.claims import check_size, misplaced, problems_of
from hpctrain.world import World
from tests.train.worlds import claim_of, expected_of


def test_two_ranks_on_one_device_are_refused():
    claims = [claim_of(0, 2, device="cuda:0"), claim_of(1, 2, device="cuda:0")]
    assert problems_of(claims, expected_of(2)) == ["rank 1 (n1) has the same device as rank 0: cuda:0"]
    apart = [claim_of(0, 2, device="cuda:0"), claim_of(1, 2, device="cuda:0", host="n2")]
    assert problems_of(apart, expected_of(2)) == []


def test_a_cpu_mask_smaller_than_asked_is_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    [problem] = problems_of([claim_of(0, 1, cpus=(0,))], expected_of(1, cpus=8))
    assert problem == "rank 0 (n1) may run on 1 CPUs, 8 were asked for; export SRUN_CPUS_PER_TASK"


def test_fewer_nodes_than_planned_are_refused():
    crowded = [claim_of(rank, 4) for rank in range(4)]
    assert misplaced(crowded, expected_of(4, nodes=2)) == ["2 nodes are planned, the ranks are on 1"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1, "none started 1 ranks, the plan has 4; missing: rank 1 (n1), rank 2 (n2), rank 3 (n2)"),
        (3, "none started 3 ranks, the plan has 4; missing: rank 3 (n2)"),
        (6, "none started 6 ranks, the plan has 4; 2 too many"),
    ],
)
def test_a_world_of_another_size_is_refused_at_once(size, message):
    world = World(rank=0, size=size, local_rank=0, local_size=1, launcher="none", host="n1")
    with pytest.raises(WorldError) as caught:
        check_size(world, expected_of(4, nodes=2))
    assert str(caught.value).startswith(message)
