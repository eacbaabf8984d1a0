"""The configs that come along: each says what to expect, and runs from end to end on small data."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hpctrain.config.load import load

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_what_to_expect_how_long_it_takes_and_what_to_type(path):
    schema, _, *header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert schema == "# yaml-language-server: $schema=../docs/config.schema.json"
    for key in ("Expected: ", "Time:     ", "Command:  "):
        assert any(line.startswith(f"# {key}") for line in header), key
    assert load(path, []).config.name == path.stem.replace("_", "-")


def abalones(folder: Path) -> Path:
    """Write rows as UCI's file has them, whose rings follow from what was measured."""
    drawn = random.Random(0)  # noqa: S311 - data
    rows = []
    for _ in range(300):
        size = drawn.uniform(0.1, 0.7)
        measured = [round(size * factor, 4) for factor in (1, 0.8, 0.3, 2, 0.9, 0.4, 0.5)]
        rows.append(",".join(map(str, [drawn.choice("MFI"), *measured, round(3 + 20 * size)])))
    path = folder / "abalone.data"
    path.write_text("\n".join(rows) + "\n")
    return path


def cifar(folder: Path) -> Path:
    """Write files as CIFAR-10's binary version has them; each class has a colour."""
    drawn = random.Random(0)  # noqa: S311 - data

    def image(label: int) -> bytes:
        return bytes([label]) + b"".join(bytes([100 * label % 256, drawn.randrange(64)]) * 512 for _ in range(3))

    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(b"".join(image(label) for label in [*range(10)] * 20))
    (folder / "batches.meta.txt").write_text("\n".join([*CLASSES.split(), ""]))
    return folder


def pictures(folder: Path, test: str) -> Path:
    """Write JPEGs of two classes, each of a colour, in class folders."""
    from PIL import Image

    root = folder / "pictures"
    for split, count in (("train", 16), (test, 4)):
        for label, colour in enumerate(("red", "blue")):
            (root / split / colour).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (40 + number, 50), (200 - 190 * label, 9 * number, 30))
                image.save(root / split / colour / f"{number}.jpg")
    return root


def packed(folder: Path) -> Path:
    """Pack them into shards."""
    source, shards = pictures(folder, "val"), folder / "shards"
    argv = [sys.executable, "-m", "hpctrain", "pack", str(source), str(shards)]
    subprocess.run(argv, check=True, capture_output=True)
    return shards


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "make", "overrides"),
    [
        ("imagenet_resnet50", lambda folder: pictures(folder, "val"), []),
        ("imagenet_lars", lambda folder: pictures(folder, "val"), ["model.name=resnet18"]),
        (
            "imagenet_inception",
            lambda folder: pictures(folder, "val"),
            ["data.args.size=64", "data.args.resize=72", "metrics=[]"],
        ),
        ("imagenet_vit", lambda folder: pictures(folder, "val"), ["model.name=vit-tiny", "metrics=[]"]),
        ("cifar2_folder", lambda folder: pictures(folder, "test"), ["model.args.hidden=[16]"]),
        ("imagenet_shards", packed, []),
        (
            "cards_cnn",
            lambda folder: pictures(folder, "test"),
            ["model.args.channels=[8, 8]"],
        ),
    ],
)
def test_a_config_of_pictures_runs_from_end_to_end(tmp_path, name, make, overrides):
    data, staged = make(tmp_path), tmp_path / "staged"
    staged.mkdir()
    command = [sys.executable, "-m", "hpctrain", "run", str(ROOT / f"configs/{name}.yaml"), "--ranks", "2"]
    sizes = [] if "data.args.size=64" in overrides else ["data.args.size=32", "data.args.resize=36"]
    command += [f"data.path={data}", f"runs={tmp_path / 'runs'}", *sizes]
    command += ["slurm.gpus_per_node=0", "precision=fp32", "batch.global=16", "train.epochs=2", "optim.warmup=1 steps"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    env |= {"SLURM_TMPDIR": str(staged)}
    done = subprocess.run([*command, *overrides], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "runs").iterdir()
    outcome, plan = (json.loads((run / part).read_text()) for part in ("attempts/1/outcome.json", "plan.json"))
    assert (outcome["verdict"], outcome["step"]) == ("completed", 4)
    assert (plan["train_samples"], plan["test_samples"]) == (32, 8)
    assert bool(list(staged.rglob("*.tar"))) == (name == "imagenet_shards")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "make", "epochs", "score", "bound"),
    [("abalone", abalones, 20, "error", 2.0), ("cifar2_mlp", cifar, 10, "accuracy", 0.9)],
)
def test_a_config_runs_from_end_to_end(tmp_path, name, make, epochs, score, bound):
    runs = tmp_path / "runs"
    data = make(tmp_path)
    command = [sys.executable, "-m", "hpctrain", "run", str(ROOT / f"configs/{name}.yaml")]
    command += [f"data.path={data}", f"runs={runs}", f"train.epochs={epochs}"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [run] = runs.iterdir()
    outcome = json.loads((run / "attempts/1/outcome.json").read_text())
    assert outcome["verdict"] == "completed"
    assert outcome[score] < bound if score == "error" else outcome[score] > bound
    assert outcome["step"] == outcome["total_steps"] == json.loads((run / "plan.json").read_text())["total_steps"]
