import os

import pytest

from hpctrain.data.pool import pool
from hpctrain.errors import DataError


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_work_is_done_by_other_processes(method):
    with pool(2, method) as workers:
        assert os.getpid() not in set(workers.map(_pid, range(4)))


def test_a_killed_worker_is_an_error_of_ours():
    with pytest.raises(DataError) as caught, pool(1, "fork") as workers:
        workers.submit(os._exit, 1).result()
    assert str(caught.value) == (
        "a worker process was killed, or could not be started\n  if memory was short, try fewer: --workers 1"
    )


def _pid(_):
    return os.getpid()
