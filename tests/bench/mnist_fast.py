"""Accuracy and time of configs/mnist_fast.yaml over many seeds, through `hpctrain run` as it stands.

    HPCTRAIN_DATA=DIR python tests/bench/mnist_fast.py [--seeds 20] [OVERRIDE ...]

The time of a run is that of training: from before the first batch until after the last step, without what comes before
(start, reading the files) and without the evaluation, as samples_per_s of the outcome has it. The accuracy is that of
the test set; with data.split={validation: 0.1667} what is printed is the validation set's, to choose by.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "configs/mnist_fast.yaml"


def run(seed: int, overrides: list[str]) -> tuple[float, float]:
    """Train with a seed; return the accuracy and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"XDG_STATE_HOME": f"{folder}/state"}
        argv = [sys.executable, "-m", "hpctrain", "run", str(CONFIG), f"seed={seed}", f"runs={folder}/runs", *overrides]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        [found] = (Path(folder) / "runs").iterdir()
        outcome, plan = (json.loads((found / part).read_text()) for part in ("attempts/1/outcome.json", "plan.json"))
        lines = [json.loads(line) for line in (found / "attempts/1/metrics.jsonl").read_text().splitlines()]
    split = "validation" if plan["validation_samples"] else "test"
    accuracy = [line["accuracy"] for line in lines if line["split"] == split][-1]
    samples = plan["train_samples"] * outcome["total_steps"] / plan["steps_per_epoch"]
    return float(accuracy), float(samples / outcome["samples_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    accuracies, seconds = [], []
    for seed in range(args.seeds):
        accuracy, spent = run(seed, args.overrides)
        accuracies.append(100 * accuracy)
        seconds.append(spent)
        print(f"seed {seed:2}  {100 * accuracy:.2f} %  {spent:.2f} s", flush=True)
    print(
        f"accuracy {statistics.mean(accuracies):.3f} % (deviation {statistics.pstdev(accuracies):.3f}, "
        f"{min(accuracies):.2f} - {max(accuracies):.2f}); training {statistics.median(seconds):.2f} s "
        f"({min(seconds):.2f} - {max(seconds):.2f})"
    )


if __name__ == "__main__":
    main()
