"""The benches of a GPU and of a recipe work, also where they show nothing."""

import gzip
import importlib.util
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
BENCH = Path(__file__).parent / "bench"


def run(tmp_path, name, *words, **env):
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONPATH": str(BENCH.parents[1]), **env}
    argv = [sys.executable, str(BENCH / name), *words]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_bench_of_residual_networks_works_on_a_cpu(tmp_path):
    words = [
        "--device",
        "cpu",
        "--batches",
        "4",
        "--steps",
        "8",
        "--size",
        "32",
        "--model",
        "resnet18",
        "--rounds",
        "1",
    ]
    found = run(tmp_path, "resnet.py", *words, "--no-compile").splitlines()
    assert re.fullmatch(r"batch +4  hpctrain eager +[\d,]+ images/s .*% of 8,192, .*% of 11,865", found[0])
    here = [name for name in ("torchvision", "timm") if importlib.util.find_spec(name)]
    assert [line.split()[2] for line in found[1:]] == here


def bars(folder: Path) -> Path:
    """Write pictures as MNIST's files have them; a bright row tells the class."""
    drawn = random.Random(0)  # noqa: S311 - data
    (folder / "mnist").mkdir()
    for split, count in (("train", 1280), ("t10k", 100)):
        labels = bytes(number % 10 for number in range(count))
        images = b"".join(
            bytes(200 if row == 2 * label + 4 else drawn.randrange(60) for row in range(28) for _ in range(28))
            for label in labels
        )
        for name, head, content in (
            ("images-idx3", (2051, count, 28, 28), images),
            ("labels-idx1", (2049, count), labels),
        ):
            packed = struct.pack(f">{len(head)}I", *head) + content
            (folder / f"mnist/{split}-{name}-ubyte.gz").write_bytes(gzip.compress(packed, 1))
    return folder


def test_the_usual_mnist_recipe_learns(tmp_path):
    found = run(tmp_path, "mnist_examples.py", "--epochs", "1", "--threads", "1", HPCTRAIN_DATA=str(bars(tmp_path)))
    [epoch, last] = found.splitlines()
    assert re.fullmatch(r"epoch  1 +\d+\.\d s  accuracy [01]\.\d{4}", epoch)
    assert float(epoch.split()[-1]) > 0.5
    assert re.fullmatch(r"99.0% after (-|\d+\.\d) s; all epochs \d+\.\d s", last)
