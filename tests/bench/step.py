"""Overhead of a training step against a DDP loop written by hand, same model, data and batch; interleaved.

    python tests/bench/step.py [--rounds 5] [--model mlp|cnn] [--ranks 2]

Each round runs both as `--ranks` processes; the time of a step is the median over intervals of 50 steps, the first
interval left out. Prints medians and quartiles over the rounds, in microseconds.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS = 550
INTERVAL = 50
CONFIG = f"""
name: step
data: {{dataset: synthetic, samples: 10000}}
model: {{name: MODEL}}
batch: {{global: 128}}
optim: {{lr: 0.01, momentum: 0.9, warmup: 100 steps}}
train: {{steps: {STEPS}, eval_every: {STEPS} steps}}
checkpoint: {{every: {STEPS} steps}}
log: {{every: {INTERVAL} steps}}
"""

# What a careful user writes: data in memory as bytes, one gather a batch, rate by hand, loss kept on the device.
BY_HAND = f"""
import os, sys, time
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from hpctrain.config.schema import Model
from hpctrain.models.build import build

torch.set_num_threads(max(os.cpu_count() // int(os.environ["WORLD_SIZE"]), 1))
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (10000, 1, 28, 28), dtype=torch.uint8, generator=generator)
labels = torch.randint(0, 10, (10000,), generator=generator)
model = DistributedDataParallel(
    build(Model(name=sys.argv[1]), shape=(1, 28, 28), classes=10, seed=0), gradient_as_bucket_view=True
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
size, step, total = 128 // ranks, 0, torch.zeros(())
began = time.perf_counter()
while step < {STEPS}:
    order = torch.randperm(10000, generator=generator)
    for first in range(0, 10000 - 127, 128):
        chosen = order[first + rank * size : first + (rank + 1) * size]
        batch = images[chosen].float().div_(255).sub_(0.5).div_(0.3)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min((step + 1) / 100, 1)
        loss = cross_entropy(model(batch), labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        step += 1
        if step % {INTERVAL} == 0:
            dist.all_reduce(total)
            now = time.perf_counter()
            if rank == 0:
                print(step, total.item(), now - began, flush=True)
            total.zero_()
            began = now
        if step == {STEPS}:
            break
dist.destroy_process_group()
"""


def by_hand(work: Path, model: str, ranks: int) -> float:
    """Return microseconds a step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    argv = [sys.executable, "by_hand.py", model]
    started = [
        subprocess.Popen(argv, cwd=work, env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    out = started[0].communicate()[0]
    for rank in started[1:]:
        rank.communicate()
    seconds = [float(line.split()[2]) for line in out.splitlines()][1:]
    return float(statistics.median(seconds) / INTERVAL * 1e6)


def by_hpctrain(work: Path, model: str, ranks: int) -> float:
    """Return microseconds a step."""
    shutil.rmtree(work / "runs", ignore_errors=True)
    argv = [sys.executable, "-m", "hpctrain", "run", "step.yaml", f"model.name={model}", "--ranks", str(ranks)]
    subprocess.run(argv, cwd=work, check=True, capture_output=True)
    [metrics] = (work / "runs").glob("*/attempts/1/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rates = [row["samples_per_s"] for row in rows if row["split"] == "train"][1:]
    return float(128 / statistics.median(rates) * 1e6)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        (work / "step.yaml").write_text(CONFIG.replace("MODEL", "mlp"))
        (work / "by_hand.py").write_text(BY_HAND)
        times: dict[str, list[float]] = {"by hand": [], "hpctrain": []}
        for _ in range(arguments.rounds):
            times["by hand"].append(by_hand(work, arguments.model, arguments.ranks))
            times["hpctrain"].append(by_hpctrain(work, arguments.model, arguments.ranks))
    finally:
        shutil.rmtree(work)
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:<10}{middle:>9.0f} us a step  ({low:.0f} - {high:.0f}, n={len(values)})")
    difference = [b - a for a, b in zip(times["by hand"], times["hpctrain"], strict=True)]
    middle = statistics.median(difference)
    print(f"difference{middle:>9.0f} us, {middle / statistics.median(times['by hand']):.2%}")


if __name__ == "__main__":
    main()
