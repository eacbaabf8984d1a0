"""A program for a private mount namespace: a run on a small disk of its own, which fills up while it trains.

Prints what happened as one JSON object. The disk is a tmpfs: it goes with the namespace.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

CONFIG = """
name: full
runs: {runs}
data: {{dataset: digits}}
model: {{name: mlp, args: {{hidden: [1000]}}}}
batch: {{global: 60}}
optim: {{lr: 0.1, momentum: 0.9}}
train: {{epochs: 80, eval_every: 80 epochs}}
checkpoint: {{every: 5 epochs, keep: 1}}
"""
_SIZE_MIB = 16
_LEFT = 300_000  # for logs and outcomes; half of what a checkpoint takes


def run(directory: Path, config: Path, *words: str) -> "subprocess.Popen[str]":
    """Start a command of hpctrain."""
    return subprocess.Popen([sys.executable, "-m", *words, str(config)], cwd=directory, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip


def fill(disk: Path) -> Path:
    """Leave no more room than that."""
    filler = disk / "filler"
    system = os.statvfs(disk)
    filler.write_bytes(bytes(max(system.f_bavail * system.f_frsize - _LEFT, 0)))
    return filler


def main() -> None:
    """Train on a disk that fills up, make room, go on."""
    disk = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m", "tmpfs", disk], check=True)
    config = disk / "c.yaml"
    config.write_text(CONFIG.format(runs=disk / "runs"))
    first = run(disk, config, "hpctrain", "run")
    try:
        while not list(disk.glob("runs/*/ckpt/step_*")):
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.002)
        filler = fill(disk)
        told = first.communicate(timeout=120)[1]
        (directory,) = (disk / "runs").iterdir()
        outcome = json.loads((directory / "attempts/1/outcome.json").read_text())
        left = sorted(path.name for path in directory.glob("ckpt/*"))
        filler.unlink()
        second = run(disk, directory, "hpctrain.launch.local")
        again = second.communicate(timeout=120)[1]
    finally:
        first.kill()
    files = {path.name: path.read_bytes().hex() for path in directory.glob("ckpt/step_00002000/*.safetensors")}
    log = (directory / "attempts/2/logs/rank_0.out").read_text()
    print(json.dumps({
        "first": first.returncode, "told": told, "outcome": outcome, "left": left, "second": second.returncode,
        "again": again, "log": log, "files": files,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
