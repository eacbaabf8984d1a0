"""A run that is hit again and again, once in nearly every step, ends as if nothing had happened.

Each injection ends one attempt. What a restart is due after (a killed rank, a warning) the supervisor restarts by
itself; after what a user must look at (an exception, no memory) the run ends with 4, and the test starts it again.
"""

import re
from itertools import cycle
from typing import NamedTuple

import pytest

from tests.chaos import oracle
from tests.chaos.runs import SAMPLES, STEPS, address, marker

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]


class Fault(NamedTuple):
    """One kind of harm at one place, and the end of the attempt that it must lead to."""

    kind: str
    at: str
    cause: str
    says: str
    """What the message of the outcome must match."""
    rank: int | None = None
    """The one that can do it; None: any."""


KILLED = [
    Fault("sigkill", "forward", "rank_killed", "SIGKILL"),
    Fault("sigsegv", "forward", "rank_killed", "SIGSEGV"),
    Fault("sigabrt", "backward", "rank_killed", "SIGABRT"),
    Fault("sigkill", "stage", "rank_killed", "SIGKILL", 0),
    Fault("sighup", "forward", "rank_killed", "SIGHUP"),
    Fault("sigkill", "publish", "rank_killed", "SIGKILL", 0),
    Fault("sigbus", "forward", "rank_killed", "SIGBUS"),
    Fault("sigkill", "backward", "rank_killed", "SIGKILL"),
    Fault("sigkill", "published", "rank_killed", "SIGKILL", 0),
    Fault("damage", "forward", "rank_killed", "SIGKILL"),
    Fault("cut short", "forward", "rank_killed", "SIGKILL"),
    Fault("litter", "forward", "rank_killed", "SIGKILL"),
]
ENDED = [
    Fault("exit", "forward", "error", "exit code 7"),
    Fault("exit 0", "forward", "error", "exit code 0 before the run had an outcome"),
    Fault("raise", "forward", "error", "ValueError: injected"),
    Fault("system exit", "forward", "error", "SystemExit: 3"),
    Fault("python memory", "forward", "out_of_memory", "MemoryError"),
    Fault("raise", "backward", "error", "ValueError: injected"),
    Fault("torch memory", "forward", "out_of_memory", "memory"),
    Fault("system exit 0", "forward", "error", "SystemExit: 0"),
    Fault("eio", "publish", "error", "Input/output error", 0),
    Fault("no descriptors", "forward", "error", "", 0),
    Fault("no file growth", "forward", "error", "", 0),
]
TOLD = [
    Fault("usr2", "forward", "time_limit", "told to stop"),
    Fault("term", "forward", "preempted", "told to stop"),
    Fault("term twice", "forward", "preempted", "told to stop"),
    Fault("int", "forward", "cancelled", "told to stop"),
    Fault("usr2 and term", "forward", "time_limit", "told to stop"),
]
TOLD_IN_A_SAVE = [
    Fault("usr2", "publish", "time_limit", "told to stop", 0),
    Fault("term", "stage", "preempted", "told to stop", 0),
    Fault("term twice", "published", "preempted", "told to stop", 0),
]
RESTARTED = {"rank_killed", "time_limit", "preempted"}

Plan = list[tuple[int, Fault]]


def every_step(faults, shift):
    """One fault in each step but the first, none of which stands at the same step with another shift."""
    turn = faults[shift % len(faults) :] + faults[: shift % len(faults)]
    return [(step, fault) for step, fault in zip(range(1, STEPS), cycle(turn), strict=False)]


def mixed(shift):
    """Kills and errors in turn."""
    killed, ended = KILLED[shift:] + KILLED[:shift], ENDED[shift:] + ENDED[:shift]
    return every_step([fault for pair in zip(killed, cycle(ended), strict=False) for fault in pair], 0)


def warned():
    """A signal in the first step of each attempt, which is then the last one."""
    return [(step, fault) for step, fault in zip(range(STEPS - 1), cycle(TOLD), strict=False)]


def warned_in_saves():
    """A signal while a step is saved, the next one in the step after the one with which the attempt ends."""
    found, turn = [], cycle(TOLD_IN_A_SAVE)
    for step in range(0, STEPS - 3, 3):
        found += [(step, TOLD[step % len(TOLD)]), (step + 2, next(turn))]
    return found


RUNS = [
    *((2, every_step(KILLED, shift)) for shift in (0, 5)),
    *((2, mixed(shift)) for shift in (1, 7)),
    (1, mixed(4)),
    (3, mixed(3)),
    (2, warned()),
    (2, warned_in_saves()),
]


def place(number, ranks, step, fault):
    return address(fault.kind, (step + number) % ranks if fault.rank is None else fault.rank, step, fault.at)


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_run_that_is_hit_in_every_step_ends_like_its_twin(chaos, twin, number):
    ranks, plan = RUNS[number]
    project = chaos([place(number, ranks, step, fault) for step, fault in plan])
    run = project.freeze(ranks)
    codes = [project.supervise(run)]
    while codes[-1] and len(codes) <= len(plan):
        codes.append(project.supervise(run))
    assert project.done() == {marker(one) for one in project.addresses}, oracle.logs(run)
    found = oracle.outcomes(run)
    assert [outcome.get("cause") for outcome in found] == [fault.cause for _, fault in plan] + [None], oracle.logs(run)
    for (_, fault), outcome in zip(plan, found, strict=False):
        assert re.search(fault.says, outcome["message"]), (fault, outcome)
    assert codes == [4] * sum(fault.cause not in RESTARTED for _, fault in plan) + [0]
    oracle.assert_like(run, twin(ranks), samples=SAMPLES)


def test_there_are_enough_injections_and_no_address_is_there_twice():
    kinds = {(fault.kind, fault.at) for _, plan in RUNS for _, fault in plan}
    assert sum(len(plan) for _, plan in RUNS) >= 150
    assert len({kind for kind, _ in kinds}) >= 20
    for number, (ranks, plan) in enumerate(RUNS):
        names = [marker(place(number, ranks, step, fault)) for step, fault in plan]
        assert len(set(names)) == len(names)
