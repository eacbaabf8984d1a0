"""Starting from a file of weights, and leaving some of them as they are."""

import hashlib

import msgspec
import pytest

from hpctrain.errors import ConfigError
from tests.train.ranks import make_config, make_plan

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

HERE = "tests.train.test_weights"
NET = {"name": "mlp", "args": {"hidden": [16]}}
CNN = {"name": "cnn", "args": {"channels": [4, 8], "hidden": 16, "norm": "after"}}


def evaluated(*given):
    """Be a rank that does all before the first step, and evaluates."""
    from hpctrain.train import prepare, weights
    from hpctrain.train.evaluate import evaluate

    _, _, config, plan, world, comm, device, _, _ = given
    numbers = prepare.planned(config, plan, world, comm)
    parts = prepare.parts(config, plan, numbers, comm, device)
    weights.start(config.model, plan, parts.model, None)
    found = evaluate(parts.model, parts.data.test, parts.objective, comm=comm, precision=parts.precision)
    return {"value": [found.score / found.samples, found.loss]}


def exported(ranks, config, name="source"):
    """Train a run, and export what it ends with; return the file and the outcome."""
    from hpctrain.launch.checkpoints import export

    run = ranks.run_dir(name)
    outcome = ranks.start(config, 1, run=run).outcome()
    return export(run, ranks.root / f"{name}.safetensors", None, force=False)[0], outcome


def planned(config, ranks, file):
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return msgspec.structs.replace(make_plan(config, ranks), weights_path=str(file), weights_sha256=sha256)


def tensors(run, step, name="model"):
    from safetensors.torch import load_file

    return load_file(run.checkpoint(step) / f"{name}.safetensors")


def refusal(ranks, config, plan):
    (report,) = ranks.start(config, 1, run=ranks.run_dir("refused"), plan=plan).wait()
    return report["error"], report["message"]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("model", "options"), [(NET, {}), (NET, {"ema": 0.9}), (CNN, {})], ids=["mlp", "ema", "cnn"])
def test_a_run_that_starts_from_another_ones_weights_scores_as_that_one_ended(ranks, model, options, size):
    file, outcome = exported(ranks, make_config(model=model, train={"epochs": 1, **options}))
    config = make_config(model={**model, "weights": str(file)})
    job = ranks.start(config, size, run=ranks.run_dir(), plan=planned(config, size, file), body=f"{HERE}:evaluated")
    for report in job.wait():
        accuracy, loss = report["value"]
        assert accuracy == outcome["accuracy"] > 0.5
        assert loss == pytest.approx(outcome["loss"], rel=1e-12 if size == 1 else 1e-5)


def test_the_average_begins_with_them_too(ranks):
    file, _ = exported(ranks, make_config(model=NET, train={"epochs": 1}))
    config = make_config(model={**NET, "weights": str(file)}, train={"steps": 1, "ema": 0.999}, optim={"lr": 1e-30})
    run = ranks.run_dir()
    ranks.start(config, 1, run=run, plan=planned(config, 1, file)).outcome()
    from safetensors.torch import load_file

    average, start = tensors(run, 1, "ema"), load_file(file)
    assert all(average[name].equal(start[name]) for name in start)


@pytest.mark.parametrize("size", [1, 2])
def test_frozen_parameters_and_the_averages_of_their_norms_stay_to_the_bit(ranks, size):
    frozen = ("0.*", "3.*")  # the first convolution and its norm
    options = {"optim": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, "train": {"epochs": 1, "ema": 0.9}}
    file, _ = exported(ranks, make_config(model=CNN, **options))
    config = make_config(model={**CNN, "weights": str(file), "freeze": frozen}, **options)
    run = ranks.run_dir()
    outcome = ranks.start(config, size, run=run, plan=planned(config, size, file)).outcome()
    from safetensors.torch import load_file

    start = load_file(file)
    for name, after in {**tensors(run, outcome["step"]), **tensors(run, outcome["step"], "ema")}.items():
        stays = name.startswith(("0.", "3."))
        assert after.equal(start[name]) == stays, name
    assert {name for name in start if name.startswith("3.")} >= {"3.running_mean", "3.running_var", "3.weight"}


def test_a_head_for_other_classes_starts_at_random_where_it_is_left_out(ranks):
    file, _ = exported(ranks, make_config(model=NET, train={"epochs": 1}))
    data = {"dataset": "synthetic", "samples": 120, "args": {"shape": (1, 8, 8), "classes": 4}}
    config = make_config(data=data, model={**NET, "weights": str(file)}, train={"steps": 1})
    kind, message = refusal(ranks, config, planned(config, 1, file))
    assert kind == "UsageError"
    assert message == (
        f"model.weights: {file} is of another model: 2 of 4 tensors differ\n"
        "  3.bias: 10 in the file, 4 in the model\n  3.weight: 10 x 16 in the file, 4 x 16 in the model\n"
        '  if these may start at random, as a head for other classes does: model.weights_skip=["3.*"]'
    )
    config = make_config(data=data, model={**NET, "weights": str(file), "weights_skip": ("3.*",)}, train={"steps": 1})
    run = ranks.run_dir()
    ranks.start(config, 1, run=run, plan=planned(config, 1, file)).outcome()
    assert tensors(run, 1)["3.weight"].shape == (4, 16)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ({"args": {"hidden": [16, 8]}}, "UsageError", "is of another model: 4 of 6 tensors differ\n"),
        ({"weights_skip": ("body.*",)}, "UsageError", "model.weights_skip: nothing in the model or in"),
        (
            {"freeze": ("body.*",)},
            "UsageError",
            "matches 'body.*'\n  its parameters are: 1.weight",
        ),
        ({"freeze": ("*",)}, "UsageError", "model.freeze: nothing is left to train"),
    ],
)
def test_what_does_not_fit_is_listed(ranks, model, kind, message):
    file, _ = exported(ranks, make_config(model=NET, train={"steps": 1}))
    config = make_config(model={**NET, "weights": str(file), **model})
    found = refusal(ranks, config, planned(config, 1, file))
    assert found[0] == kind
    assert message in found[1]


def test_a_file_that_has_changed_or_is_gone_is_refused_until_there_is_a_checkpoint(ranks):
    file, _ = exported(ranks, make_config(model=NET, train={"steps": 1}))
    config = make_config(model={**NET, "weights": str(file)}, train={"steps": 6})
    plan = planned(config, 1, file)
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    kind, message = refusal(ranks, config, plan)
    assert kind == "JobError"
    assert message == (
        f"model.weights: {file} has changed since the run was planned: its SHA-256 is another\n"
        "  put the file back, or submit the run again"
    )
    file.write_bytes(before)
    run, whole = ranks.run_dir(), ranks.run_dir("whole")
    assert ranks.start(config, 1, run=whole, plan=plan).outcome()["verdict"] == "completed"
    assert ranks.start(config, 1, run=run, plan=plan, until=3).outcome()["step"] == 3
    file.unlink()
    assert refusal(ranks, config, plan)[1].startswith(f"model.weights: {file} cannot be read: No such file")
    assert ranks.start(config, 1, run=run, plan=plan).outcome()["verdict"] == "completed"
    assert (run.checkpoint(6) / "model.safetensors").read_bytes() == (
        whole.checkpoint(6) / "model.safetensors"
    ).read_bytes()


def test_the_launcher_looks_at_the_file_and_a_run_with_a_checkpoint_needs_it_no_more(ranks, tmp_path):
    from hpctrain.config.load import load
    from hpctrain.launch import ready

    file, _ = exported(ranks, make_config(model=NET, train={"steps": 1}))
    path = tmp_path / "run.yaml"
    text = (
        "name: r\ndata: {dataset: digits}\nmodel: {name: mlp, weights: FILE}\nbatch: {global: 60}\n"
        "optim: {lr: 0.1}\ntrain: {epochs: 1}\n"
    )
    path.write_text(text.replace("FILE", str(file)))
    plan = ready.make_plan(load(path), "local", 1)
    assert (plan.weights_path, plan.weights_sha256) == (str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    file.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"run.yaml:3:29: .*source.safetensors: no safetensors file; give a"):
        ready.make_plan(load(path), "local", 1)
    file.unlink()
    with pytest.raises(ConfigError, match=r"run.yaml:3:29: .*No such file or directory; give a safetensors file"):
        ready.make_plan(load(path), "local", 1)
    assert ready.make_plan(load(path), "local", 1, before=plan) == plan
