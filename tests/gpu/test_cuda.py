"""What only a GPU shows; skipped, with the reason, where there is none."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.torch]

CONFIG = """
name: gpu
device: cuda
slurm: {gpus_per_node: 1}
data: {dataset: digits}
model: {name: cnn, args: {channels: [16]}}
batch: {global: 60}
optim: {lr: 0.1, momentum: 0.9}
train: {epochs: 5}
"""


@pytest.fixture(autouse=True)
def gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_one_gpu_learns(tmp_path, monkeypatch, precision):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "gpu.yaml").write_text(CONFIG)
    argv = [sys.executable, "-m", "hpctrain", "run", "gpu.yaml", f"precision={precision}"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "attempts/1/outcome.json").read_text())["accuracy"] > 0.9


def test_a_second_rank_without_a_gpu_of_its_own_is_refused(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "gpu.yaml").write_text(CONFIG)
    ranks = torch.cuda.device_count() + 1
    argv = [sys.executable, "-m", "hpctrain", "run", "gpu.yaml", "slurm.gpus_per_node=8", "--ranks", str(ranks)]
    argv += ["batch={per_rank: 10}"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4
    assert "was promised a GPU" in done.stderr


def test_batches_that_are_copied_beside_the_computation_are_whole():
    import torch

    from hpctrain.data.batch import Kind
    from hpctrain.data.dataset import Wanted
    from hpctrain.data.loader import Loader

    class Numbers:
        def fill(self, task):
            for row in range(task.begin, task.end):
                task.inputs[row] = int(task.wanted.ids[row]) % 251
                task.labels[row] = task.wanted.ids[row]
            return []

        def close(self):
            pass

    kind, cuda = Kind((3, 64, 64), torch.uint8, channels_last=True), torch.device("cuda", 0)
    loader = Loader(lambda _: Numbers(), kind, count=10**6, device=cuda, workers="4")
    wanted = (Wanted(torch.arange(first, first + 64 - first % 3)) for first in range(0, 64 * 200, 64))
    busy = torch.randn(2048, 2048, device=cuda)

    def finish(batch, inputs, labels):
        nonlocal busy
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        busy = (busy @ busy).tanh()  # the stream of the computation lags behind, as in training
        right = (inputs == (labels % 251).to(torch.uint8)[:, None, None, None]).all() & (
            labels == batch.ids.to(cuda)
        ).all()
        return right.clone()

    assert all(bool(right) for right in list(loader.stream(wanted, finish)))


def test_a_save_beside_the_training_holds_the_state_of_its_step(tmp_path, monkeypatch):
    """The copies are asked for on the stream and written later, while the next steps change what was copied."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "gpu.yaml").write_text(CONFIG)
    found = []
    for background in ("true", "false"):
        words = [
            f"checkpoint.background={background}",
            f"runs={background}",
            "checkpoint.every=7 steps",
            "train.ema=0.9",
        ]
        argv = [sys.executable, "-m", "hpctrain", "run", "gpu.yaml", "checkpoint.keep=99", *words]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        files = sorted(tmp_path.glob(f"{background}/*/ckpt/*/*.safetensors"))
        found.append({f"{path.parent.name}/{path.name}": path.read_bytes() for path in files})
    assert len(found[0]) == 4 * 18  # after each 7th of 125 steps and at the end
    assert found[0] == found[1]
