"""k-fold cross-validation: one run after the other, each with another part of the samples for validation."""

import sys
from typing import Any

import msgspec

from hpctrain.config.load import Loaded
from hpctrain.errors import UsageError
from hpctrain.rundir import RunDir

_TOLD = ("accuracy", "error", "loss")


def one(loaded: Loaded, number: int) -> Loaded:
    """Return the config of one fold, counted from 1; one without folds as it is."""
    config = loaded.config
    if config.folds is None or config.data is None:
        return loaded
    split = msgspec.structs.replace(config.data.split, fold=f"{number}/{config.folds}")
    data = msgspec.structs.replace(config.data, split=split)
    name = f"{config.name[:52]}-fold{number}"
    return loaded.replaced(msgspec.structs.replace(config, folds=None, name=name, data=data))


def refuse(loaded: Loaded) -> None:
    """Refuse to queue all folds as one job.

    Raises:
        UsageError: the config has folds.
    """
    if loaded.config.folds is not None:
        raise UsageError(
            f"folds: {loaded.config.folds} are that many runs, one after the other",
            "hpctrain run does them; or submit each: folds=null data.split.fold=1/"
            f"{loaded.config.folds} name={loaded.config.name}-fold1",
        )


def run_all(loaded: Loaded, *, ranks: int | None) -> int:
    """Run every fold to its end and print what they found; return the exit code of the first that fails."""
    from hpctrain.launch import here

    count = loaded.config.folds or 0
    runs: list[RunDir] = []
    for number in range(1, count + 1):
        print(f"hpctrain: fold {number} of {count}", file=sys.stderr, flush=True)
        code, run = here.run(one(loaded, number), ranks=ranks, debug=False)
        runs.append(run)
        if code:
            return code
    found = {split: summary([scores(run, split) for run in runs]) for split in ("validation", "test")}
    for split, values in found.items():
        told = "  ".join(f"{name} {one['mean']:.4f} +- {one['std']:.4f}" for name, one in values.items())
        print(f"{split:10} of {count} folds  {told}", file=sys.stderr)
    print(msgspec.json.encode({"folds": count, **found, "runs": [str(run.path) for run in runs]}).decode(), flush=True)
    return 0


def scores(run: RunDir, split: str) -> dict[str, float]:
    """Return what a run's last evaluation of a split found."""
    last: dict[str, Any] = {}
    for attempt in run.attempt_numbers():
        for line in run.metrics(attempt).read_bytes().splitlines():
            record = msgspec.json.decode(line)
            if record["split"] == split:
                last = record
    return {name: last[name] for name in _TOLD if name in last}


def summary(found: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation (of a sample, n - 1) over the folds, and the value of each."""
    import statistics

    return {
        name: {
            "mean": statistics.mean(one[name] for one in found),
            "std": statistics.stdev(one[name] for one in found),
            "values": [one[name] for one in found],
        }
        for name in found[0]
    }
