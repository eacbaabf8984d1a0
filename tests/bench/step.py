"""Overhead of a training step against a loop written by hand, same model, data and batch; interleaved.

    python tests/bench/step.py [--rounds 5] [--model mlp|cnn] [--ranks 2] [--steps 550]
        [--strategies ddp horovod-gloo horovod-mpi]

Each round runs all of them as `--ranks` processes; the time of a step is the median over intervals of 50 steps, the
first left out. Prints medians and quartiles over the rounds, in microseconds.
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

INTERVAL = 50
CONFIG = f"""
name: step
data: {{dataset: synthetic, samples: 10000}}
model: {{name: "net:build"}}
batch: {{global: 128}}
optim: {{lr: 0.01, momentum: 0.9, warmup: 100 steps}}
train: {{steps: STEPS, eval_every: STEPS steps}}
checkpoint: {{every: STEPS steps}}
log: {{every: {INTERVAL} steps}}
"""

# What a careful user writes: data in memory as bytes, one gather a batch, rate by hand, loss kept on the device.
BY_HAND = f"""
import os, sys, time
import torch
from torch.nn.functional import cross_entropy
from net import build

horovod = sys.argv[2] != "ddp"
if horovod:
    import horovod.torch as hvd
    hvd.init()
    rank, ranks = hvd.rank(), hvd.size()
else:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
assert ranks == int(sys.argv[3])
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (10000, 1, 28, 28), dtype=torch.uint8, generator=generator)
labels = torch.randint(0, 10, (10000,), generator=generator)
model = build(sys.argv[1])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
if horovod:
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
else:
    model = DistributedDataParallel(model, gradient_as_bucket_view=True)
size, step, total = 128 // ranks, 0, torch.zeros(())
began = time.perf_counter()
while step < STEPS:
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
            if horovod:
                hvd.allreduce_(total, name="total")
            else:
                dist.all_reduce(total)
            now = time.perf_counter()
            if rank == 0:
                print("step", step, total.item(), now - began, flush=True)
            total.zero_()
            began = now
        if step == STEPS:
            break
sys.stdout.flush()
if horovod:
    hvd.shutdown()
os._exit(0)
"""

# The same for both; its weights are contiguous, as Horovod's own functions want them.
NET = """
import torch
from hpctrain.config.schema import Model
from hpctrain.models import build as models

def build(model):
    built = models.build(Model(name=model), shape=(1, 28, 28), outputs=10, seed=0)
    return built.to(memory_format=torch.contiguous_format)
"""
OVERRIDES = {
    "ddp": [],
    "horovod-gloo": ["dist.strategy=horovod"],
    "horovod-mpi": ["dist.strategy=horovod", "dist.backend=mpi"],
}
LAUNCHERS = {
    "horovod-gloo": ["horovodrun", "--gloo", "-H", "localhost:RANKS", "-np", "RANKS"],
    "horovod-mpi": ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", "RANKS"],
}


def by_hand(work: Path, model: str, ranks: int, strategy: str) -> float:
    """Return microseconds a step."""
    argv = [sys.executable, "by_hand.py", model, strategy, str(ranks)]
    if strategy == "ddp":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        environments = [{**env, "RANK": str(rank)} for rank in range(ranks)]
    else:
        argv = [word.replace("RANKS", str(ranks)) for word in LAUNCHERS[strategy]] + argv
        environments = [{**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}]
    started = [subprocess.Popen(argv, cwd=work, env=env, stdout=subprocess.PIPE, text=True) for env in environments]
    out = started[0].communicate()[0]
    for rank in started[1:]:
        rank.communicate()
    if any(rank.returncode for rank in started):
        raise SystemExit(f"the loop by hand failed: {' '.join(argv)}\n{out}")
    seconds = [float(line.split()[-1]) for line in out.splitlines() if "step" in line][1:]
    return float(statistics.median(seconds) / INTERVAL * 1e6)


def by_hpctrain(work: Path, model: str, ranks: int, strategy: str) -> float:
    """Return microseconds a step."""
    shutil.rmtree(work / "runs", ignore_errors=True)
    argv = [
        sys.executable,
        "-m",
        "hpctrain",
        "run",
        "step.yaml",
        f"model.args={{model: {model}}}",
        "--ranks",
        str(ranks),
    ]
    argv += OVERRIDES[strategy]
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
    parser.add_argument("--steps", type=int, default=550)
    parser.add_argument("--strategies", nargs="+", choices=OVERRIDES, default=["ddp"])
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    kinds = {"by hand": by_hand, "hpctrain": by_hpctrain}
    times: dict[tuple[str, str], list[float]] = {(s, kind): [] for s in arguments.strategies for kind in kinds}
    try:
        (work / "step.yaml").write_text(CONFIG.replace("STEPS", str(arguments.steps)))
        (work / "net.py").write_text(NET)
        (work / "by_hand.py").write_text(BY_HAND.replace("STEPS", str(arguments.steps)))
        for _ in range(arguments.rounds):
            for (strategy, kind), values in times.items():
                values.append(kinds[kind](work, arguments.model, arguments.ranks, strategy))
    finally:
        shutil.rmtree(work)
    for (strategy, kind), values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{strategy:<14}{kind:<10}{middle:>9.0f} us a step  ({low:.0f} - {high:.0f}, n={len(values)})")
    for strategy in arguments.strategies:
        hand = times[strategy, "by hand"]
        middle = statistics.median(b - a for a, b in zip(hand, times[strategy, "hpctrain"], strict=True))
        print(f"{strategy:<14}difference{middle:>9.0f} us, {middle / statistics.median(hand):.2%}")


if __name__ == "__main__":
    main()
