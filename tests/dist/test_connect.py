import socket
import time

import pytest

from hpctrain.config.schema import Dist
from hpctrain.errors import WorldError
from hpctrain.world import World

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def world(rank, size):
    return World(rank=rank, size=size, local_rank=rank, local_size=size, launcher="torchrun", host="n1")


def plan(size):
    from tests.train.ranks import make_config, make_plan

    return make_plan(make_config(), size)


def connect(rank, size, *, planned=None, store=None, listen_fd=None, timeout_s=1):
    from hpctrain.dist.connect import connect as form

    device = torch.device("cpu")
    return form(
        plan(planned or size),
        world(rank, size),
        store=store,
        listen_fd=listen_fd,
        interface="lo",
        device=device,
        timeout_s=timeout_s,
        settings=Dist(),
    )


def test_collectives_give_every_rank_the_same(ranks):
    from tests.train.ranks import make_config

    reports = ranks.start(make_config(), 3, run=ranks.run_dir(), body="collectives").wait()
    assert reports == [{"value": {
        "integers": [6, 2**53 + 3], "float64": 0.6, "any": [True, False], "bytes": ["", "00ff7b", 300_000],
        "kept": [rank + 1, 2**53 if rank == 0 else 1 + (rank == 2)],
    }} for rank in range(3)]  # fmt: skip


def test_one_rank_needs_no_process_group():
    comm = connect(0, 1)
    values = torch.tensor([1, 2])
    summed = comm.sum(values)
    summed += 1
    assert values.tolist() == [1, 2]
    assert (comm.rank, comm.size, comm.any(True), comm.any(False), comm.broadcast(b"x")) == (0, 1, True, False, b"x")
    comm.barrier()
    comm.close()
    assert not torch.distributed.is_initialized()


def test_another_number_of_ranks_than_planned_is_refused():
    with pytest.raises(WorldError, match=r"rank 0 of 1 \(local rank 0 on n1\) runs, but 2 ranks are planned"):
        connect(0, 1, planned=2)


def test_a_rank_that_never_comes_is_waited_for_no_longer_than_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(WorldError) as caught:
        connect(1, 2, store=("127.0.0.1", port))
    assert time.monotonic() - began < 20
    assert str(caught.value).startswith(
        f"rank 1 of 2 (local rank 1 on n1) could not join the others through 127.0.0.1:{port} on lo within 1 s: "
    )


def test_a_clipped_gradient_is_that_of_all_ranks(ranks):
    from tests.train.ranks import make_config

    one, two = (ranks.start(make_config(), size, run=ranks.run_dir(f"{size}"), body="clip") for size in (1, 2))
    (alone,), both = one.wait(), two.wait()
    assert both[0] == both[1]
    assert alone["value"]["norm"] == pytest.approx(0.5, rel=1e-5)
    assert both[0]["value"]["norm"] == pytest.approx(0.5, rel=1e-5)
    assert both[0]["value"]["weights"] == pytest.approx(alone["value"]["weights"], rel=1e-6)


def test_wrapping_leaves_weights_buffers_and_random_numbers_alone(ranks):
    from tests.train.ranks import make_config

    reports = ranks.start(make_config(), 2, run=ranks.run_dir(), body="wrap").wait()
    assert reports == [{"value": {"same": True, "random": True, "gradients": 0}}] * 2


def test_gradients_are_summed_after_the_last_pass_only(ranks):
    from tests.train.ranks import make_config

    reports = ranks.start(make_config(), 2, run=ranks.run_dir(), body="accumulate").wait()
    assert reports == [{"value": [True, True]}] * 2
