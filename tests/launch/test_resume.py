"""Going on by hand: what is refused before anything is touched, what is kept as history, and real runs that go on."""

import json
import os
import subprocess
import sys
import time

import pytest

from hpctrain.errors import UsageError
from hpctrain.launch.passes import passes_for
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir

CONFIG = """
name: digits
data: {dataset: digits}
model: {name: mlp, args: {hidden: [16]}}
batch: {global: 60}
optim: {lr: 0.1, momentum: 0.9}
train: {epochs: 2}
log: {samples: true}
"""


def plan_of(ranks, global_batch, accumulate=1):
    per_rank = global_batch // (ranks * accumulate)
    numbers = {"ranks": ranks, "ranks_per_node": ranks, "nodes": 1, "seed": 0}
    names = {"name": "p", "device": "cpu", "strategy": "ddp", "backend": "gloo", "launcher": "local"}
    batch = {"global_batch": global_batch, "batch_per_rank": per_rank, "accumulate": accumulate}
    return Plan(precision="fp32", **numbers, **names, **batch)


@pytest.mark.parametrize(
    ("before", "ranks", "passes"),
    [
        (plan_of(2, 60), 2, 1),
        (plan_of(2, 60, 3), 2, 3),
        (plan_of(2, 60), 1, 2),  # the micro-batches stay, so that the result is equal to the byte
        (plan_of(4, 60), 2, 2),
        (plan_of(2, 60), 4, 1),
        (plan_of(4, 60), 3, 2),  # 20 each: 15 would not divide it
        (plan_of(8, 1024), 1, 8),
        (plan_of(1, 6), 6, 1),
    ],
)
def test_other_ranks_keep_the_global_batch_in_passes_no_larger_than_before(before, ranks, passes):
    found = passes_for(before, ranks)
    assert found == passes
    share, rest = divmod(before.global_batch, ranks * found)
    assert rest == 0
    assert share <= before.batch_per_rank


def test_ranks_that_do_not_divide_the_batch_are_refused_with_the_arithmetic():
    with pytest.raises(UsageError, match=r"batch of 60 cannot be kept on 7 ranks: 60 / 7 = 8\.571") as caught:
        passes_for(plan_of(2, 60), 7)
    assert "dist.ranks=4 or 5 or 6" in caught.value.hint


def test_norms_over_all_ranks_keep_the_number_of_passes():
    assert passes_for(plan_of(2, 60), 1, together=True) == 1
    assert passes_for(plan_of(2, 60, 3), 5, together=True) == 3
    with pytest.raises(UsageError, match=r"the 20 samples of a pass, .* cannot be shared evenly by 3 ranks") as caught:
        passes_for(plan_of(2, 60, 3), 3, together=True)
    assert "dist.ranks=1 or 2 or 4" in caught.value.hint


# --- real runs


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """A run of two ranks that has completed; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("completed")
    (folder / "digits.yaml").write_text(CONFIG)
    call(folder, "run", "digits.yaml", "--ranks", "2", check=True)
    return next((folder / "runs").iterdir())


def call(folder, *arguments, check=False, **env):
    argv = [sys.executable, "-m", "hpctrain", *map(str, arguments)]
    env = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), **env}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def run(completed, tmp_path):
    subprocess.run(["cp", "-a", str(completed), str(tmp_path)], check=True)
    return tmp_path / completed.name


def tree(run):
    return {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def outcome(run, number):
    return json.loads((run / f"attempts/{number}/outcome.json").read_text())


def seen(run):
    """(epoch, step) -> samples, later attempts winning."""
    steps = {}
    for attempt in sorted((run / "attempts").iterdir(), key=lambda path: int(path.name)):
        mine = {}
        for path in attempt.glob("samples/rank_*.jsonl"):
            for line in map(json.loads, path.read_text().splitlines()):
                mine.setdefault((line["epoch"], line["step"]), []).extend(line["ids"])
        steps |= mine
    return steps


@pytest.mark.torch
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "is complete: its newest checkpoint is of step 50, and what is asked ends at step 50"),
        (["train.epochs=1"], "has gone further: its newest checkpoint is of step 50, and what is asked ends at step 2"),
        (["train.epochs=3", "dist.ranks=7"], "60 / 7 = 8.571"),
        (["train.epochs=3", "seed=1"], "was trained with seed 0; seed 1 gives another order of samples"),
        (["train.epochs=3", "batch.global=120"], "= 120, and step 50 would stand for 6000 samples instead of 3000"),
        (["train.epochs=3", "data.split.test=0.5"], "was trained on 1500 samples in 25 steps per epoch; now there are"),
        (["train.epochs=3", "model.name=mpl"], "model.name"),
    ],
)  # fmt: skip
def test_what_the_checkpoint_cannot_go_on_with_is_refused_and_nothing_touched(completed, tmp_path, asked, message):
    before = tree(completed)
    done = call(tmp_path, "resume", completed, *asked)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert tree(completed) == before


@pytest.mark.torch
def test_what_else_is_asked_of_the_ranks_does_not_change_their_number(run, tmp_path):
    call(tmp_path, "resume", run, "train.epochs=3", "dist.compression=bf16", check=True)
    call(tmp_path, "logs", "-f", run, check=True)
    assert json.loads((run / "plan.json").read_text())["ranks"] == 2
    said = (run / "attempts/2/logs/rank_0.out").read_text()
    assert "changed since: dist.compression none -> bf16" in said, said


@pytest.mark.torch
def test_a_run_that_has_stopped_early_goes_on_only_if_it_shall_bear_more(tmp_path):
    early = "train: {epochs: 9, eval_every: 1 epochs, stop_early: {patience: 1, min_delta: 100}}"
    text = CONFIG.replace("train: {epochs: 2}", early).replace("digits}", "digits, split: {validation: 0.2}}")
    (tmp_path / "early.yaml").write_text(text)
    call(tmp_path, "run", "early.yaml", check=True)
    [run] = (tmp_path / "runs").iterdir()
    before = tree(run)
    done = call(tmp_path, "resume", run, "train.epochs=20")
    assert done.returncode == 2
    assert "is complete: it stopped early at step 40: 1 evaluations did not lower" in done.stderr, done.stderr
    assert "train.stop_early.patience=2, or train.stop_early=null" in done.stderr
    assert tree(run) == before
    call(tmp_path, "resume", run, "train.stop_early.patience=3", check=True)
    call(tmp_path, "logs", "-f", run, check=True)
    assert outcome(run, 2)["step"] == 80


@pytest.mark.torch
def test_a_run_goes_on_for_longer_on_other_ranks_and_sees_each_sample_once(run, tmp_path):
    done = call(tmp_path, "resume", run, "train.epochs=3", "dist.ranks=3", check=True)
    job_id, path = (line.split()[1] for line in done.stdout.splitlines())
    assert (path, job_id.startswith("local-")) == (str(run), True)
    call(tmp_path, "logs", "-f", run, check=True)
    assert (outcome(run, 2)["verdict"], outcome(run, 2)["step"]) == ("completed", 75)
    for epoch in range(3):
        ids = sorted(i for (e, _), found in seen(run).items() if e == epoch for i in found)
        assert ids == list(range(1500)), f"epoch {epoch}"
    [row] = json.loads(call(tmp_path, "status", "--json", run).stdout)
    assert (row["state"], row["attempt"], row["step"], row["total_steps"]) == ("COMPLETED", 2, 75, 75)
    assert row["job_id"] == job_id
    steps = [(entry["first_step"], entry["last_step"], entry["steps_gained"]) for entry in row["attempts"]]
    assert steps == [(0, 50, 50), (50, 75, 25)]
    assert "epochs: 2" in (run / "config.1.yaml").read_text()
    assert "epochs: 3" in (run / "config.yaml").read_text()
    assert [json.loads((run / name).read_text())["ranks"] for name in ("plan.1.json", "plan.json")] == [2, 3]
    assert not (run / "code.1").exists()


@pytest.mark.torch
def test_a_run_that_goes_on_ends_like_one_that_never_stopped(run, completed, tmp_path):
    """Two epochs on two ranks, the third on one: the micro-batches are the same, so are all bytes."""
    (tmp_path / "digits.yaml").write_text(CONFIG)
    call(tmp_path, "run", "digits.yaml", "train.epochs=3", "--ranks", "2", check=True)
    [undisturbed] = (tmp_path / "runs").iterdir()
    call(tmp_path, "resume", run, "train.epochs=3", "dist.ranks=1", "--follow", check=True)
    for name in ("model.safetensors", "optim.safetensors"):
        files = [path / "ckpt/step_00000075" / name for path in (run, undisturbed)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.torch
def test_an_error_is_mended_with_new_code(tmp_path):
    (tmp_path / "net.py").write_text("def build():\n    raise KeyError('no such layer')\n")
    (tmp_path / "digits.yaml").write_text(CONFIG)
    done = call(tmp_path, "run", "digits.yaml", "model={name: 'net:build'}")
    assert done.returncode == 4
    [run] = (tmp_path / "runs").iterdir()
    assert "hpctrain resume" in (advice := call(tmp_path, "why", run).stdout)
    assert "--code" in advice
    net = "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    (tmp_path / "net.py").write_text(net)
    assert call(tmp_path, "resume", run, "--follow").returncode == 4, "the snapshot is still the old one"
    call(tmp_path, "resume", run, "--code", "--follow", check=True)
    assert outcome(run, 3)["verdict"] == "completed"
    assert "KeyError" in (run / "code.2/net.py").read_text()


@pytest.mark.torch
def test_of_two_that_resume_at_once_one_is_told_whose_the_run_is(run, tmp_path):
    argv = [sys.executable, "-m", "hpctrain", "resume", str(run), "train.epochs=5000"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(argv, env=env, cwd=tmp_path, **pipes) for _ in range(2)]
    try:
        ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
        assert sorted(code for _, code in ends) == [0, 3], ends
        refused = next(said for said, code in ends if code == 3)
        assert f"{run} belongs to process" in refused
        assert call(tmp_path, "resume", run, "train.epochs=30").returncode == 3
        by_hand = subprocess.run([sys.executable, "-m", "hpctrain.launch.local", run], capture_output=True, check=False)
        assert by_hand.returncode == 3
    finally:
        call(tmp_path, "cancel", run, check=True)
    assert sorted(path.name for path in (run / "attempts").iterdir()) == ["1", "2"]
    assert outcome(run, 2)["cause"] == "cancelled"
    assert call(tmp_path, "resume", run, "train.epochs=5000", "--dry-run").returncode == 0, "it is free again"


def test_the_batch_script_is_shown_and_nothing_changed(completed, tmp_path):
    before = tree(completed)
    asked = ("train.epochs=3", "slurm.time=1:00:00", "--scheduler", "slurm", "--dry-run")
    done = call(tmp_path, "resume", completed, *asked, PATH=f"{stand_in(tmp_path)}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --time=1:00:00\n" in done.stdout
    assert f"run={completed}\n" in done.stdout
    assert tree(completed) == before


def stand_in(folder):
    """Make a sinfo that knows one partition, and an sbatch that refuses."""
    tools = folder / "bin"
    tools.mkdir()
    for name, code in {
        "sinfo": "printf 'main*\\x1f4\\x1finfinite\\x1f(null)\\x1fup\\n'",
        "sbatch": "echo 'sbatch: error: Batch job submission failed: Access/permission denied' >&2; exit 1",
        "squeue": "true",
        "sacct": "exit 1",
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{code}\n")
        (tools / name).chmod(0o755)
    return tools


def test_a_run_that_slurm_refuses_is_as_it_was(run, tmp_path):
    names = ("config.yaml", "plan.json", "job.sbatch", "env.json", "code.sha256", "job.json")
    before = {name: (run / name).read_bytes() for name in names}
    path = f"{stand_in(tmp_path)}:{os.environ['PATH']}"
    done = call(tmp_path, "resume", run, "train.epochs=3", "--scheduler", "slurm", PATH=path)
    assert done.returncode == 3, done.stderr
    assert {name: (run / name).read_bytes() for name in names} == before
    assert not list(run.glob("*.1.*"))
    assert RunDir(run).attempt_numbers() == [1]
    began = time.monotonic()
    assert call(tmp_path, "resume", run, "train.epochs=3", "--scheduler", "slurm", PATH=path).returncode == 3
    assert time.monotonic() - began < 30, "and it is nobody's"
