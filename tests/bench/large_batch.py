"""Does the accuracy survive a large batch? Equal epochs of real MNIST, batches from 64 to 4096, five rules.

    python tests/bench/large_batch.py --out DIR            choose rates, then all runs; called again, it goes on
    python tests/bench/large_batch.py --out DIR --table    the table alone, of what is there
    python tests/bench/large_batch.py --out DIR --picture docs/large_batch.svg

Every run is `hpctrain run` of one rank as it stands; HPCTRAIN_DATA/mnist holds the files. Rates are chosen by seed 0
with a sixth of the training set for validation (--choose alone); what is reported is the test set after training on all
of it. SGD's rate is chosen for batch 64, and the rules say what it becomes; that of LARS is chosen for 4096.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[2]
EPOCHS, BASE, BATCHES, SEEDS = 5, 64, (512, 1024, 4096), (0, 1, 2)
SGD = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "weight_decay_on": "weights"}
LARS = {"name": "lars", "momentum": 0.9, "weight_decay": 5e-4, "trust": 0.1, "scale": "sqrt", "base_batch": 4096}
RULES: dict[str, dict[str, Any]] = {
    "linear, warm-up": SGD | {"scale": "linear", "base_batch": BASE, "warmup": "1 epochs"},
    "linear, no warm-up": SGD | {"scale": "linear", "base_batch": BASE},
    "square root, warm-up": SGD | {"scale": "sqrt", "base_batch": BASE, "warmup": "1 epochs"},
    "unscaled": SGD | {"scale": "none", "warmup": "1 epochs"},
    "LARS, warm-up": LARS | {"warmup": "1 epochs"},
}
RATES = {"sgd": (0.01, 0.02, 0.05), "lars": (0.15, 0.3, 0.6)}


def net() -> Any:
    """Return the net: two convolutions of 5 x 5 with pooling, 8 and 16 channels, a dense layer of 64, batch norms."""
    from torch import nn

    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16)):
        convolution = nn.Conv2d(before, after, 5, padding=2, bias=False)
        layers += [convolution, nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.ReLU()]
    dense = [nn.Flatten(), nn.Linear(16 * 49, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *dense)


def run(batch: int, optim: dict[str, Any], seed: int, *, validation: bool) -> float:
    """Train, and return the accuracy in percent: on the validation set, or on the test set."""
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "name": "large-batch",
            "runs": folder,
            "seed": seed,
            "data": {"dataset": "mnist", "split": {"validation": 1 / 6 if validation else 0.0}},
            "model": {"name": "tests.bench.large_batch:net"},
            "batch": {"global": batch},
            "optim": optim | {"schedule": "cosine"},
            "train": {"epochs": EPOCHS, "eval_every": f"{EPOCHS} epochs"},
            "checkpoint": {"every": f"{EPOCHS} epochs"},
            "dist": {"ranks": 1},
        }
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config))
        command = [sys.executable, "-m", "hpctrain", "run", str(path)]
        env = {**os.environ, "XDG_STATE_HOME": folder}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            if "no number" in done.stderr or "the loss is" in done.stderr:  # diverged, which is a result
                return 10.0
            raise SystemExit(done.stderr)
        (metrics,) = Path(folder).glob("large-batch-*/attempts/1/metrics.jsonl")
        lines = map(json.loads, metrics.read_text().splitlines())
        wanted = "validation" if validation else "test"
        return 100 * float(next(line["accuracy"] for line in lines if line["split"] == wanted))


class Results:
    """Accuracies by what was run, kept in a file."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "large_batch.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self.found = {line["key"]: line["accuracy"] for line in map(json.loads, lines)}

    def get(self, key: str, batch: int, optim: dict[str, Any], seed: int, *, validation: bool = False) -> float:
        """Return an accuracy, after a run if it is not there yet."""
        if key not in self.found:
            self.found[key] = run(batch, optim, seed, validation=validation)
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "accuracy": self.found[key], "optim": optim}) + "\n")
            print(f"{self.found[key]:6.2f} %  {key}", file=sys.stderr, flush=True)
        found: float = self.found[key]
        return found


def choose(results: Results) -> dict[str, float]:
    """Return the best rate of each optimizer on the validation set."""
    chosen = {}
    for name, batch, rule in (("sgd", BASE, "linear, warm-up"), ("lars", 4096, "LARS, warm-up")):
        scores = {
            lr: results.get(f"choose {name} {batch} lr {lr}", batch, RULES[rule] | {"lr": lr}, 0, validation=True)
            for lr in RATES[name]
        }
        chosen[name] = max(scores, key=lambda lr: scores[lr])
    return chosen


def everything(results: Results) -> None:
    """Run all that is not there yet, seed after seed."""
    rates = choose(results)
    for seed in SEEDS:
        results.get(f"{BASE} base seed {seed}", BASE, RULES["linear, warm-up"] | {"lr": rates["sgd"]}, seed)
        for batch in BATCHES:
            for rule, optim in RULES.items():
                results.get(f"{batch} {rule} seed {seed}", batch, optim | {"lr": rates[optim["name"]]}, seed)


def scores_of(results: Results, batch: int, rule: str) -> list[float]:
    """Return what is there, by seed."""
    name = "base" if batch == BASE else rule
    keys = [f"{batch} {name} seed {seed}" for seed in SEEDS]
    return [results.found[key] for key in keys if key in results.found]


def table(results: Results) -> str:
    """Return the table in Markdown: mean and deviation of the test accuracy, and the drop from batch 64."""
    base = scores_of(results, BASE, "")
    lines = [f"| rule | {' | '.join(map(str, (BASE, *BATCHES)))} |", "|---" * (2 + len(BATCHES)) + "|"]
    for rule in RULES:
        cells = []
        for batch in (BASE, *BATCHES):
            found = scores_of(results, batch, rule)
            if rule.startswith("LARS") and batch == BASE:
                cells.append("")
                continue
            spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
            drop = f" ({mean(found) - mean(base):+.2f})" if found and batch != BASE else ""
            cells.append(f"{mean(found):.2f}{spread}{drop}" if found else "-")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "hpctrain"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for rule in RULES:
        points = {batch: scores_of(results, batch, rule) for batch in (BASE, *BATCHES)}
        there = {batch: mean(100 - score for score in found) for batch, found in points.items() if found}
        axes.plot(list(there), list(there.values()), marker="o", label=rule)
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="error on the test set, %")
    axes.set_xticks([BASE, *BATCHES], [str(batch) for batch in (BASE, *BATCHES)])
    axes.set_yticks([0.7, 1, 1.5, 2, 3], ["0.7", "1", "1.5", "2", "3"])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--choose", action="store_true", help="choose rates alone")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--picture", type=Path, help="run nothing, draw")
    asked = parser.parse_args()
    results = Results(asked.out)
    if asked.picture:
        draw(results, asked.picture)
        return
    if asked.choose:
        print(choose(results))
        return
    if not asked.table:
        everything(results)
    print(table(results))


if __name__ == "__main__":
    main()
