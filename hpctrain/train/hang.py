"""Which rank do the others wait for? Worked out from the reports of all nodes, by the same rule on each.

Ranks train in lockstep, so when one makes no progress soon none does. The one to blame is the one that is behind all
others: the others came further and wait there. Only the watchdog of its own node knows whether it may take so long.
"""

from collections.abc import Sequence

import msgspec

from hpctrain.train.heartbeat import Phase

_BURNS = 0.5  # of a core, of what computes; a rank that waits for others on a CPU sleeps


class RankReport(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a report."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    position: tuple[int, int, int]
    still_s: float
    """Seconds since its last beat."""
    hangs: bool
    """It has been still for longer than it may."""
    state: str
    """Letter of the kernel; X if it is gone."""
    waits_in: str = ""
    cpu: float = 0.0
    """Cores that it kept busy since its last beat."""
    where: str = ""
    """The line that tells the most, as `net.py:12 in forward`; '' while it is not known."""
    users: bool = False
    """That line is the user's."""
    stacks: str = ""
    """All Python threads, as faulthandler writes them."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts/N/hang/HOST.json`: the ranks of a node, written while a rank somewhere seems to hang."""

    host: str
    ranks: list[RankReport]


def blamed(ranks: Sequence[RankReport]) -> list[RankReport]:
    """Return the ranks that the others wait for; all of them if nothing tells them apart; none if nothing hangs yet.

    Args:
        ranks: of the whole run, or of as much of it as is known.
    """
    if any(rank.state == "t" for rank in ranks):  # somebody looks at it with a debugger
        return []
    stopped = [rank for rank in ranks if rank.hangs and rank.state in "TX"]
    if stopped:
        return stopped
    least = min(rank.position for rank in ranks)
    behind = [rank for rank in ranks if rank.position == least]
    if not all(rank.hangs for rank in behind):
        return []
    best = min(map(_suspicion, behind))
    return [rank for rank in behind if _suspicion(rank) == best]


def _suspicion(rank: RankReport) -> int:
    """Tell ranks at the same place apart, the most suspect first: two wait for each other only in a collective."""
    if rank.state == "D":
        return 0
    if rank.users:
        return 1
    return 2 if rank.cpu > _BURNS else 3


def sentence(guilty: Sequence[RankReport], ranks: Sequence[RankReport], missing: int) -> str:
    """Say who made no progress, where, and who waits for it.

    Args:
        guilty: from `blamed`, not empty.
        ranks: all that are known.
        missing: ranks of which nothing is known, because the watchdog of their node did not answer.
    """
    first = guilty[0]
    where = f"in {first.phase} at step {first.step}" + (f" ({first.where})" if first.where else "")
    if first.phase == Phase.START.name.lower():
        where = where.replace(f" at step {first.step}", "")
    for_s = f"made no progress for {first.still_s:.0f} s"
    if len(guilty) == 1:
        said = f"{_who(guilty)} on {first.host} {_HOW.get(first.state, for_s)} {where}"
    elif len(guilty) == len(ranks):
        said = f"none of the {len(ranks)} ranks made progress for {first.still_s:.0f} s; all are {where}"
        said += f", {_who([first])} on {first.host}"
        if first.phase in _MEETING:
            said += ": not all take part in the same collective, or the network between them is cut"
    else:
        said = f"{_who(guilty)} {for_s} {where}, the first on {first.host}"
    waiting = [rank for rank in ranks if rank not in guilty]
    if waiting:
        verb, whom = "waits" if len(waiting) == 1 else "wait", "it" if len(guilty) == 1 else "them"
        said += f"; {_who(waiting)} {verb} for {whom} in {' or '.join(sorted({rank.phase for rank in waiting}))}"
    if missing:
        said += f"; of {missing} more ranks nothing is known"
    return said


_HOW = {
    "T": "was stopped by a signal (SIGSTOP)",
    "D": "waits in the kernel (a file system or a device)",
    "X": "has ended",
}
_MEETING = {Phase.COMM.name.lower(), Phase.BACKWARD.name.lower()}


def _who(ranks: Sequence[RankReport]) -> str:
    """Name ranks, neighbours as a range."""
    spans: list[list[int]] = []
    for number in sorted(rank.rank for rank in ranks):
        if spans and spans[-1][-1] == number - 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    listed = ", ".join("-".join(map(str, span)) for span in spans)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {listed}"
