"""Slow ranks, from the files that the watchdogs of the nodes write."""

import json

import pytest

from hpctrain.launch.slow import slow_ranks
from hpctrain.rundir import RunDir


@pytest.fixture
def write(tmp_path):
    """Write the file of a node: seconds of a step, and of data and forward pass, by rank; returns the run."""
    run = RunDir(tmp_path)

    def call(host, step_s, ranks):
        path = run.ranks(1, host)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"rank": rank, "step": 50, "step_s": step_s, "own_s": {"data": data, "forward": forward}}
            for rank, (data, forward) in ranks.items()
        ]
        path.write_text(json.dumps({"host": host, "time": 1.0, "ranks": rows}))
        return run

    return call


def test_a_rank_that_all_wait_for_is_named_with_what_it_is_slow_in(write):
    write("n1", 1.0, {0: (0.1, 0.3), 1: (0.1, 0.3), 2: (0.1, 0.3)})
    run = write("n2", 1.0, {3: (0.1, 0.3), 4: (0.1, 0.7), 5: (0.42, 0.3)})
    assert [str(slow) for slow in slow_ranks(run, 1)] == [
        "rank 4 on n2 is 2.0 x slower than the median (forward)",
        "rank 5 on n2 is 1.8 x slower than the median (data)",
    ]


@pytest.mark.parametrize("ranks", [
    {0: (0.1, 0.3), 1: (0.1, 0.4)},  # not much slower
    {0: (0.001, 0.002), 1: (0.005, 0.03)},  # nobody notices in a step of a second
    {0: (0.1, 0.3)},  # nobody to compare with
    {},
])  # fmt: skip
def test_what_costs_nothing_is_not_told(write, ranks):
    assert slow_ranks(write("n1", 1.0, ranks), 1) == []


def test_a_run_without_such_files_has_no_slow_ranks(tmp_path):
    assert slow_ranks(RunDir(tmp_path), 1) == []


def test_a_file_that_is_not_whole_is_left_out(write):
    run = write("n1", 1.0, {0: (0.1, 0.3), 1: (0.1, 0.9)})
    run.ranks(1, "n2").write_text('{"host": "n2", "ranks": [')
    assert [slow.rank for slow in slow_ranks(run, 1)] == [1]
