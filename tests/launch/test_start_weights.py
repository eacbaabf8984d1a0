"""Fine-tuning by the command line: train, export, start from it, and go on when the file is gone."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch

CONFIG = """
name: NAME
data: {dataset: digits}
model: {name: cnn, args: {channels: [4, 8], norm: after, dropout: 0.2}MORE}
metrics: [top5, confusion]
batch: {global: 60}
optim: {lr: 0.1, momentum: 0.9}
train: {epochs: 1}
"""


def test_a_run_starts_from_the_export_of_another_one_and_goes_on_without_it(tmp_path):
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}

    def hpctrain(*argv):
        command = [sys.executable, "-m", "hpctrain", *map(str, argv)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    def run_of(name):
        (found,) = (tmp_path / "runs").glob(f"{name}-*")
        return found

    (tmp_path / "one.yaml").write_text(CONFIG.replace("NAME", "one").replace("MORE", ""))
    done = hpctrain("run", "one.yaml", "--ranks", 2)
    assert done.returncode == 0, done.stderr
    outcome = json.loads((run_of("one") / "attempts/1/outcome.json").read_text())
    assert sum(map(sum, outcome["metrics"]["confusion"])) == 297
    assert hpctrain("ckpt", "export", run_of("one"), "w.safetensors").returncode == 0

    weights = ', weights: w.safetensors, freeze: ["0.*", "3.*"]'
    (tmp_path / "two.yaml").write_text(CONFIG.replace("NAME", "two").replace("MORE", weights))
    done = hpctrain("run", "two.yaml")
    assert done.returncode == 0, done.stderr
    run, exported = run_of("two"), tmp_path / "w.safetensors"
    plan = json.loads((run / "plan.json").read_text())
    assert plan["weights_path"] == str(exported)
    assert f"weights        {exported}, SHA-256 {plan['weights_sha256'][:12]}\n" in done.stderr
    start = json.loads((tmp_path / "w.json").read_text())
    assert start["sha256"] == plan["weights_sha256"]

    exported.unlink()
    again = hpctrain("run", "two.yaml")
    assert again.returncode == 2
    assert again.stderr.startswith(f"hpctrain: two.yaml:4:82: {exported}: No such file or directory; give a ")
    done = hpctrain("resume", run, "train.epochs=2", "--scheduler", "local", "--follow")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "attempts/2/outcome.json").read_text())["step"] == 50
    assert json.loads((run / "plan.json").read_text())["weights_sha256"] == plan["weights_sha256"]
