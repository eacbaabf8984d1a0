"""What must be true of a run that went through faults: it ended as its undisturbed twin did."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpctrain.rundir import RunDir, read_json

_MEANING = ("step", "epoch", "position", "seed", "optimizer", "scaler")


def state(run: RunDir, step: int) -> dict[str, Any]:
    """Return the SHA-256 of every file of a checkpoint, read from the disk, and the counters of its manifest."""
    folder = run.checkpoint(step)
    manifest = read_json(folder / "manifest.json")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del files["manifest.json"]  # it names what may differ, such as the config with its paths
    return {"files": files, **{key: manifest[key] for key in _MEANING}}


def final(run: RunDir) -> dict[str, Any]:
    """Return the state of the newest checkpoint."""
    return state(run, run.checkpoints()[-1])


def ledger(run: RunDir) -> dict[int, dict[int, dict[str, Any]]]:
    """Return step -> rank -> epoch and sample ids. Of what two attempts did the later one counts."""
    steps: dict[int, dict[int, dict[str, Any]]] = {}
    for attempt in run.attempt_numbers():
        mine: dict[int, dict[int, dict[str, Any]]] = {}
        for path in (run.attempt(attempt) / "samples").glob("rank_*.jsonl"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                rank = int(path.stem.removeprefix("rank_"))
                mine.setdefault(record["step"], {})[rank] = {"epoch": record["epoch"], "ids": record["ids"]}
        steps |= mine
    return steps


def once_per_epoch(taken: dict[int, dict[int, dict[str, Any]]], samples: int) -> bool:
    """Say whether each sample stands there exactly once in each epoch."""
    epochs: dict[int, list[int]] = {}
    for ranks in taken.values():
        for record in ranks.values():
            epochs.setdefault(record["epoch"], []).extend(record["ids"])
    return all(sorted(ids) == list(range(samples)) for ids in epochs.values())


def assert_like(run: RunDir, twin: RunDir, *, samples: int) -> None:
    """Compare a run with its undisturbed twin: model, optimizer, all other state and counters, and who saw what."""
    assert run.checkpoints()[-1] == twin.checkpoints()[-1]
    assert final(run) == final(twin)
    taken = ledger(run)
    assert sorted(taken) == list(range(1, twin.checkpoints()[-1] + 1))
    assert taken == ledger(twin)
    assert once_per_epoch(taken, samples)


def outcomes(run: RunDir) -> list[dict[str, Any]]:
    """Return how each attempt ended."""
    return [read_json(run.outcome(number)) for number in run.attempt_numbers()]


def causes(run: RunDir) -> list[str | None]:
    """Return the cause of each attempt's end; None for one that completed."""
    return [outcome.get("cause") for outcome in outcomes(run)]


def publications(folder: Path) -> Iterable[dict[str, Any]]:
    """Return each try to publish a checkpoint: attempt, step, whether there was anything to rename, time."""
    path = folder / "publications.jsonl"
    return map(json.loads, path.read_text().splitlines()) if path.exists() else ()


def logs(run: RunDir) -> str:
    """Return the ends of all logs, for the message of a test that fails."""
    paths = sorted(path for path in run.path.glob("attempts/*/**/*") if path.suffix in {".err", ".out", ".log"})
    texts = [f"--- {path.relative_to(run.path)}\n{path.read_text(errors='replace')[-1500:]}" for path in paths]
    return "\n".join([*texts, json.dumps(outcomes(run), indent=1)])[-20000:]
