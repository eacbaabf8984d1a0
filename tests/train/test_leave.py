"""Which cause an error is; that a real rank writes it down, tests/launch/test_ends.py shows."""

import errno
import os

import pytest
import torch

from hpctrain.errors import CheckpointError, DataError, JobError, RendezvousError, WorldError
from hpctrain.train.leave import classified

pytestmark = pytest.mark.torch


def full(number=errno.ENOSPC):
    return OSError(number, os.strerror(number))


def caused(error, cause):
    error.__cause__ = cause
    return error


def no_memory():
    """Return what torch itself raises where the host has no memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    return caught.value


ERRORS = {
    "a user's exception": (ValueError("mine"), "error"),
    "a user's SystemExit": (SystemExit(0), "error"),
    "no number any more": (JobError("the loss is nan"), "error"),
    "a wrong world": (WorldError("another config"), "error"),
    "data": (DataError("truncated"), "data_error"),
    "a full disk": (full(), "disk_full"),
    "a quota": (full(errno.EDQUOT), "disk_full"),
    "a save on a full disk": (caused(CheckpointError("not saved"), full()), "disk_full"),
    "a save on a broken disk": (caused(CheckpointError("not saved"), full(errno.EIO)), "error"),
    "staging data on a full disk": (caused(DataError("cannot stage"), full()), "disk_full"),
    "Python's memory": (MemoryError(), "out_of_memory"),
    "memory for a fork": (full(errno.ENOMEM), "out_of_memory"),
    "memory in a user's model": (caused(JobError("model failed"), MemoryError()), "out_of_memory"),
    "memory of the device": (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
    "a lost peer": (RuntimeError("[gloo] Connection closed by peer [10.0.0.1]:1"), "rank_killed"),
}


@pytest.mark.parametrize(("error", "cause"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_is_classified(error, cause):
    assert classified(error)["cause"] == cause


def test_torchs_own_words_for_memory_are_known():
    assert classified(no_memory()) == {"cause": "out_of_memory"}


def test_a_lost_peer_is_marked_as_an_echo_and_blames_nobody():
    assert classified(RuntimeError("Broken pipe")) == {"cause": "rank_killed", "echo": True}


def test_who_did_not_come_is_blamed_instead_of_who_waited():
    assert classified(RendezvousError("missing", rank=3, host="n2")) == {
        "cause": "rendezvous_failed", "rank": 3, "host": "n2",
    }  # fmt: skip
    assert classified(RendezvousError("missing")) == {"cause": "rendezvous_failed"}
