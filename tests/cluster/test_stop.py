"""A signal that reaches a single rank, twice, stops all of them, under each launcher, and the job goes on."""

import os
import signal
import time

import pytest

from tests.cluster.runs import rank_of, until
from tests.cluster.test_matrix import logs, needs, samples, submit, verdict

__all__ = ["submit"]  # a fixture

pytestmark = [pytest.mark.slurm, pytest.mark.torch, pytest.mark.timeout(300)]


@pytest.mark.parametrize(("strategy", "launcher"), [
    ("ddp", "srun"), ("ddp", "torchrun"), ("ddp", "mpirun"), ("horovod", "horovodrun"),
])  # fmt: skip
def test_a_signal_to_one_rank_stops_all_and_each_sample_is_seen_once(request, submit, cluster, strategy, launcher):
    needs(request, strategy, launcher, "")
    job, run = submit(f"dist.strategy={strategy}", f"dist.launcher={launcher}")
    metrics, first, second = (
        run / "attempts" / name for name in ("1/metrics.jsonl", "1/outcome.json", "2/outcome.json")
    )
    until(lambda: first.exists() or (metrics.exists() and len(metrics.read_text().splitlines()) > 3), 180)
    rank = rank_of(run, 3, launcher)
    for _ in range(2):
        os.kill(rank, signal.SIGTERM)
        time.sleep(0.05)
    until(first.exists, 60)
    assert verdict(first) == ("stopped", "preempted"), logs(run)
    until(second.exists, 120)
    assert verdict(second) == ("completed", None), logs(run)
    assert sorted(samples(run)) == list(range(1, 51))
    until(lambda: not cluster.run(["squeue", "-h", "-j", job]).stdout.strip())
