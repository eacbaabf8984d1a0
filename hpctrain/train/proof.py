"""The world proof: before the first collective the ranks show that they are the world that was planned.

1. Rank 0 binds two sockets on the job's interface, one for the store and one for the proof, and then publishes the
   proof's address in the attempt's directory, or by MPI where that starts the ranks. A port is never derived from a
   job id: whoever holds it has it.
2. Every other rank connects and both ends prove that they know the attempt's secret (HMAC, multiprocessing.connection);
   then it sends its claim as JSON bytes. Nothing is unpickled.
3. Rank 0 compares the claims with the plan and with each other, and answers all of them: the store's port, or what is
   wrong. A stranger is turned away and named; a rank that does not come is named with its host while rank 0 waits.
"""

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import NamedTuple

import msgspec

from hpctrain.dist.mpi import Mpi
from hpctrain.errors import RendezvousError, WorldError
from hpctrain.rundir import RunDir, publish
from hpctrain.train.claims import Claim, Expectation, misplaced, problems_of

_HANDSHAKE_S = 10  # a peer that connects and then says nothing must not hold up the others
_REMIND_S = 5


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Rank 0's answer to all ranks: the port of the store, or what is wrong."""

    store_port: int = 0
    problems: tuple[str, ...] = ()
    missing: tuple[int, str] | None = None
    """The first rank that did not come and its host, where that is the problem."""


class Joined(NamedTuple):
    """A proven world: where its store is, and on rank 0 the listening socket for it."""

    host: str
    port: int
    listener: socket.socket | None


def join(claim: Claim, expected: Expectation, run: RunDir, address: str | None, mpi: Mpi | None = None) -> Joined:
    """Prove the world; return where its store is.

    Args:
        claim: this rank's own.
        expected: the plan and what was asked of the nodes.
        run: the run directory, through which rank 0 publishes its address.
        address: rank 0: the address to bind; other ranks: None.
        mpi: tells the others rank 0's address; None: the run directory does.

    Raises:
        WorldError: the world is not the planned one, or did not form in time.
    """
    key = run.secret(claim.attempt).read_bytes()
    if claim.rank == 0:
        if address is None:
            raise AssertionError("rank 0 needs an address to bind")
        return _lead(claim, expected, run, key, address, mpi)
    deadline = time.monotonic() + expected.timeout_s
    if mpi is not None:
        found = msgspec.json.decode(mpi.broadcast(b""), type=dict[str, str | int])
    else:
        found = _published(run, claim, expected, deadline)
    return _follow(claim, expected, run, key, found, deadline)


def _lead(claim: Claim, expected: Expectation, run: RunDir, key: bytes, address: str, mpi: Mpi | None) -> Joined:
    store = _listener(address, expected.plan.ranks)
    problems, missing = problems_of([claim], expected), None
    if expected.plan.ranks > 1:
        with _listener(address, expected.plan.ranks) as door:
            where = msgspec.json.encode({"host": claim.host, "address": address, "port": door.getsockname()[1]})
            if mpi is not None:
                mpi.broadcast(where)
            else:
                publish(run.rendezvous(claim.attempt), where)
            reception = _Reception(claim, expected, key, store.getsockname()[1])
            problems, missing = reception.gather(door), reception.missing
    if problems:
        store.close()
        raise _refusal(problems, missing)
    return Joined(address, store.getsockname()[1], store)


def _refusal(problems: Sequence[str], missing: tuple[int, str] | None) -> WorldError:
    text = "this is not the planned world:\n  " + "\n  ".join(problems)
    return WorldError(text) if missing is None else RendezvousError(text, rank=missing[0], host=missing[1])


def _listener(address: str, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(max(backlog, 128))
    return listener


class _Reception:
    """Rank 0's side: lets claims in, each on a thread of its own, and answers them together."""

    def __init__(self, own: Claim, expected: Expectation, key: bytes, store_port: int) -> None:
        self._own, self._expected, self._key, self._store_port = own, expected, key, store_port
        self._claims: dict[int, Claim] = {own.rank: own}
        self._waiting: list[Connection] = []
        self._problems: list[str] = []
        self.missing: tuple[int, str] | None = None
        """The first rank that did not come in time, and its host."""
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def gather(self, door: socket.socket) -> list[str]:
        """Wait for all planned ranks; return the problems, which every connected rank is told too."""
        self._start(self._let_in, door)
        try:
            return self._gather(door)
        finally:
            for thread in self._threads:  # what follows may fork; a stranger that says nothing is not waited for
                thread.join(0.2)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _gather(self, door: socket.socket) -> list[str]:
        now = time.monotonic()
        deadline, reminder = now + self._expected.timeout_s, now + _REMIND_S
        with self._changed:
            while len(self._claims) < self._expected.plan.ranks and not self._problems:
                now = time.monotonic()
                if now >= deadline:
                    self._problems.append(f"after {self._expected.timeout_s:g} s still missing: {self._missing()}")
                    rank = next(rank for rank in range(self._expected.plan.ranks) if rank not in self._claims)
                    self.missing = (rank, self._expected.host_of(rank))
                    break
                if now >= reminder:
                    print(f"hpctrain: waiting for {self._missing()}", file=sys.stderr, flush=True)
                    reminder = now + _REMIND_S
                self._changed.wait(min(reminder, deadline) - now)
            door.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread in accept()
            if not self._problems:
                claims = [self._claims[rank] for rank in sorted(self._claims)]
                self._problems = [*problems_of(claims, self._expected), *misplaced(claims, self._expected)]
            answer = msgspec.json.encode(
                Answer(store_port=self._store_port, problems=tuple(self._problems), missing=self.missing)
            )
            for peer in self._waiting:
                try:
                    peer.send_bytes(answer)
                    peer.close()
                except OSError:  # it died meanwhile; the launcher reports that
                    continue
            return self._problems

    def _missing(self) -> str:
        missing = [rank for rank in range(self._expected.plan.ranks) if rank not in self._claims]
        named = ", ".join(f"rank {rank} ({self._expected.host_of(rank)})" for rank in missing[:8])
        return named + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")

    def _let_in(self, door: socket.socket) -> None:
        while True:
            try:
                peer, (address, _) = door.accept()
            except OSError:  # the door is closed: all are here, or it failed
                return
            self._start(self._receive, peer, address)

    def _receive(self, peer: socket.socket, address: str) -> None:
        connection = _authenticated(peer)
        try:
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            claim = msgspec.json.decode(connection.recv_bytes(65536), type=Claim)
        except (AuthenticationError, EOFError, OSError, msgspec.DecodeError):
            print(f"hpctrain: turned away a stranger from {address}", file=sys.stderr, flush=True)
            connection.close()
            return
        with self._changed:
            self._waiting.append(connection)
            known = self._claims.get(claim.rank)
            pair = [self._own, *([known] if known is not None and known is not self._own else []), claim]
            self._problems += problems_of(pair, self._expected)
            self._claims.setdefault(claim.rank, claim)
            self._changed.notify()


def _authenticated(peer: socket.socket) -> Connection:
    """Wrap a socket for the HMAC handshake; a silent peer fails after a while instead of blocking for ever."""
    peer.setblocking(True)
    timeout = struct.pack("ll", _HANDSHAKE_S, 0)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    return Connection(peer.detach())


def _follow(
    claim: Claim, expected: Expectation, run: RunDir, key: bytes, found: dict[str, str | int], deadline: float
) -> Joined:
    host, address, port = found["host"], str(found["address"]), int(found["port"])
    where = f"rank 0 ({host}) at {address}:{port}"
    try:
        connection = _authenticated(socket.create_connection((address, port), timeout=_HANDSHAKE_S))
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        connection.send_bytes(msgspec.json.encode(claim))
    except AuthenticationError:
        raise WorldError(
            f"{where} is not of this run: it does not know this attempt's secret",
            f"two jobs must not share a run directory; look who wrote {run.attempt(claim.attempt)}",
        ) from None
    except (OSError, EOFError) as error:
        raise RendezvousError(
            f"rank {claim.rank} ({claim.host}) cannot talk to {where}: {error}", rank=0, host=str(host)
        ) from None
    try:
        if not connection.poll(max(deadline - time.monotonic(), 0) + _HANDSHAKE_S):
            raise RendezvousError(
                f"{where} took this rank's claim but did not answer in {expected.timeout_s:g} s", rank=0, host=str(host)
            )
        answer = msgspec.json.decode(connection.recv_bytes(1 << 20), type=Answer)
    except (OSError, EOFError):
        raise RendezvousError(
            f"{where} went away before the world was complete; see its log", rank=0, host=str(host)
        ) from None
    finally:
        connection.close()
    if answer.problems:
        raise _refusal(answer.problems, answer.missing)
    return Joined(address, answer.store_port, None)


def _published(run: RunDir, claim: Claim, expected: Expectation, deadline: float) -> dict[str, str | int]:
    path, pause = run.rendezvous(claim.attempt), 0.002
    while True:
        try:
            os.listdir(path.parent)  # noqa: PTH208 - makes a network file system look again instead of remembering a miss
            found: dict[str, str | int] = msgspec.json.decode(path.read_bytes(), type=dict[str, str | int])
        except FileNotFoundError:
            if time.monotonic() >= deadline:
                raise RendezvousError(
                    f"after {expected.timeout_s:g} s rank 0 ({expected.host_of(0)}) has not published its address in "
                    f"{path}",
                    "see its log, attempts/N/logs/rank_0.err and launch.log; does every node see the run directory?",
                    rank=0,
                    host=expected.host_of(0),
                ) from None
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        else:
            return found
