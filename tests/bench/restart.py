"""How long a run on Slurm stands still after a rank was killed: to its verdict, Slurm's own delay, to the next step.

    hpctrain sandbox run --nodes 2 -- python tests/bench/restart.py [--rounds 5]

Each round submits a run of two ranks on two nodes that writes a line for each step, kills rank 1 once a checkpoint is
saved, and waits for the next attempt's first step. Printed are seconds, as median and range:

- noticed: from the kill to the outcome of the attempt;
- Slurm: from there to the start of the next attempt's script, of which the requeue itself takes most;
- restart: from the start of that script to the first step after the checkpoint, imports and rendezvous included.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hpctrain.rundir import RunDir, read_json

CONFIG = """
name: restart
slurm: {nodes: 2, cpus_per_task: 1, time: "0:30:00"}
data: {dataset: digits}
model: {name: mlp, args: {hidden: [64]}}
batch: {global: 16}
optim: {name: sgd, lr: 0.01}
train: {steps: 1000000, eval_every: 100 %}
checkpoint: {every: 500 steps}
log: {every: 1 steps}
"""
_PATIENCE_S = 180.0


def until(condition: Callable[[], bool]) -> float:
    """Wait for something; return when it was seen, in seconds since 1970."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited in vain")
        time.sleep(0.01)
    return time.time()


def lines(run: RunDir, attempt: int) -> list[float]:
    """Return the time of each whole line of an attempt's metrics."""
    try:
        text = run.metrics(attempt).read_text()
    except OSError:
        return []
    return [json.loads(line)["time"] for line in text[: text.rfind("\n") + 1].splitlines()]


def rank_pid(run: RunDir, rank: int) -> int:
    """Find the process of a rank on this machine, on which the sandbox's nodes are."""
    wanted = {f"HPCTRAIN_RUN={run.path}".encode(), f"SLURM_PROCID={rank}".encode()}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((path / "environ").read_bytes().split(b"\0")):
                words = (path / "cmdline").read_bytes().split(b"\0")
                if b"hpctrain.train" in words:
                    return int(path.name)
        except OSError:
            continue
    sys.exit(f"rank {rank} is not on this machine")


def once(folder: Path) -> dict[str, float]:
    """Do one round; return seconds by name."""
    config = folder / "restart.yaml"
    config.write_text(CONFIG)
    submit = [sys.executable, "-m", "hpctrain", "submit", str(config), f"runs={folder}/runs"]
    subprocess.run(submit, cwd=folder, check=True, capture_output=True)
    [path] = (folder / "runs").iterdir()
    run = RunDir.open(path)
    until(lambda: bool(run.checkpoints()))
    killed = time.time()
    os.kill(rank_pid(run, 1), signal.SIGKILL)
    noticed = until(run.outcome(1).exists)
    until(lambda: bool(lines(run, 2)))
    began = float(read_json(run.begin(2))["started"])
    first = lines(run, 2)[0]
    subprocess.run([sys.executable, "-m", "hpctrain", "cancel", str(run.path)], check=True, capture_output=True)
    return {"noticed": noticed - killed, "Slurm": began - noticed, "restart": first - began}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(once(Path(folder)))
            time.sleep(2)  # for the ranks that are being cancelled
    for name in found[0]:
        values = [row[name] for row in found]
        print(f"{name:8} {statistics.median(values):6.2f} s  ({min(values):.2f} - {max(values):.2f})")


if __name__ == "__main__":
    main()
