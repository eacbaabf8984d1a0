"""A run that is stopped in the middle of an epoch and goes on: how many samples were seen twice, and how many never.

    python tests/bench/exactly_once.py [--peers PYTHON] [--seeds 5]

64 samples in batches of 8, shuffled, one process, two epochs; stopped and saved after step 3, then resumed by a new
process. hpctrain, and beside it Lightning and accelerate as their documentation says, run by PYTHON, which has them:
`python -m venv DIR; DIR/bin/pip install torch==2.13.0 lightning==2.6.6 accelerate==1.15.0`.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the ranks import tests.train by its name

SAMPLES, BATCH, STOP, EPOCHS = 64, 8, 3, 2

COMMON = f"""
import json, sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader, TensorDataset
attempt, seed, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
SAMPLES, BATCH, STOP, EPOCHS = {SAMPLES}, {BATCH}, {STOP}, {EPOCHS}
ids = torch.arange(SAMPLES)
dataset = TensorDataset(torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0)), ids)
seen = []
if torch.version.cuda is None:  # torchvision, where it is installed, asks for operators that a torch without CUDA lacks
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{{name}}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

LIGHTNING = (
    COMMON
    + """
import lightning as L
import lightning.pytorch.callbacks

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)
    def training_step(self, batch, number):
        seen.append([self.current_epoch, batch[1].tolist()])
        return self.net(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

L.seed_everything(seed, verbose=False)
loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
limit = {"max_steps": STOP} if attempt == 1 else {"max_epochs": EPOCHS}
save = L.pytorch.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STOP, save_top_k=-1)
trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, callbacks=save, enable_progress_bar=False,
                    enable_model_summary=False, default_root_dir=folder, **limit)
trainer.fit(Model(), loader, ckpt_path=folder / f"step={STOP}.ckpt" if attempt == 2 else None)
print(json.dumps(seen))
"""
)

ACCELERATE = (
    COMMON
    + """
from accelerate import Accelerator
from accelerate.utils import set_seed

set_seed(seed)
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(4, 1)
model, optimizer, loader = accelerator.prepare(
    model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(dataset, batch_size=BATCH, shuffle=True))
done = 0
if attempt == 2:
    accelerator.load_state(folder / "a")
    done = STOP
for epoch in range(EPOCHS):
    loader.set_epoch(epoch)
    batches = accelerator.skip_first_batches(loader, done) if epoch == 0 and done else loader
    for inputs, taken in batches:
        seen.append([epoch, taken.tolist()])
        accelerator.backward(model(inputs).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        if attempt == 1 and len(seen) == STOP:
            accelerator.save_state(folder / "a")
            print(json.dumps(seen))
            sys.exit()
print(json.dumps(seen))
"""
)

Ledger = list[tuple[int, list[int]]]


def peer(python: str, program: str, seed: int, folder: Path, *, cut: bool) -> Ledger:
    """Run both attempts of a peer, or one without a stop (number 0); return epoch and samples of each step."""
    steps: Ledger = []
    for attempt in (1, 2) if cut else (0,):
        argv = [python, "-W", "ignore", "-c", program, str(attempt), str(seed), str(folder)]
        ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
        if ended.returncode:
            raise SystemExit(ended.stderr)
        steps += [(epoch, ids) for epoch, ids in json.loads(ended.stdout.splitlines()[-1])]
    return steps


def ours(seed: int, folder: Path, *, cut: bool) -> Ledger:
    """Run both attempts of hpctrain, or one without a stop."""
    from tests.train.ranks import Ranks, make_config

    ranks = Ranks(folder)
    config = make_config(
        seed=seed,
        data={"samples": SAMPLES},
        batch={"global_": BATCH},
        train={"epochs": EPOCHS},
        log={"samples": True},
    )
    run, steps = ranks.run_dir(), []
    try:
        for until in (STOP, None) if cut else (None,):
            job = ranks.start(config, 1, run=run, until=until)
            job.outcome()
            lines = run.samples(job.attempt, 0).read_text().splitlines()
            steps += [(line["epoch"], line["ids"]) for line in map(json.loads, lines)]
    finally:
        ranks.end()
    return steps


def judge(steps: Ledger) -> tuple[int, int]:
    """Count the samples that the first epoch showed twice or more, and never."""
    seen = Counter(sample for epoch, ids in steps if epoch == 0 for sample in ids)
    return sum(count > 1 for count in seen.values()), SAMPLES - len(seen)


def main() -> None:
    """Run all, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="Python that has Lightning and accelerate")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    runs: dict[str, Callable[..., Ledger]] = {"hpctrain": ours}
    if asked.peers:
        runs["Lightning"] = functools.partial(peer, asked.peers, LIGHTNING)
        runs["accelerate"] = functools.partial(peer, asked.peers, ACCELERATE)
    for name, run in runs.items():
        found, kept = [], 0
        for seed in range(asked.seeds):
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
                steps, whole = run(seed, Path(one), cut=True), run(seed, Path(two), cut=False)
            if judge(whole) != (0, 0) or len(whole) != EPOCHS * SAMPLES // BATCH:
                raise SystemExit(f"{name}: not even a run without a stop shows each sample once")
            found.append(judge(steps))
            kept += [step for step in steps if step[0]] == [step for step in whole if step[0]]
        twice, never = zip(*found, strict=True)
        print(f"{name:11} seen twice {list(twice)} (median {statistics.median(twice):g}), "
              f"never {list(never)} (median {statistics.median(never):g}), "
              f"second epoch as without a stop: {kept} of {asked.seeds}")  # fmt: skip


if __name__ == "__main__":
    main()
