"""What only a GPU shows; skipped, with the reason, where there is none."""

import json
import subprocess
import sys
from pathlib import Path

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


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train with some overrides; give the run directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # nets of the tests
    (tmp_path / "gpu.yaml").write_text(CONFIG)

    def run(*overrides):
        runs = tmp_path / f"runs-{len(list(tmp_path.glob('runs-*')))}"
        argv = [sys.executable, "-m", "hpctrain", "run", "gpu.yaml", f"runs={runs}", *overrides]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        [found] = runs.iterdir()
        return found

    return run


def outcome(run):
    return json.loads((run / "attempts/1/outcome.json").read_text())


def weights(run):
    from safetensors.torch import load_file

    return load_file(run / f"ckpt/step_{outcome(run)['step']:08d}/model.safetensors")


def furthest(one, other):
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_run_on_one_gpu_learns(trained, precision):
    assert outcome(trained(f"precision={precision}"))["accuracy"] > 0.9


def test_tf32_rounds_products_and_fp32_does_not():
    import torch

    from hpctrain.train.precision import Precision

    cuda = torch.device("cuda", 0)
    if torch.cuda.get_device_capability(cuda) < (8, 0):
        pytest.skip("a GPU before A100 has no TF32")
    torch.manual_seed(0)
    one, other = torch.randn(2, 512, 512, dtype=torch.float64)
    images, kernel = torch.randn(8, 64, 16, 16).double(), torch.randn(64, 64, 3, 3).double()
    exact = (one @ other, torch.nn.functional.conv2d(images, kernel, padding=1))
    apart = {}
    for name in ("tf32", "fp32"):
        Precision(name, cuda)
        first = one.float().to(cuda) @ other.float().to(cuda)
        second = torch.nn.functional.conv2d(images.float().to(cuda), kernel.float().to(cuda), padding=1)
        pairs = zip((first, second), exact, strict=True)
        apart[name] = [((found.cpu() - right).abs().max() / right.abs().max()).item() for found, right in pairs]
    assert all(1e-5 < each < 1e-2 for each in apart["tf32"]), apart
    assert all(each < 1e-5 for each in apart["fp32"]), apart


def test_fp16_skips_the_steps_that_overflow_and_counts_them(trained):
    """In every fourth pass the net multiplies its logits by 1e7."""
    run = trained(
        "precision=fp16", "model={name: 'tests.train.nets:steep', args: {}}", "train={steps: 12}", "log.every=1 step"
    )
    lines = [json.loads(line) for line in (run / "attempts/1/metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped", 0) for line in lines if line["split"] == "train"] == [
        step // 4 for step in range(1, 13)
    ]


@pytest.mark.parametrize("last", ["true", "false"])
def test_layout_changes_nothing_but_rounding(trained, last):
    plain = trained("precision=fp64", "train={steps: 20}")
    assert (
        furthest(weights(trained("precision=fp64", f"train={{steps: 20, channels_last: {last}}}")), weights(plain))
        < 1e-9
    )


def test_a_compiled_run_computes_the_same_and_keeps_its_names(trained):
    pytest.importorskip("triton")
    plain, compiled = trained("train={steps: 20}"), trained("train={steps: 20, compile: true}")
    assert furthest(weights(compiled), weights(plain)) < 1e-3


def test_synchronised_ranks_equal_one_rank_over_nccl(trained):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("two ranks over NCCL need two GPUs")
    net = "model={name: cnn, args: {channels: [8], norm: before}, batch_norm: sync}"
    words = (net, "precision=fp64", "train={steps: 20}")
    one, two = trained(*words), trained(*words, "slurm.gpus_per_node=2")
    assert furthest(weights(two), weights(one)) < 1e-10


def test_synchronised_norm_on_a_gpu_is_torchs():
    import torch

    from hpctrain.models.batch_norm import Attendance, SyncBatchNorm

    torch.manual_seed(0)
    plain = torch.nn.BatchNorm2d(16, device="cuda", dtype=torch.float64)
    norm = SyncBatchNorm(plain, "norm", lambda values, _: values[None], Attendance())
    images = torch.randn(8, 16, 7, 7, device="cuda", dtype=torch.float64).to(memory_format=torch.channels_last)
    grads = []
    for layer in (plain, norm):
        given = images.clone().requires_grad_()
        layer(given).square().mul(images).sum().backward()
        grads.append(given.grad)
    assert grads[0].allclose(grads[1], rtol=0, atol=1e-10)


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
