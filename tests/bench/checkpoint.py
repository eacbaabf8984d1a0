"""What a checkpoint costs the training: ResNet-50 with momentum (25.6 M parameters), saved in the background or not.

    python tests/bench/checkpoint.py [--rounds 9] [--seconds 3] [--device cpu|cuda] [--where DIR] [--ema]

Each round trains for some seconds without a save, with one in the background and with one in the foreground, in an
order that changes from round to round. Printed are, as median and quartiles over the rounds:

- stall: for how long the loop stood still in `Saver.save`; of it `copied` is the copy to host memory;
- written: from there to a checkpoint that was read back and verified;
- cost: how much longer the same number of steps took than without a save, and per cent of a minute;
- CPU: how much more CPU time of all threads together that was: what a save costs at most, where no core is free.

On a busy machine the cost says little; the CPU time and the least values hold.
"""

import argparse
import contextlib
import io
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hpctrain.config import schema
from hpctrain.config.duration import Duration
from hpctrain.dist.single import Single, SingleStep
from hpctrain.models import build
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train import rng
from hpctrain.train.average import Average
from hpctrain.train.checkpoint import Checkpoints
from hpctrain.train.saver import Saver
from hpctrain.train.snapshot import Buffers

PLAN = Plan(
    name="bench", seed=0, nodes=1, ranks_per_node=1, ranks=1, device="cpu", strategy="ddp", backend="gloo",
    launcher="local", precision="fp32", train_samples=10**6, global_batch=8, accumulate=1, steps_per_epoch=10**5,
    total_steps=10**6,
)  # fmt: skip
CONFIG = schema.Config(
    name="bench",
    data=schema.Data(dataset="synthetic"),
    model=schema.Model(name="resnet50"),
    batch=schema.Batch(global_=8),
    optim=schema.Optim(lr=0.1, momentum=0.9),
    train=schema.Train(steps=10**6),
    checkpoint=schema.Checkpoint(every=Duration(1, "steps"), keep=1),
)
KINDS = ("none", "background", "foreground")


class Training:
    """Steps of a ResNet-50 on pictures small enough that a step is short."""

    def __init__(self, device: torch.device, *, ema: bool) -> None:
        assert CONFIG.model is not None
        self.device = device
        size, batch = (224, 64) if device.type == "cuda" else (32, 8)
        self.model = build.build(CONFIG.model, shape=(3, size, size), outputs=1000, seed=0).to(device)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        self.step = SingleStep(self.model, optimizer)
        self.average = Average(self.model, 0.999) if ema else None
        self.images = torch.randn(batch, 3, size, size, device=device)

    def one(self) -> None:
        """Do one step and wait for it."""
        self.step.backward(self.step.forward(self.images, last=True).square().mean(), last=True)
        self.step.apply()
        if self.average is not None:
            self.average.update()

    def time(self, steps: int, begin: Callable[[], None], poll: Callable[[], None]) -> float:
        """Return the seconds of so many steps, after a save has begun."""
        self.wait()
        began = time.perf_counter()
        begin()
        for _ in range(steps):
            self.one()
            poll()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def show(name: str, values: list[float], unit: str, factor: float) -> None:
    """Print median, quartiles and the least."""
    scaled = [value * factor for value in values]
    low, middle, high = statistics.quantiles(scaled, n=4)
    print(f"{name:24}  {middle:9.2f} {unit}  ({low:.2f} - {high:.2f}; least {min(scaled):.2f})")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--where", default=None)
    parser.add_argument("--ema", action="store_true")
    asked = parser.parse_args()
    device = torch.device(asked.device, 0) if asked.device == "cuda" else torch.device("cpu")
    torch.set_num_threads(1)
    training = Training(device, ema=asked.ema)
    with tempfile.TemporaryDirectory(dir=asked.where) as folder:
        run = RunDir(Path(folder))
        for part in (run.attempts, run.ckpt, run.stage):
            part.mkdir()
        checkpoints = Checkpoints(run, 1, PLAN, CONFIG)
        checkpoints.fence()
        savers = {
            kind: Saver(checkpoints, Buffers(device), background=kind == "background", on_saved=lambda _: None)
            for kind in KINDS[1:]
        }
        measure(training, savers, run, asked.rounds, asked.seconds)


def measure(training: Training, savers: dict[str, Saver], run: RunDir, rounds: int, seconds: float) -> None:
    """Run all kinds in turn and print what they cost."""
    done = 0
    stalls: dict[str, list[float]] = {kind: [] for kind in KINDS[1:]}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    busy: dict[str, list[float]] = {kind: [] for kind in KINDS}
    told = io.StringIO()

    def save(kind: str) -> None:
        nonlocal done
        if kind == "none":
            return
        done += 1
        began = time.perf_counter()
        states = rng.gather(Single(), training.device)
        savers[kind].save(done, training.model, training.step, training.average, states, evaluated=True)
        stalls[kind].append(time.perf_counter() - began)

    with contextlib.redirect_stdout(told):
        per_step = training.time(5, lambda: None, lambda: None) / 5
        steps = max(round(seconds / per_step), 3)
        for number in range(-1, rounds):  # the first round makes the buffers
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                poll = savers[kind].poll if kind in savers else (lambda: None)
                before = time.process_time()
                times[kind].append(training.time(steps, lambda kind=kind: save(kind), poll))  # type: ignore[misc]
                if kind in savers:
                    savers[kind].wait()
                busy[kind].append(time.process_time() - before)
    size = sum(file.stat().st_size for file in run.checkpoint(done).iterdir()) / 2**20
    print(f"{size:.0f} MiB; {steps} steps of {per_step * 1000:.1f} ms in each part; {rounds} rounds")
    lines = re.findall(r"copied ([\d.]+) s  written in ([\d.]+) s", told.getvalue())[2:]
    show("copied", [float(copied) for copied, _ in lines], "ms", 1000)
    show("written", [float(written) for _, written in lines], "ms", 1000)
    for kind in KINDS[1:]:
        show(f"{kind}: stall", stalls[kind][1:], "ms", 1000)
        cost = [with_save - without for with_save, without in zip(times[kind][1:], times["none"][1:], strict=True)]
        show(f"{kind}: cost", cost, "ms", 1000)
        show(f"{kind}: one a minute", cost, "% ", 100 / 60)
        more = [with_save - without for with_save, without in zip(busy[kind][1:], busy["none"][1:], strict=True)]
        show(f"{kind}: CPU", more, "ms", 1000)


if __name__ == "__main__":
    main()
