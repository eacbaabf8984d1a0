"""Ranks meet before they join Horovod's world: threads of this process, over loopback."""

import socket
import threading

import pytest

from hpctrain.dist import rendezvous
from hpctrain.errors import WorldError
from hpctrain.world import World
from tests.train.worlds import plan_of

pytestmark = pytest.mark.usefixtures("horovod")


def meet(size, ranks, timeout_s=20.0):
    """Let ranks of a world meet; return what each says inside, or the error."""
    listener = socket.create_server(("127.0.0.1", 0))
    store, found = listener.getsockname(), {}
    together = threading.Barrier(len(ranks), timeout=20)

    def one(rank):
        world = World(rank=rank, size=size, local_rank=rank, local_size=size, launcher="none", host="here")
        listen_fd = listener.detach() if rank == 0 else None
        try:
            with rendezvous.meeting(plan_of(size), world, store=store, listen_fd=listen_fd, timeout_s=timeout_s):
                together.wait()
                found[rank] = "inside"
        except WorldError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    if 0 not in ranks:
        listener.close()
    for thread in threads:
        thread.join()
    return found


def test_all_begin_together(monkeypatch):
    monkeypatch.delenv("HOROVOD_GLOO_IFACE", raising=False)
    assert meet(5, range(5)) == dict.fromkeys(range(5), "inside")


def test_who_does_not_come_is_named_to_all(monkeypatch):
    monkeypatch.delenv("HOROVOD_GLOO_IFACE", raising=False)
    found = meet(4, [0, 1], timeout_s=0.5)
    assert all(text.startswith("after 0.5 s rank 2, rank 3 had not loaded Horovod") for text in found.values())
    assert "rank_2.err" in found[0]


def test_a_rank_0_that_is_gone_is_named(monkeypatch):
    monkeypatch.delenv("HOROVOD_GLOO_IFACE", raising=False)
    [text] = meet(2, [1]).values()
    assert "went away before Horovod's world was complete" in text


def test_an_interface_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "nosuch0")
    [text] = meet(1, [0]).values()
    assert "HOROVOD_GLOO_IFACE names 'nosuch0', and here has no such interface" in text
