"""`hpctrain ckpt`, on the checkpoints of a real run of two ranks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

CONFIG = """
name: kept
runs: {runs}
data: {{dataset: digits}}
model: {{name: mlp, args: {{hidden: [8]}}}}
batch: {{global: 60}}
optim: {{lr: 0.1, momentum: 0.9}}
train: {{epochs: 3, ema: 0.9}}
checkpoint: {{keep: 3}}
"""


def hpctrain(*words, code=0):
    done = subprocess.run([sys.executable, "-m", "hpctrain", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("kept")
    (root / "c.yaml").write_text(CONFIG.format(runs=root / "runs"))
    hpctrain("run", str(root / "c.yaml"), "--ranks", "2")
    (run,) = (root / "runs").iterdir()
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_checkpoints_are_listed_with_their_scores(run):
    rows = json.loads(hpctrain("ckpt", "list", str(run), "--json").stdout)
    assert [(row["step"], row["epoch"], row["ranks"], row["problem"]) for row in rows] == [
        (25, 1.0, 2, None), (50, 2.0, 2, None), (75, 3.0, 2, None),
    ]  # fmt: skip
    lines = map(json.loads, (run / "attempts/1/metrics.jsonl").read_text().splitlines())
    scores = {line["step"]: line["accuracy"] for line in lines if line["split"] == "test"}
    assert {row["step"]: row["score"] for row in rows} == scores
    assert [row["step"] for row in rows if row["best"]] == [max(scores, key=lambda step: (scores[step], step))]
    heading, *lines = hpctrain("ckpt", "list", str(run)).stdout.splitlines()
    assert heading.split() == ["step", "epoch", "MiB", "ranks", "score"]
    assert lines[2].split()[:2] == ["75", "3.00"]


def test_verify_names_what_is_damaged_and_exits_with_4(run):
    rows = json.loads(hpctrain("ckpt", "verify", str(run), "--json").stdout)
    assert [row["verified"] for row in rows] == [True] * 3
    file = run / "ckpt/step_00000050/optim.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    done = hpctrain("ckpt", "verify", str(run), code=4)
    told = [line for line in done.stdout.splitlines() if "damaged" in line]
    assert len(told) == 1
    assert told[0].endswith(f"{file}: damaged: its SHA-256 is another")
    hpctrain("ckpt", "verify", str(run), "75")
    hpctrain("ckpt", "verify", str(run), "50", code=4)
    assert json.loads(hpctrain("ckpt", "list", str(run), "--json").stdout)[1]["problem"] is None  # of the manifest
    (run / "ckpt/step_00000050/manifest.json").write_text("{}")
    assert "damaged" in json.loads(hpctrain("ckpt", "list", str(run), "--json").stdout)[1]["problem"]


def test_the_averages_are_exported_with_what_they_are(run, tmp_path):
    from safetensors.torch import load_file

    out = tmp_path / "weights.safetensors"
    done = hpctrain("ckpt", "export", str(run), str(out))
    assert done.stdout.splitlines() == [str(out), str(out.with_suffix(".json"))]
    assert out.read_bytes() == (run / "ckpt/step_00000075/ema.safetensors").read_bytes()
    about = json.loads(out.with_suffix(".json").read_text())
    assert (about["step"], about["epoch"], about["weights"]) == (75, 3.0, "averaged")
    model = about["config"]["model"]
    assert (model["name"], model["args"]) == ("mlp", {"hidden": [8]})
    tensors = load_file(out)
    assert about["tensors"] == {
        name: {"dtype": "F32", "shape": list(tensor.shape)} for name, tensor in sorted(tensors.items())
    }
    done = hpctrain("ckpt", "export", str(run), str(out), code=2)
    assert done.stderr == (
        f"hpctrain: {out} and {out.with_suffix('.json')} exists already\n  give another name, or --force\n"
    )
    hpctrain("ckpt", "export", str(run), str(out), "--force", "--step", "25")
    assert json.loads(out.with_suffix(".json").read_text())["step"] == 25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights.json", "weights.safetensors"]


def test_export_takes_the_newest_that_verifies_the_best_or_none(run, tmp_path):
    newest = run / "ckpt/step_00000075/ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    out = tmp_path / "w.safetensors"
    done = hpctrain("ckpt", "export", str(run), str(out))
    assert "skipped a checkpoint" in done.stderr
    assert json.loads(out.with_suffix(".json").read_text())["step"] == 50
    rows = json.loads(hpctrain("ckpt", "list", str(run), "--json").stdout)
    (best,) = [row["step"] for row in rows if row["best"]]
    assert hpctrain("ckpt", "export", str(run), str(out), "--force", "--step", "75", code=4).stdout == ""
    assert json.loads(out.with_suffix(".json").read_text())["step"] == 50  # what was there stays
    if best != 75:
        hpctrain("ckpt", "export", str(run), str(out), "--force", "--step", "best")
        assert json.loads(out.with_suffix(".json").read_text())["step"] == best


@pytest.mark.parametrize(("words", "message"), [
    (("export", "RUN", "w.bin"), "w.bin: weights are exported as a safetensors file\n  give w.bin.safetensors"),
    (("export", "RUN", "w.safetensors", "--step", "7"),
     "RUN has no checkpoint of step 7\n  there are: 25, 50, 75"),
    (("export", "RUN", "w.safetensors", "--step", "last"),
     "--step last: neither a number nor best\n  hpctrain ckpt list run shows the steps"),
    (("export", "RUN", "no/w.safetensors"),
     "no/w.safetensors: No such file or directory\n  give a place that can be written"),
    (("verify", "RUN", "7"), "RUN has no checkpoint of step 7\n  there are: 25, 50, 75"),
    (("verify", "EMPTY"), "EMPTY has no checkpoint yet\n  hpctrain status empty shows how far it is"),
])  # fmt: skip
def test_what_does_not_go_says_what_to_type(trained, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    empty = Path(shutil.copytree(trained, tmp_path / "empty"))
    shutil.rmtree(empty / "ckpt")
    (empty / "ckpt").mkdir()
    places = {"RUN": str(run), "EMPTY": str(empty)}
    done = hpctrain("ckpt", *(places.get(word, word) for word in words), code=2)
    assert done.stderr.replace(str(run), "RUN").replace(str(empty), "EMPTY") == f"hpctrain: {message}\n"
