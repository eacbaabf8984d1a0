"""`run --overfit`, `find-lr`, `find-batch` and `eval`, with real ranks."""

import json
import os
import pty
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpctrain import manifest as manifests
from hpctrain.config.load import load
from hpctrain.errors import JobError
from hpctrain.launch import evaluation, ready
from hpctrain.launch.find_batch import proposal, search
from hpctrain.launch.practice import typed
from hpctrain.plan import Plan
from hpctrain.rundir import RunDir
from hpctrain.train.find_lr import started, suggestion
from hpctrain.train.overfit import reason

pytestmark = pytest.mark.torch

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = """
name: small
runs: {runs}
data: {{dataset: digits, split: {{validation: 0.2}}}}
model: {{name: mlp, args: {{hidden: [16]}}}}
batch: {{global: 60}}
optim: {{lr: 0.1, momentum: 0.9}}
train: {{epochs: 3, ema: 0.9}}
checkpoint: {{keep: 3}}
"""
ABALONE = """
name: rows
runs: {runs}
data:
  dataset: table
  path: {path}
  args: {{columns: [a, b, c], target: c}}
  split: {{test: 0.1}}
model: {{name: mlp, args: {{hidden: [16]}}}}
batch: {{global: 20}}
optim: {{lr: 0.05, momentum: 0.9}}
train: {{epochs: 3}}
"""


def hpctrain(*words, code=0, cwd=None):
    argv = [sys.executable, "-m", "hpctrain", *map(str, words)]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("practice")
    (root / "c.yaml").write_text(CONFIG.format(runs=root / "runs"))
    return root / "c.yaml"


@pytest.fixture(scope="module")
def trained(config):
    hpctrain("run", config, "--ranks", "2")
    (run,) = (config.parent / "runs").iterdir()
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def written(run, split):
    lines = map(json.loads, (run / "attempts/1/metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)}


@pytest.mark.parametrize("ranks", [1, 3])
def test_eval_finds_what_the_run_found_on_any_number_of_ranks(run, ranks):
    before = contents(run)
    for split in ("validation", "test"):
        done = hpctrain("eval", run, "--split", split, "--ranks", ranks)
        found = json.loads(done.stdout)
        assert (found["step"], found["split"], found["weights"], found["run"]) == (60, split, "averaged", "run")
        assert found["accuracy"] == written(run, split)[60]["accuracy"]
        assert found["loss"] == pytest.approx(written(run, split)[60]["loss"], rel=1e-6)
        assert f"accuracy {found['accuracy']:.4f}" in done.stderr
    assert contents(run) == before


def test_eval_takes_the_best_checkpoint_or_that_of_a_step_and_any_split(run):
    scores = {step: line["accuracy"] for step, line in written(run, "validation").items()}
    best = json.loads(hpctrain("eval", run, "--split", "validation", "--ckpt", "best").stdout)
    assert best["step"] == max(scores, key=lambda step: (scores[step], step))
    second = json.loads(hpctrain("eval", run, "--split", "validation", "--ckpt", "40").stdout)
    assert (second["step"], second["accuracy"]) == (40, scores[40])
    train = json.loads(hpctrain("eval", run, "--split", "train").stdout)
    assert train["samples"] == 1200
    assert train["loss"] < second["loss"]


def test_eval_refuses_what_does_not_verify_and_what_would_be_another_run(run):
    file = run / "ckpt/step_00000060/ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert "damaged" in hpctrain("eval", run, "--ckpt", "60", code=4).stderr
    older = hpctrain("eval", run)
    assert "skipped a checkpoint" in older.stderr
    assert json.loads(older.stdout)["step"] == 40
    said = hpctrain("eval", run, "data.split.validation=0.5", code=2).stderr
    assert "data.split.validation=0.5: an evaluation is of the run as it was trained" in said
    assert "has no checkpoint of step 7" in hpctrain("eval", run, "--ckpt", "7", code=2).stderr


NORMS = """
name: small
runs: runs
data: {{dataset: digits}}
model: {{name: mlp, args: {{hidden: [16], batch_norm: true}}, batch_norm: {kind}}}
batch: {{global: 60}}
optim: {{lr: 0.1}}
train: {{epochs: 1}}
"""


@pytest.mark.parametrize("kind", ["local", "ghost, ghost_batch: 30"])
def test_eval_does_not_ask_how_many_samples_a_batch_norm_would_see(tmp_path, kind):
    (tmp_path / "c.yaml").write_text(NORMS.format(kind=kind))
    hpctrain("run", "c.yaml", cwd=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    for ranks in (1, 2):
        found = json.loads(hpctrain("eval", run, "--ranks", ranks).stdout)
        assert found["accuracy"] == max(written(run, "test").items())[1]["accuracy"]


def test_eval_takes_the_data_of_the_run_from_wherever_it_is_called(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, factor in ((here, 1), (there, -3)):
        folder.mkdir()
        rows = [f"{i % 7},{i % 5},{factor * (i % 7) - i % 5}" for i in range(100)]
        (folder / "t.csv").write_text("\n".join(rows) + "\n")
    (here / "c.yaml").write_text(ABALONE.format(runs="runs", path="t.csv"))
    hpctrain("run", "c.yaml", cwd=here)
    (run,) = (here / "runs").iterdir()
    found = [json.loads(hpctrain("eval", run, cwd=folder).stdout)["loss"] for folder in (here, there)]
    assert found[0] == found[1] == pytest.approx(max(written(run, "test").items())[1]["loss"])
    assert json.loads(hpctrain("eval", run, "data.path=t.csv", cwd=there).stdout)["loss"] > 2 * found[0]
    (there / "t.csv").write_bytes((here / "t.csv").read_bytes())
    same = json.loads(hpctrain("eval", "../here/runs/" + run.name, "data.path=t.csv", cwd=there).stdout)
    assert same["loss"] == found[0]


def test_eval_starts_as_many_ranks_as_dist_ranks_says(run):
    done = hpctrain("eval", run, "dist.ranks=3")
    assert "ranks          3 = " in done.stderr
    assert "ranks          1 = " in hpctrain("eval", run).stderr


def test_a_checkpoint_that_is_evaluated_may_be_dropped_meanwhile(run, tmp_path, monkeypatch):
    """What a run with `keep: 1` does at each save: the chosen one goes, and another is there."""
    taken, folder = [], tmp_path / "held"
    folder.mkdir()
    choose = evaluation.checkpoints.choose

    def chosen_too_late(*arguments, **options):
        found = choose(*arguments, **options)
        if not taken:
            shutil.rmtree(run / f"ckpt/step_{found.step:08d}")
        taken.append(found.step)
        return found

    monkeypatch.setattr(evaluation.checkpoints, "choose", chosen_too_late)
    held = evaluation._hold(RunDir(run), None, folder)
    assert (held.step, taken) == (40, [60, 40])
    shutil.rmtree(run / "ckpt")
    assert manifests.read(folder, 40) == held
    assert manifests.content(folder / held.weights, held.files[held.weights])


def test_eval_says_what_it_can_be_given(run, tmp_path):
    said = hpctrain("eval", run, "--ckpt", "foo", code=2).stderr
    assert "--ckpt foo: neither newest, best nor a number" in said
    (tmp_path / "c.yaml").write_text("name: mine\nruns: runs\ncommand: ['true']\n")
    hpctrain("run", "c.yaml", cwd=tmp_path)
    (mine,) = (tmp_path / "runs").iterdir()
    assert "this run is of a command" in hpctrain("eval", mine, code=2).stderr


def test_a_net_learns_a_few_batches_by_heart_and_nothing_is_kept(config, tmp_path):
    copy = tmp_path / "c.yaml"
    copy.write_text(config.read_text().replace(str(config.parent), str(tmp_path)))
    done = hpctrain("run", copy, "--overfit", "3", "--ranks", "2")
    assert "learned 3 batches: accuracy" in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_numbers_are_learned_by_heart_too(tmp_path):
    rows = [f"{i % 7},{i % 5},{(i % 7) * 2 - i % 5}" for i in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "c.yaml").write_text(ABALONE.format(runs=tmp_path / "runs", path=tmp_path / "t.csv"))
    assert "learned 2 batches: R^2 " in hpctrain("run", tmp_path / "c.yaml", "--overfit", "2").stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optim.lr=1e-9", "the loss does not fall"),
        ("optim.lr=1e6", "the loss is no number after 11 steps: too high a rate (try optim.lr / 10), or a bad input"),
    ],
)
def test_what_cannot_be_learned_is_told_with_what_to_look_at(config, change, told):
    done = hpctrain("run", config, "--overfit", "2", "--overfit-steps", "60", change, code=4)
    first, second = done.stderr.splitlines()[-2:]
    assert first.startswith("hpctrain: did not learn 2 batches: accuracy ")
    assert told in second


def test_more_batches_than_an_epoch_has_are_refused(config):
    said = hpctrain("run", config, "--overfit", "21", code=2).stderr
    assert "--overfit 21: an epoch has 20 batches" in said
    folds = hpctrain("run", config, "--overfit", "14", "folds=2", "data.split.validation=0", code=2).stderr
    assert folds.splitlines()[0] == "hpctrain: --overfit 14: an epoch has 13 batches"
    assert folds.count("--overfit 14:") == 1


def test_curves_are_read_as_the_lectures_do():
    steps = [1.0] * 100
    assert "does not fall" in reason([2.3] * 20, steps)
    assert "fell and then stopped" in reason([2.3, 1.0, *[0.5] * 20], steps)
    assert "still falls" in reason([2.3 * 0.95**n for n in range(40)], steps)
    assert "jumps" in reason([2.3, 1.5, 1.0, 0.4, 1.9, 0.4, 1.9, 0.4, 1.9, 0.5], steps)
    assert "no number" in reason([2.3] * 20, [*steps, float("nan")])


def test_a_rate_is_found_which_learns_and_the_ranks_do_not_matter(config, tmp_path):
    found = [
        json.loads(hpctrain("find-lr", config, "--ranks", ranks, "--from", "1e-5", "--to", "100").stdout)
        for ranks in (1, 2)
    ]
    for one in found:
        assert one["base_batch"] == 60
        assert one["type"] == f"optim.lr={one['lr']:g} optim.base_batch=60"
        assert 0.003 < one["lr"] < 1
        assert one["lr"] < one["diverged_at"]
    assert found[0]["losses"][:60] == pytest.approx(found[1]["losses"][:60], rel=1e-3)


def test_a_terminal_is_not_flooded_with_curves(config, tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hpctrain", "find-lr", str(config), "--ranks", "1", "--from", "1e-3"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    with os.fdopen(ours, "rb", buffering=0) as reader:
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=theirs, stderr=subprocess.PIPE, check=False)
        os.close(theirs)
        assert done.returncode == 0, done.stderr
        assert json.loads(reader.read(65536)).keys() == {"lr", "base_batch", "type", "diverged_at"}


def test_a_range_without_any_good_rate_gives_no_suggestion(config):
    said = hpctrain("find-lr", config, "--from", "1e-9", "--to", "1e-8", "--steps", "30", code=4).stderr
    assert "the loss did not fall" in said
    hpctrain("find-lr", config, "--picture", "/nowhere/a.svg", code=2)  # no such directory, or no matplotlib
    assert "--from 1 --to 0.1" in hpctrain("find-lr", config, "--from", "1", "--to", "0.1", code=2).stderr
    endless = hpctrain("find-lr", config, "--to", "inf", code=2).stderr
    assert "--from 1e-06 --to inf: both must be finite" in endless


def test_the_suggestion_lies_where_the_loss_falls_fastest():
    rates = [10 ** (place / 20 - 5) for place in range(100)]  # 1e-5 to 1
    smoothed = [2.3 - 2 / (1 + 10 ** (-4 * (place / 20 - 3))) for place in range(80)]  # steepest at 1e-2
    smoothed += [smoothed[-1] + 0.5 * n for n in range(20)]
    assert suggestion(rates, smoothed, started(smoothed[:12]), diverged=True) == pytest.approx(1e-2, rel=0.2)


def averaged(losses):
    """Smooth as the test does."""
    mean, found = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = 0.9 * mean + 0.1 * loss
        found.append(mean / (1 - 0.9**step))
    return found


def test_noise_alone_suggests_nothing():
    rates = [10 ** (place / 28 - 6) for place in range(200)]
    draws, suggested = random.Random(0), 0  # noqa: S311 - noise
    for _ in range(200):
        losses = [(draws.random() < 0.5) * draws.expovariate(1) for _ in rates]
        try:
            suggestion(rates, averaged(losses), started(losses[:25]), diverged=False)
        except JobError:
            continue
        suggested += 1
    assert suggested <= 4


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "low", "high"), [("linear_regression", 0.02, 0.3), ("perceptron", 0.005, 10)])
def test_a_rate_is_found_that_trains_although_the_loss_is_noisy(name, low, high, seed):
    """linear_regression falls from 0.02 to 1.5; a perceptron that begins at 0 learns at any rate that outweighs it."""
    done = hpctrain("find-lr", CONFIGS / f"{name}.yaml", f"seed={seed}")
    assert low < json.loads(done.stdout)["lr"] < high
    assert "<- suggested" in done.stderr


SCALED = """
name: small
runs: runs
data: {dataset: digits}
model: {name: mlp, args: {hidden: [16]}}
batch: {global: 60}
optim: {optim}
train: {epochs: 3}
"""


@pytest.mark.parametrize(
    "optim",
    [
        "{name: adam, lr: 0.1, base_batch: 15, scale: sqrt, betas: [0.8, 0.99], eps: 1e-7}",
        "{name: adam, lr: 0.1, base_batch: 15}",
        "{name: rmsprop, lr: 0.1, base_batch: 15, scale: none}",
        "{lr: 0.1}",
        "{lr: 0.1, scale: none}",
    ],
)
def test_what_is_to_be_typed_gives_the_settings_that_were_tried(tmp_path, optim):
    (tmp_path / "c.yaml").write_text(SCALED.replace("{optim}", optim))
    tried = load(tmp_path / "c.yaml")
    plan = ready.make_plan(tried, "local", 2)
    told = typed(tried.config, plan, 0.0123)
    again = ready.make_plan(load(tmp_path / "c.yaml", told["type"].split()), "local", 2)
    assert again.lr_used == told["lr"] == pytest.approx(0.0123, rel=0.05)
    assert (again.betas_used, again.alpha_used, again.eps_used) == (plan.betas_used, plan.alpha_used, plan.eps_used)


def test_a_rate_is_tried_with_the_momentum_that_a_cycle_has_at_its_full_rate(config):
    found = [
        json.loads(hpctrain("find-lr", config, f"optim={{lr: 0.1, {rest}}}", "--from", "1e-3", "--steps", "20").stdout)
        for rest in ("momentum: 0.8", "schedule: onecycle, cycle_momentum: [0.8, 0.95]")
    ]
    assert found[0]["losses"] == found[1]["losses"]


def test_trials_clip_as_a_run_does(config):
    clipped = "train.clip_norm=1e-9"
    assert "does not fall" in hpctrain("run", config, "--overfit", "2", "--overfit-steps", 60, clipped, code=4).stderr
    assert "the loss did not fall" in hpctrain("find-lr", config, clipped, code=4).stderr


@pytest.mark.parametrize("limit", [1, 2, 5, 37, 64, 1000, 5000])
@pytest.mark.parametrize("first", [1, 16, 3000])
def test_the_search_finds_the_largest_that_fits_to_a_sixteenth(limit, first):
    asked = []

    def fits(count):
        assert count not in asked
        asked.append(count)
        return count <= limit

    found = search(fits, 3000, first=first)
    best = min(limit, 3000)
    assert best - max(best // 16, 1) < found <= best or found == best
    assert len(asked) < 25


def test_nothing_that_fits_is_told_from_one():
    assert search(lambda _: False, 100) == 0
    assert search(lambda count: count <= 1, 100) == 1


@pytest.mark.parametrize(("fits", "passes"), [(64, 1), (63, 2), (24, 4), (20, 4), (9, 8), (1, 64)])
def test_the_global_batch_is_made_in_as_few_passes_as_fit(fits, passes):
    plan = Plan(
        name="p", seed=0, nodes=1, ranks_per_node=2, ranks=2, device="cpu", strategy="ddp", backend="gloo",
        launcher="local", precision="fp32", global_batch=128,
    )  # fmt: skip
    found = proposal(plan, fits, whole=False)
    assert (found["accumulate"], found["type"]) == (passes, f"batch.global=128 batch.accumulate={passes}")
    assert 128 // 2 // passes <= fits


def test_passes_are_whole_groups_of_a_ghost_batch_norm_and_per_rank_stays_per_rank():
    plan = Plan(
        name="p", seed=0, nodes=1, ranks_per_node=2, ranks=2, device="cpu", strategy="ddp", backend="gloo",
        launcher="local", precision="fp32", global_batch=192,
    )  # fmt: skip
    found = proposal(plan, 90, whole=False, given="per_rank", unit=32)
    assert found["type"] == "batch.per_rank=32 batch.accumulate=3"


RULES = """
name: small
runs: runs
data: {dataset: digits}
model: {name: mlp, args: {hidden: [16], batch_norm: true}, batch_norm: ghost, ghost_batch: 20}
batch: {per_rank: 40}
optim:
  {name: adam, lr: 0.01, base_batch: 20, scale: sqrt, schedule: onecycle, rise: 30 steps}
train: {epochs: 2}
"""


TRY = """
import sys
from pathlib import Path
from hpctrain import task
from hpctrain.config.load import load
from hpctrain.launch import ready, trial
loaded = load(Path(sys.argv[1]), sys.argv[2:])
print(trial.perform(loaded, ready.make_plan(loaded, "local"), task.TryBatch(), quiet=True).result)
"""


def test_a_batch_of_more_than_half_of_the_samples_is_tried_in_two_whole_steps(config):
    argv = [sys.executable, "-c", TRY, str(config), "batch.global=1000"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "'steps': 2, 'samples': [1000, 1000]" in done.stdout, done.stderr


def test_rules_of_the_plan_do_not_end_the_search_but_are_told(tmp_path):
    (tmp_path / "c.yaml").write_text(RULES)
    done = hpctrain("find-batch", tmp_path / "c.yaml", "batch.tail=drop")
    found = json.loads(done.stdout)
    assert (found["per_rank"], found["all_samples"]) == (1500, True)
    assert found["type"] == "batch.per_rank=40 batch.accumulate=1"
    assert list(found["unfit"]) == ["batch.per_rank=1500"]
    assert "hpctrain: but batch.per_rank=1500 is refused by the rest of" in done.stderr
    assert "sqrt makes 1 - beta larger than 1 for a global batch of 1500" in done.stderr
    assert "30 of 2 steps leave none for the way down" in done.stderr


def test_a_fold_has_fewer_samples_and_all_of_them_are_tried_in_whole_steps(tmp_path):
    (tmp_path / "c.yaml").write_text(RULES.replace("batch_norm: ghost, ghost_batch: 20", "batch_norm: local"))
    plain = "optim={lr: 0.01}"
    found = json.loads(hpctrain("find-batch", tmp_path / "c.yaml", "folds=3", "--ranks", 2, plain).stdout)
    assert (found["per_rank"], found["all_samples"], found["unfit"]) == (500, True, {})


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a rank's own memory is measured there")
def test_the_batch_that_fits_runs_and_a_larger_one_does_not(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "name: big\nruns: runs\ndata: {dataset: synthetic, samples: 4000, args: {shape: [3, 64, 64]}}\n"
        "model: {name: cnn, args: {channels: [16]}}\nbatch: {global: 128}\noptim: {lr: 0.1}\ntrain: {epochs: 1}\n"
    )
    done = hpctrain("find-batch", tmp_path / "c.yaml", "--ranks", "2", "slurm.mem=1200M")
    found = json.loads(done.stdout)
    assert 16 <= found["per_rank"] < 2000
    assert not found["all_samples"]
    assert found["taken"] <= found["memory"] == 600 << 20
    assert "does not fit" in done.stderr
    assert f"fits, takes {found['taken'] / 2**20:,.0f} MiB" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
