"""Runs by their directory, name or job id, and lists of them; from the files alone."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hpctrain.causes import CAUSES
from hpctrain.errors import UsageError
from hpctrain.rundir import RunDir, read_json

_DAY_S = 86400
_DIRECTORY = re.compile(r"(?P<name>.+?)-(?:\d{4}-\d{6}-[0-9a-f]{4}|\d+)")


def listing(roots: Iterable[Path]) -> list[RunDir]:
    """Return the runs below the roots, the newest last; what cannot be read is left out."""
    found: dict[Path, float] = {}
    for root in roots:
        try:
            directories = list(root.iterdir())
        except OSError:
            continue
        for path in directories:
            try:
                found[path.absolute()] = (path / "config.yaml").stat().st_mtime
            except OSError:  # no run, or another user's
                continue
    return [RunDir(path) for path in sorted(found, key=lambda path: (found[path], path.name))]


def recent(roots: Iterable[Path]) -> list[RunDir]:
    """Return the runs of the last day and older ones that have not ended, the newest last."""
    import time

    since = time.time() - _DAY_S
    return [run for run in listing(roots) if _made_s(run) >= since or not has_ended(run)]


def _made_s(run: RunDir) -> float:
    try:
        return run.config.stat().st_mtime
    except OSError:  # deleted meanwhile
        return 0.0


def has_ended(run: RunDir) -> bool:
    """Say whether the newest attempt has left an outcome after which there is no other; the files alone tell."""
    job, numbers = read_json(run.job), run.attempt_numbers()
    if not numbers:
        return bool(job.get("cancelled"))
    newest = numbers[-1]
    if job.get("submitted", 0) > read_json(run.begin(newest)).get("started", math.inf):
        return bool(job.get("cancelled"))  # a resumed run that waits
    outcome, verdict = read_json(run.outcome(newest)), read_json(run.verdict(newest))
    cause = CAUSES.get(str(outcome.get("cause")))
    never = outcome.get("verdict") == "completed" or (cause is not None and not cause.has_budget)
    return never or verdict.get("again") is False or bool(job.get("cancelled"))


def find(ref: str, roots: Sequence[Path]) -> RunDir:
    """Find a run by its directory, the directory's name, the config's name (the newest run) or a job id.

    Raises:
        UsageError: there is none, or a job id belongs to several runs.
    """
    path = Path(os.path.expanduser(ref))  # noqa: PTH111 - a Path raises where there is no such user
    if "/" in ref or os.path.isfile(path / "config.yaml"):  # noqa: PTH113 - a Path raises where it may not look
        return RunDir.open(path)
    for root in roots:
        if ref not in {"", ".", ".."} and os.path.isdir(root / ref):  # noqa: PTH112 - the same
            return RunDir.open(root / ref)
    runs = listing(roots)
    for near in (listing(roots[:1]), runs):  # a name is that of a run here, before that of a newer one elsewhere
        if called := [run for run in near if name_of(run) == ref]:
            return called[-1]
    for near in (listing(roots[:1]), runs):
        owners = [run for run in near if ref in _job_ids(run)]
        if len(owners) > 1:
            named = ", ".join(run.name for run in owners)
            raise UsageError(f"job {ref} belongs to several runs", f"give one of {named}")
        if owners:
            return owners[0]
    raise _nothing_found(ref, runs, roots)


def _nothing_found(ref: str, runs: Sequence[RunDir], roots: Sequence[Path]) -> UsageError:
    import difflib

    places = ", ".join(map(str, roots)) or "./runs"
    near = difflib.get_close_matches(ref, {run.name for run in runs} | {name_of(run) for run in runs}, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"no run {ref!r} in {places}", f"{meant}hpctrain list shows the runs; a directory works, too")


def name_of(run: RunDir) -> str:
    """Return the config's name, from the directory's name, which holds it."""
    match = _DIRECTORY.fullmatch(run.name)
    return match["name"] if match else str(read_json(run.plan).get("name") or run.name)


def _job_ids(run: RunDir) -> set[str]:
    records = [run.job, *(run.begin(number) for number in run.attempt_numbers())]
    return {str(record["job_id"]) for record in map(read_json, records) if "job_id" in record}
