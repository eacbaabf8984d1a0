"""Every optimizer on MNIST for one epoch, by configs/mnist_optimizers.yaml: three rates each.

    python tests/bench/mnist_optimizers.py --out FILE      called again, it goes on; prints the table of docs/recipes.md

HPCTRAIN_DATA/mnist holds the files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
RATES = {
    "sgd": (0.1, 0.2, 0.5),
    "sgd, momentum: 0.9": (0.02, 0.05, 0.1),
    "sgd, momentum: 0.9, nesterov: true": (0.02, 0.05, 0.1),
    "adagrad": (0.01, 0.02, 0.05),
    "adadelta": (0.5, 1.0, 2.0),
    "rmsprop": (5e-4, 1e-3, 2e-3),
    **dict.fromkeys(("adam", "amsgrad", "nadam", "radam", "adamw"), (1e-3, 2e-3, 4e-3)),
    "adamax": (2e-3, 4e-3, 8e-3),
    "lars, momentum: 0.9, trust: 0.1": (0.1, 0.3, 1.0),
    "lamb": (5e-3, 1e-2, 2e-2),
}


def run(optim: str) -> dict[str, float]:
    """Return the accuracies of the validation and of the test set."""
    with tempfile.TemporaryDirectory() as folder:
        config = str(ROOT / "configs/mnist_optimizers.yaml")
        command = [sys.executable, "-m", "hpctrain", "run", config, f"optim={optim}", f"runs={folder}", "--ranks", "1"]
        env = {**os.environ, "XDG_STATE_HOME": folder}
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
        (metrics,) = Path(folder).glob("*/attempts/1/metrics.jsonl")
        lines = map(json.loads, metrics.read_text().splitlines())
        return {line["split"]: line["accuracy"] for line in lines if line["split"] != "train"}


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    found = {line["optim"]: line for line in map(json.loads, out.read_text().splitlines())} if out.exists() else {}
    print("| `optim=` | validation, % | test, % |\n|---|---|---|")
    for name, rates in RATES.items():
        kind, _, more = name.partition(", ")
        rows = []
        for lr in rates:
            optim = f"{{name: {kind}, lr: {lr:g}{', ' * bool(more)}{more}}}"
            if optim not in found:
                found[optim] = {"optim": optim, **run(optim)}
                with out.open("a") as file:
                    file.write(json.dumps(found[optim]) + "\n")
            rows.append(found[optim])
        best = max(rows, key=lambda row: row["validation"])
        print(f"| `{best['optim']}` | {100 * best['validation']:.2f} | {100 * best['test']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
