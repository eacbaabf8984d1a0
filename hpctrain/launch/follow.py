"""Show what a run does while it runs: rank 0's log as it grows, and on a terminal a line with progress, rate and ETA.

Everything is read from the run directory, so that it is the same for a run on Slurm, in the background or in front.
"""

import sys
import time
from pathlib import Path
from typing import IO

import msgspec

from hpctrain.errors import JobError, UsageError
from hpctrain.launch.status import FINAL, status
from hpctrain.rundir import RunDir, read_json

_ASK_S, _ASK_MOST_S = 0.5, 5.0  # between two questions to Slurm: often after news, then ever less
_PAUSE_S = 0.1  # between two looks at the log

_INTERVAL_PREFIX = "train "
"""How the ranks' lines of one interval begin: on a terminal the progress line says the same."""


class Tail:
    """The growing end of a file that may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._rest = path, 0, b""

    def lines(self, *, final: bool = False) -> list[str]:
        """Return the whole lines that came since the last call; with `final` the broken last one, too."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except OSError:
            new = b""
        self._at += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        if final and self._rest:
            whole.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace") for line in whole]


class Follower:
    """Copies the log of one rank of the newest attempt to this process's streams.

    Args:
        run: the run.
        rank: whose log.
        out: where the rank's standard output goes.
    """

    def __init__(self, run: RunDir, *, rank: int = 0, out: IO[str] | None = None) -> None:
        self._run, self._rank, self._attempt = run, rank, 0
        self._out = out or sys.stdout
        self._streams: list[tuple[Tail, IO[str]]] = []
        self._metrics: Tail | None = None
        self._bar = sys.stderr.isatty() and rank == 0
        self._shown = ""
        self._total = read_json(run.plan).get("total_steps")

    def pump(self, attempt: int, *, final: bool = False) -> None:
        """Show what is new in an attempt."""
        if attempt != self._attempt:
            self._flush(final=True)
            self._turn_to(attempt)
        self._flush(final=final)

    def _turn_to(self, attempt: int) -> None:
        run, self._attempt = self._run, attempt
        self._streams = [
            (Tail(run.launch_log(attempt)), sys.stderr),
            (Tail(run.log(attempt, self._rank, "out")), self._out),
            (Tail(run.log(attempt, self._rank, "err")), sys.stderr),
        ]
        self._metrics = Tail(run.metrics(attempt)) if self._bar and self._total else None

    def _flush(self, *, final: bool) -> None:
        for tail, stream in self._streams:
            for line in tail.lines(final=final):
                if self._metrics is not None and line.startswith(_INTERVAL_PREFIX):
                    continue
                self._clear()
                print(line, file=stream, flush=True)
        if self._metrics is not None:
            rows = [line for line in self._metrics.lines() if '"split":"train"' in line.replace(" ", "")]
            if rows:
                self._draw(rows[-1])
        if final:
            self._clear()

    def _clear(self) -> None:
        if self._shown:
            print(f"\r{' ' * len(self._shown)}\r", end="", file=sys.stderr, flush=True)
            self._shown = ""

    def _draw(self, row: str) -> None:
        try:
            self._shown_for(msgspec.json.decode(row, type=dict[str, float | str | None]))
        except msgspec.DecodeError:  # a torn line of a crashed attempt
            return

    def _shown_for(self, row: dict[str, float | str | None]) -> None:
        step, rate, total = row.get("step"), row.get("samples_per_s"), self._total
        if not isinstance(step, int | float) or not isinstance(rate, int | float) or not isinstance(total, int):
            return
        batch = read_json(self._run.plan).get("global_batch") or 0
        left = (total - step) * batch / rate if rate else 0
        done = int(20 * step / total)
        self._clear()
        self._shown = (
            f"[{'#' * done}{'.' * (20 - done)}] step {step:.0f}/{total}  loss {row.get('loss'):.4f}  "
            f"{rate:,.0f} samples/s  {time.strftime('%H:%M:%S', time.gmtime(left))} left"
        )
        print(f"\r{self._shown}", end="", file=sys.stderr, flush=True)


def show(run: RunDir, *, rank: int, attempt: int | None) -> None:
    """Show the log of a rank so far; of the newest attempt if none is given.

    Raises:
        UsageError: there is no such rank or attempt.
    """
    _check_rank(run, rank)
    numbers = run.attempt_numbers()
    number = attempt or (numbers[-1] if numbers else 1)
    if number not in numbers:
        had = f"its attempts: {', '.join(map(str, numbers))}" if numbers else "it has not started yet"
        raise UsageError(f"{run.name} has no attempt {number}; {had}", f"hpctrain status {run.path}")
    Follower(run, rank=rank).pump(number, final=True)


def _check_rank(run: RunDir, rank: int) -> None:
    ranks = read_json(run.plan).get("ranks")
    if isinstance(ranks, int) and rank >= ranks:
        allowed = f"--rank 0 to --rank {ranks - 1}" if ranks > 1 else "--rank 0"
        raise UsageError(f"{run.name} has no rank {rank}; it has {ranks} rank{'s' * (ranks > 1)}", allowed)


def until_end(run: RunDir, *, rank: int = 0, attempt: int | None = None) -> None:
    """Show a rank's log until the run has ended; a run that did not complete is an error.

    Raises:
        UsageError: there is no such rank, or an attempt is asked for.
        JobError: the run failed or was cancelled.
    """
    if attempt is not None:
        raise UsageError(
            "--follow goes with the newest attempt, --attempt is for one that has ended", "leave one of them out"
        )
    _check_rank(run, rank)
    follower, ended = Follower(run, rank=rank), 0
    row, asked, pause = status([run])[0], time.monotonic(), _ASK_S
    while True:
        numbers = run.attempt_numbers()
        if numbers and numbers[-1] != ended and run.outcome(numbers[-1]).exists():
            ended, pause = numbers[-1], _ASK_S
        if time.monotonic() - asked > pause:
            row, asked, pause = status([run])[0], time.monotonic(), min(pause * 1.5, _ASK_MOST_S)
        final = row["state"] in FINAL
        if numbers:
            follower.pump(numbers[-1], final=final)
        if final:
            break
        time.sleep(_PAUSE_S)
    if row["state"] == "FAILED":
        raise JobError(first_cause(run, shown=rank, otherwise=row["reason"]))
    if row["state"] != "COMPLETED":
        raise JobError(f"{run.name}: {row['state']}: {row['reason']}")
    print(f"hpctrain: completed; the run lies in {run.path}", file=sys.stderr)


def first_cause(run: RunDir, *, shown: int = 0, otherwise: str = "no reason was left") -> str:
    """Say which rank failed first and why, and where its log is.

    Args:
        run: the run.
        shown: the rank whose log was shown: what it said at length is not said again.
        otherwise: the reason, if no rank has left one.
    """
    numbers = run.attempt_numbers()
    outcome = read_json(run.outcome(numbers[-1])) if numbers else {}
    rank, message = outcome.get("rank"), str(outcome.get("message") or otherwise)
    if outcome.get("verdict") == "stopped":
        return f"stopped: {message}\n  hpctrain resume {run.path} goes on from the last checkpoint"
    who = "" if rank is None or message.startswith("rank ") else f" on rank {rank} ({outcome.get('host', '?')})"
    if rank == shown:
        message = message.split("\n", 1)[0]
    return f"failed{who}: {message}\n  logs: hpctrain logs {run.path} --rank {rank or 0}"
