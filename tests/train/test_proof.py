"""The world proof between real processes of this machine, over loopback."""

import socket
import threading
import time

import msgspec
import pytest

from hpctrain.errors import WorldError
from hpctrain.rundir import RunDir, publish
from hpctrain.train import proof
from tests.train.worlds import claim_of, expected_of


def new_run(root):
    run = RunDir.create(root, "p")
    publish(run.config, b"name: p\n")
    run.begin_attempt({})
    return run


def join_all(claims, expected, runs):
    """Let each claim join on a thread of its own; return what each got: a `Joined` or the error."""
    results = {}

    def one(index, claim, run):
        try:
            results[index] = proof.join(claim, expected, run, "127.0.0.1" if claim.rank == 0 else None)
        except WorldError as error:
            results[index] = error

    threads = [threading.Thread(target=one, args=(i, c, r)) for i, (c, r) in enumerate(zip(claims, runs, strict=True))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for result in results.values():
        if isinstance(result, proof.Joined) and result.listener is not None:
            result.listener.close()
    return [results[i] for i in range(len(claims))]


def test_the_planned_world_gets_one_store(tmp_path):
    run = new_run(tmp_path)
    results = join_all([claim_of(r, 4) for r in range(4)], expected_of(4), [run] * 4)
    assert len({(joined.host, joined.port) for joined in results}) == 1
    assert [joined.listener is not None for joined in results] == [True, False, False, False]


def test_a_single_rank_needs_nobody(tmp_path):
    run = new_run(tmp_path)
    [joined] = join_all([claim_of(0, 1)], expected_of(1), [run])
    assert joined.port > 0
    assert not run.rendezvous(1).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "x"}, "rank 1 (n1) has another config than rank 0 (n1): x instead of c"),
        ({"code": "x"}, "rank 1 (n1) has another code than rank 0 (n1): x instead of k"),
        ({"job": "8"}, "rank 1 (n1) has another job than rank 0 (n1): 8 instead of 7"),
        ({"size": 3}, "rank 1 (n1) has another size than rank 0 (n1): 3 instead of 2"),
        ({"rank": 5}, "rank 5 (n1) is none of the planned ranks 0 to 1"),
    ],
)
def test_a_rank_that_differs_stops_all_and_is_named(tmp_path, change, message):
    run = new_run(tmp_path)
    began = time.monotonic()
    results = join_all([claim_of(0, 2), claim_of(1, 2, **change)], expected_of(2), [run] * 2)
    assert [message in str(error) for error in results] == [True, True]
    assert time.monotonic() - began < 10


def test_two_ranks_with_one_number_are_refused(tmp_path):
    run = new_run(tmp_path)
    claims = [claim_of(0, 3), claim_of(1, 3), claim_of(1, 3, host="n2")]
    results = join_all(claims, expected_of(3), [run] * 3)
    assert all("is there twice, also on" in str(error) for error in results)


def test_a_missing_rank_is_named_with_its_host(tmp_path):
    run = new_run(tmp_path)
    claims = [claim_of(0, 4), claim_of(1, 4), claim_of(3, 4, host="n2")]
    results = join_all(claims, expected_of(4, nodes=2, timeout_s=1), [run] * 3)
    assert all("after 1 s still missing: rank 2 (n2)" in str(error) for error in results)


def test_rank_0_says_whom_it_waits_for_before_the_time_is_up(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(proof, "_REMIND_S", 0.2)
    join_all([claim_of(0, 2)], expected_of(2, timeout_s=1), [new_run(tmp_path)])
    assert "hpctrain: waiting for rank 1 (n1)" in capfd.readouterr().err


def test_a_rank_without_rank_0_says_where_it_looked(tmp_path):
    run = new_run(tmp_path)
    [error] = join_all([claim_of(1, 2)], expected_of(2, timeout_s=0.3), [run])
    assert "rank 0 (n1) has not published its address in" in str(error)


def test_jobs_pointed_at_each_other_refuse(tmp_path):
    """Swap the published addresses of two waiting jobs by hand: no world forms from ranks of both."""
    runs = [new_run(tmp_path / name) for name in ("a", "b")]
    expected = expected_of(2, timeout_s=3)
    results = {}

    def lead(index):
        try:
            results["lead", index] = proof.join(claim_of(0, 2), expected, runs[index], "127.0.0.1")
        except WorldError as error:
            results["lead", index] = error

    leaders = [threading.Thread(target=lead, args=(i,)) for i in range(2)]
    for leader in leaders:
        leader.start()
    while not all(run.rendezvous(1).exists() for run in runs):
        time.sleep(0.01)
    addresses = [run.rendezvous(1).read_bytes() for run in runs]
    for run, address in zip(runs, reversed(addresses), strict=True):
        publish(run.rendezvous(1), address)
    for run in runs:
        with pytest.raises(WorldError, match="is not of this run: it does not know this attempt's secret"):
            proof.join(claim_of(1, 2), expected, run, None)
    for leader in leaders:
        leader.join(30)
    assert all("still missing: rank 1" in str(results["lead", i]) for i in range(2))


def test_strangers_and_silent_peers_do_not_hold_up_the_world(tmp_path, capfd):
    run = new_run(tmp_path)
    seen = threading.Event()

    def stranger():
        while not run.rendezvous(1).exists():
            time.sleep(0.005)
        found = msgspec.json.decode(run.rendezvous(1).read_bytes())
        with (
            socket.create_connection((found["address"], found["port"])) as loud,
            socket.create_connection((found["address"], found["port"])),
        ):
            loud.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + b"x" * 4096)
            seen.set()
            time.sleep(1)

    visitor = threading.Thread(target=stranger, daemon=True)
    visitor.start()
    leader_result = []
    leader = threading.Thread(
        target=lambda: leader_result.append(proof.join(claim_of(0, 2), expected_of(2), run, "127.0.0.1"))
    )
    leader.start()
    assert seen.wait(10)
    joined = proof.join(claim_of(1, 2), expected_of(2), run, None)
    leader.join(20)
    visitor.join(20)
    for thread in threading.enumerate():  # the one that waited for the silent peer prints, too
        if "_receive" in thread.name:
            thread.join(20)
    leader_result[0].listener.close()
    assert joined.port == leader_result[0].port
    assert "turned away a stranger from 127.0.0.1" in capfd.readouterr().err


def test_ranks_spread_over_nodes_otherwise_than_planned_are_refused(tmp_path):
    run = new_run(tmp_path)
    hosts = ["n1", "n1", "n1", "n2"]
    claims = [claim_of(rank, 4, host=host) for rank, host in enumerate(hosts)]
    results = join_all(claims, expected_of(4, nodes=2), [run] * 4)
    assert all(
        "ranks 2 to 3 should share a node, they are on n1, n2; start them block by block" in str(error)
        for error in results
    )
