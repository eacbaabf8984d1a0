"""k-fold cross-validation: one run after the other, each with another part of the samples for validation."""

import sys
from typing import Any

import msgspec

from hpctrain.config.load import Loaded
from hpctrain.config.schema import Config
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
    return loaded.replaced(msgspec.structs.replace(config, folds=None, name=_name(config, number), data=data))


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
    """Run every fold to its end and print what their last evaluations found; return the exit code of one that fails."""
    from hpctrain.launch import here

    count = loaded.config.folds or 0
    runs: list[RunDir] = []
    for number in range(1, count + 1):
        print(f"hpctrain: fold {number} of {count}", file=sys.stderr, flush=True)
        code, run = here.run(one(loaded, number), ranks=ranks, debug=False)
        if code:
            _tell_how_to_go_on(loaded.config, run, number, runs)
            return code
        runs.append(run)
    found = {split: summary([scores(run, split) for run in runs]) for split in ("validation", "test")}
    for split, values in found.items():
        told = "  ".join(f"{name} {one['mean']:.4f} +- {one['std']:.4f}" for name, one in values.items())
        print(f"{split:10} of {count} folds  {told}  (last evaluations)", file=sys.stderr)
    print(msgspec.json.encode({"folds": count, **found, "runs": [str(run.path) for run in runs]}).decode(), flush=True)
    return 0


def _tell_how_to_go_on(config: Config, failed: RunDir, number: int, done: list[RunDir]) -> None:
    """Say what the folds before have found, and what to type for this one and the rest: nothing is done again."""
    lines = [f"fold {number} of {config.folds} did not complete: hpctrain resume {failed.path} goes on with it"]
    lines += [
        f"fold {rest}, which has not begun, alone: folds=null data.split.fold={rest}/{config.folds} "
        f"name={_name(config, rest)}"
        for rest in range(number + 1, (config.folds or 0) + 1)
    ]
    for place, run in enumerate(done, 1):
        told = [
            f"{split} {name} {value:.4f}"
            for split in ("validation", "test")
            for name, value in scores(run, split).items()
        ]
        lines.append(f"fold {place} is done: {', '.join(told)}; {run.path}")
    print("\n".join(f"hpctrain: {line}" for line in lines), file=sys.stderr)


def _name(config: Config, number: int) -> str:
    return f"{config.name[:52]}-fold{number}"


def scores(run: RunDir, split: str) -> dict[str, float]:
    """Return what a run's last evaluation of a split found; of a step that was done twice what the last attempt did."""
    rows: dict[int, dict[str, Any]] = {}
    for attempt in run.attempt_numbers():
        try:
            lines = run.metrics(attempt).read_bytes().split(b"\n")
        except OSError:  # it ended before it had anything to say
            continue
        for line in lines:
            try:
                row = msgspec.json.decode(line)
            except msgspec.DecodeError:  # the end of the file, or torn by a crash
                continue
            if isinstance(row, dict) and row.get("split") == split and isinstance(row.get("step"), int):
                rows[row["step"]] = row
    last = rows[max(rows)] if rows else {}
    return {name: last[name] for name in _TOLD if isinstance(last.get(name), int | float)}


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
        if all(name in one for one in found)
    }
