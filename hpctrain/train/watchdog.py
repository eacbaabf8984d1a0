"""The watchdog of a node: `python -m hpctrain.train.watchdog RUN FD SETTINGS`, started by the node's first rank.

A process of its own, so that it works while any rank is stopped or holds the interpreter lock. It reads the heartbeats
of the ranks of its node (`heartbeat`). When one makes no progress for too long, the watchdogs of all nodes write down
where their ranks stand, in `attempts/N/hang/`; that of the node whose rank is behind all others (`hang`) records the
outcome, and each kills its ranks. It ends with its ranks, whatever ends them.

Ranks that have not stopped shortly before the job's time limit are killed as well: Slurm would kill the batch script
together with them, and nobody could put the job back into the queue.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from hpctrain.processes import is_alive, send, start_time
from hpctrain.rundir import RunDir, publish, publish_first
from hpctrain.train import hang, stacks, stragglers
from hpctrain.train.hang import RankReport, Report
from hpctrain.train.heartbeat import Phase, Pulse, View
from hpctrain.train.lifeline import DUMP, Hello, Settings, peer
from hpctrain.world import time_left_s

_TICK_S = 1.0  # between two looks at the heartbeats, at most
_LOOK_S = 5.0  # between two looks for reports of other nodes, at most: those are files of a network file system
_LEARNED = 5  # times the longest time without a beat so far may pass
_DUMP_S = 1.0
_WRITE_S = 30.0  # between two records of how fast the ranks are
_PATIENCE_S = 60.0  # for the reports of other nodes, at most: a network file system shows new files late
_HELLO_S = 5.0
_JUDGE_S = 10.0  # what the batch script has before the time limit to judge and requeue, at most
_JUDGE_SHARE = 0.05  # the same as a share of the time
_FIRST_S = 1.0  # by which the watchdog of a rank that does not wait for others speaks first
_MESSAGE = 8192


class Clock:
    """Seconds in which this process ran. While a whole job is stopped or a laptop sleeps, no time passes for a hang."""

    def __init__(self, tick_s: float) -> None:
        self.now = 0.0
        self._last, self._most = time.monotonic(), 4 * tick_s

    def tick(self) -> float:
        """Return the seconds so far."""
        now = time.monotonic()
        self.now += min(now - self._last, self._most)
        self._last = now
        return self.now


class Ward:
    """A rank of this node, as its watchdog sees it."""

    def __init__(self, rank: int, pid: int, view: View, stacks_fd: int, now: float) -> None:
        self.rank, self.pid = rank, pid
        self.pulse: Pulse = view.read()
        self.is_gone = False
        self.longest_s = 0.0
        """Between two beats so far, the start and saves left out."""
        self._view, self._stacks = view, stacks_fd
        self._started = start_time(pid)
        self._changed, self._cpu_s = now, stacks.state(pid).cpu_s
        self._dumped: tuple[str, stacks.Frame | None] | None = None

    def look(self, now: float) -> None:
        """See whether the rank has moved, and whether it is still there."""
        before, self.pulse = self.pulse, self._view.read()
        if self.pulse.since != before.since:
            if before.phase not in {Phase.START, Phase.CHECKPOINT}:
                self.longest_s = max(self.longest_s, now - self._changed)
            self._changed, self._dumped = now, None
            self._cpu_s = stacks.state(self.pid).cpu_s
        if not is_alive(self.pid, self._started):
            self.is_gone = True

    def still_s(self, now: float) -> float:
        """Return the seconds since the last beat."""
        return now - self._changed

    def is_slow_by_nature(self) -> bool:
        """Say whether it is in what may take longer, and does not beat: the start, the first step, a save."""
        return self.pulse.step <= self.pulse.first or self.pulse.phase in {Phase.START, Phase.CHECKPOINT}

    def report(self, host: str, now: float, *, hangs: bool) -> RankReport:
        """Write down where it stands; where it hangs, with its stacks, asked for once."""
        state = stacks.state(self.pid)
        if hangs and self._dumped is None:
            text = "" if state.letter in "TtZX" else stacks.dump(self.pid, self._stacks, DUMP, _DUMP_S)
            self._dumped = text, stacks.telling(stacks.threads(text), others=self.pulse.phase is Phase.DATA)
        text, frame = self._dumped or ("", None)
        still = self.still_s(now)
        return RankReport(
            rank=self.rank,
            host=host,
            pid=self.pid,
            step=self.pulse.step,
            phase=self.pulse.phase.name.lower(),
            position=self.pulse.position,
            still_s=round(still, 3),
            hangs=hangs,
            state="X" if self.is_gone else state.letter,
            waits_in=state.waits_in,
            cpu=round((state.cpu_s - self._cpu_s) / still, 2) if still > 0 else 0.0,
            where="" if frame is None else str(frame),
            users=frame is not None and frame.is_users,
            stacks=text,
        )


class Watchdog:
    """Looks after the ranks of one node.

    Args:
        run: the run.
        attempt: its number.
        settings: from the rank that started it.
        listener: the socket at which the ranks of this node report.
    """

    def __init__(self, run: RunDir, attempt: int, settings: Settings, listener: socket.socket) -> None:
        self._run, self._attempt, self._settings, self._listener = run, attempt, settings, listener
        self._tick_s = min(_TICK_S, settings.hang_s / 10)
        self._look_s = min(_LOOK_S, settings.hang_s / 4)
        self._clock = Clock(self._tick_s)
        self._wards: dict[int, Ward] = {}
        self._lines: dict[int, socket.socket] = {}
        self._speed = stragglers.Speed(run.ranks(attempt, settings.host), settings.host)
        self._own = run.hang(attempt, settings.host)
        self._patience_s = max(2 * self._look_s + _DUMP_S, min(settings.hang_s / 2, _PATIENCE_S))
        self._looked, self._write_at = 0.0, _WRITE_S / 3
        self._suspected: float | None = None
        left_s = time_left_s()
        margin_s = 0 if left_s is None else min(_JUDGE_S, _JUDGE_SHARE * left_s)
        self._end_at = None if left_s is None else time.monotonic() + left_s - margin_s  # a wall clock may jump

    def watch(self) -> None:
        """Look after the ranks until the last one is gone."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while self._has_work():
            for fd, _ in poll.poll(self._tick_s * 1000):
                if fd == self._listener.fileno():
                    self._accept(poll)
                else:  # a rank has ended, or has closed what it does not know
                    poll.unregister(fd)
                    self._lines.pop(fd).close()
            now = self._clock.tick()
            for ward in self._wards.values():
                ward.look(now)
                self._speed.note(ward.rank, ward.pulse)
            living = [ward for ward in self._wards.values() if not ward.is_gone]
            if not living:
                continue
            self._end_late(living)
            if any(self._hangs(ward, now) for ward in living) or now >= self._looked + self._look_s:
                self._looked = now
                self._discuss(now)
            if now >= self._write_at:
                self._write_at = now + _WRITE_S
                self._speed.write([(ward.rank, ward.pulse) for ward in living])

    def _has_work(self) -> bool:
        if self._wards:
            return not all(ward.is_gone for ward in self._wards.values())
        return os.getppid() == self._settings.parent  # the first rank has started this, and is to connect

    def _accept(self, poll: "select.poll") -> None:
        line, _ = self._listener.accept()
        pid, uid = peer(line)
        if uid != os.getuid() or pid <= 0:  # another user, or a process that this container cannot see
            line.close()
            return
        line.settimeout(_HELLO_S)
        try:
            content, fds, _, _ = socket.recv_fds(line, _MESSAGE, 2)
        except OSError:  # it ended before it could say who it is
            line.close()
            return
        rank = msgspec.json.decode(content, type=Hello).rank
        self._wards[rank] = Ward(rank, pid, View(fds[0]), fds[1], self._clock.now)
        self._lines[line.fileno()] = line
        poll.register(line, select.POLLHUP)  # the end of a rank wakes this process

    def _limit_s(self, ward: Ward) -> float:
        """Seconds without a beat that are too many: long steps are learned, up to where a collective gives up."""
        settings = self._settings
        if ward.is_slow_by_nature():
            return settings.long_s
        longest = max(other.longest_s for other in self._wards.values())
        return min(max(settings.hang_s, _LEARNED * longest), settings.long_s)

    def _hangs(self, ward: Ward, now: float) -> bool:
        return ward.still_s(now) > self._limit_s(ward)

    def _discuss(self, now: float) -> None:
        """If a rank hangs, here or elsewhere: write down where ours stand, and end them once it is known who."""
        hanging = {ward.rank for ward in self._wards.values() if self._hangs(ward, now) or ward.is_gone}
        ours_hang = any(not ward.is_gone and ward.rank in hanging for ward in self._wards.values())
        others = self._others()
        if not ours_hang and not any(rank.hangs for report in others for rank in report.ranks):
            self._suspected = None
            self._own.unlink(missing_ok=True)
            return
        host = self._settings.host
        ours = [ward.report(host, now, hangs=ward.rank in hanging) for ward in self._wards.values()]
        self._own.parent.mkdir(mode=0o700, exist_ok=True)
        publish(self._own, msgspec.json.encode(Report(host=host, ranks=ours)))
        if not ours_hang:
            return
        if self._run.outcome(self._attempt).exists():  # it has ended otherwise, and no one told these
            self._kill()
        self._suspected = now if self._suspected is None else self._suspected
        ranks = [*ours, *(rank for report in others for rank in report.ranks)]
        missing = self._settings.ranks - len(ranks)
        is_late = now - self._suspected > self._patience_s
        guilty = hang.blamed(ranks)
        if guilty and (is_late or (not missing and guilty[0].host == host)):
            self._conclude(guilty, ranks, missing)

    def _others(self) -> list[Report]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._own.parent.iterdir():
                if path.suffix == ".json" and path != self._own and not path.name.startswith("."):
                    with contextlib.suppress(OSError, msgspec.DecodeError):
                        found.append(msgspec.json.decode(path.read_bytes(), type=Report))
        return found

    def _conclude(self, guilty: list[RankReport], ranks: list[RankReport], missing: int) -> NoReturn:
        """Record the outcome and end the ranks of this node; the launcher ends the others."""
        first = guilty[0]
        message = hang.sentence(guilty, ranks, missing)
        record = {
            "verdict": "failed",
            "cause": "rank_killed" if first.state == "X" else "hang",
            "message": message,
            "exit_code": 128 + signal.SIGKILL,
            "step": first.step,
            "phase": first.phase,
        }
        if len(guilty) < len(ranks) or len(ranks) == 1:
            record |= {"rank": first.rank, "host": first.host, "where": first.where}
        print(f"hpctrain: {message}; stacks are in {self._own.parent}", file=sys.stderr, flush=True)
        self._end(record)

    def _end_late(self, living: list[Ward]) -> None:
        """End ranks that the time limit would end in a moment."""
        last = min(living, key=lambda ward: ward.pulse.position)
        waits_s = _FIRST_S if last.pulse.phase in {Phase.BACKWARD, Phase.COMM} else 0.0
        if self._end_at is None or time.monotonic() < self._end_at + waits_s:
            return
        step, phase, host = last.pulse.step, last.pulse.phase.name.lower(), self._settings.host
        message = f"the time limit is near, and rank {last.rank} on {host} has not stopped: {phase} at step {step}"
        print(f"hpctrain: {message}", file=sys.stderr, flush=True)
        self._end({
            "verdict": "failed", "cause": "time_limit", "message": message, "exit_code": 128 + signal.SIGKILL,
            "step": step, "phase": phase, "rank": last.rank, "host": host,
        })  # fmt: skip

    def _end(self, record: Mapping[str, str | int]) -> NoReturn:
        """Record the outcome, unless there is one, and end the ranks of this node."""
        try:
            publish_first(self._run.outcome(self._attempt), msgspec.json.encode(record))
        except OSError as failure:  # the file system may be what hangs or is full; the ranks end all the same
            print(f"hpctrain: the outcome could not be written: {failure}", file=sys.stderr, flush=True)
        self._kill()

    def _kill(self) -> NoReturn:
        send(signal.SIGKILL, [ward.pid for ward in self._wards.values() if not ward.is_gone])
        sys.exit()


def main() -> None:
    """Be the watchdog."""
    run, listener = RunDir(Path(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    settings = msgspec.json.decode(sys.argv[3], type=Settings)
    Watchdog(run, int(os.environ["HPCTRAIN_ATTEMPT"]), settings, listener).watch()


if __name__ == "__main__":
    main()
