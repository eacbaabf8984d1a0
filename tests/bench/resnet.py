"""Training of ResNet-50 on synthetic pictures, images per second, beside torchvision's and timm's own training step.

    python tests/bench/resnet.py [--batches 256 512 1024] [--steps 40] [--rounds 3] [--size 224] [--model resnet50]
        [--precision bf16] [--device cuda|cpu] [--no-compile]

Variants, interleaved in each round: hpctrain, eager and compiled, by `hpctrain run` on the synthetic dataset, its speed
as metrics.jsonl has it; and, where they are installed, the same step as torchvision's reference scripts and timm's
train.py write it: their model, channels last, autocast, SGD with momentum, a batch that lies on the device. Prints of
each the median and range, and the part of the roofline of an H200: 8,192 images/s where each kernel reads and writes
its activations, 11,865 where batch norm and ReLU are fused into the convolutions.

It shows nothing on a CPU, but works there: --device cpu --batches 4 --steps 8 --size 32 --model resnet18 --rounds 1.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

EAGER, FUSED = 8192, 11865
"""Images per second of ResNet-50 with 224 x 224 pixels that an H200 could do, at 790 TFLOP/s and 4.3 TB/s."""
WARM = 4
"""One part of this many of the steps is left out: compiling, and the first steps."""


def ours(args: argparse.Namespace, batch: int, *, compiled: bool) -> float:
    """Run hpctrain; return images per second, the median over the intervals after the first part."""
    cuda = args.device == "cuda"
    every = max(args.steps // 8, 1)
    with tempfile.TemporaryDirectory() as folder:
        config, shape = Path(folder) / "resnet.yaml", [3, args.size, args.size]
        config.write_text(f"""
name: resnet
runs: {folder}/runs
device: {args.device}
slurm: {{gpus_per_node: {int(cuda)}}}
data: {{dataset: synthetic, samples: {batch * args.steps}, args: {{shape: {shape}, classes: 1000}}}}
model: {{name: {args.model}}}
batch: {{global: {batch}}}
optim: {{lr: 0.1, momentum: 0.9, weight_decay: 5.0e-5}}
precision: {args.precision}
train: {{steps: {args.steps}, eval_every: {args.steps} steps, channels_last: true, compile: {str(compiled).lower()}}}
checkpoint: {{every: {args.steps} steps}}
log: {{every: {every} steps}}
""")
        env = os.environ | {"XDG_STATE_HOME": f"{folder}/state"}
        argv = [sys.executable, "-m", "hpctrain", "run", str(config)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        [run] = (Path(folder) / "runs").iterdir()
        lines = [json.loads(line) for line in (run / "attempts/1/metrics.jsonl").read_text().splitlines()]
    found = [float(line["samples_per_s"]) for line in lines if line["split"] == "train"]
    return statistics.median(found[len(found) // WARM :])


def theirs(build: Callable[[], nn.Module], args: argparse.Namespace, batch: int) -> float:
    """Train another library's model as its own script does; return images per second of the later steps."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = build().to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-5)
    images = torch.randn(batch, 3, args.size, args.size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.precision)
    skipped = max(args.steps // WARM, 1)
    began = time.perf_counter()
    for step in range(args.steps):
        if step == skipped:
            wait(device)
            began = time.perf_counter()
        with contextlib.nullcontext() if half is None else torch.autocast(args.device, half):
            loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wait(device)
    seconds = time.perf_counter() - began
    return float(batch * (args.steps - skipped) / seconds)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def variants(args: argparse.Namespace) -> dict[str, Callable[[int], float]]:
    """Return what is measured: name -> images per second of a batch."""
    found: dict[str, Callable[[int], float]] = {
        "hpctrain eager": lambda batch: ours(args, batch, compiled=False),
    }
    if not args.no_compile:
        found["hpctrain compiled"] = lambda batch: ours(args, batch, compiled=True)
    if importlib.util.find_spec("torchvision"):
        if torch.version.cuda is None:  # its operators need CUDA, but its models do not
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        models = importlib.import_module("torchvision.models")
        found["torchvision"] = lambda batch: theirs(lambda: models.get_model(args.model), args, batch)
    if importlib.util.find_spec("timm"):
        timm = importlib.import_module("timm")
        found["timm"] = lambda batch: theirs(lambda: timm.create_model(args.model), args, batch)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    args = parser.parse_args()
    kinds = variants(args)
    for batch in args.batches:
        speeds: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(args.rounds):
            for name, run in kinds.items():
                speeds[name].append(run(batch))
        for name, found in speeds.items():
            middle = statistics.median(found)
            spread = f"({min(found):,.0f} - {max(found):,.0f})"
            roof = f"{middle / EAGER:6.1%} of {EAGER:,}, {middle / FUSED:6.1%} of {FUSED:,}"
            print(f"batch {batch:5}  {name:18} {middle:8,.0f} images/s {spread:20} {roof}", flush=True)


if __name__ == "__main__":
    main()
