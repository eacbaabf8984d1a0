"""What a step used is held against the plan, and a tail weighs what it holds."""

import msgspec
import pytest

from hpctrain.config.duration import Duration
from hpctrain.data.batches import Share
from hpctrain.errors import WorldError
from tests.train.ranks import Ranks, make_config, make_plan

pytestmark = pytest.mark.torch

ADAM = {"name": "adam", "lr": 0.001, "momentum": 0.0, "base_batch": 15, "scale": "sqrt"}


def made(**optim):
    """Return rates of one rank over a net, and its optimizer, before step 5."""
    import torch

    from hpctrain.train.history import History
    from hpctrain.train.optim import build, groups
    from hpctrain.train.rates import Rates

    config = make_config(optim={**ADAM, **optim})
    plan, net = make_plan(config, 1), torch.nn.Linear(3, 2)
    used = msgspec.convert({"lr": 0, "betas": plan.betas_used, "eps": plan.eps_used}, _settings())
    optimizer = build(config.optim, groups(config.optim, net, "mlp"), scaled=False, used=used)
    return Rates(config, plan, optimizer, History(config)), optimizer


def _settings():
    from hpctrain.config.optim import Settings

    return Settings


def check(rates, lr):
    import torch

    from hpctrain.dist.single import Single

    share = Share(epoch=0, samples=60, mine=60, passes=(torch.arange(60),), stand_in=(False,))
    rates.check(share, Single(), lr)


def test_a_step_as_planned_passes():
    rates, optimizer = made(weight_decay_on="weights")
    check(rates, rates.assign(7))
    assert {group["lr"] for group in optimizer.param_groups} == {0.002 * rates._curve.part(7)}


@pytest.mark.parametrize(("key", "value"), [("lr", 0.5), ("betas", (0.9, 0.999)), ("eps", 1e-8)])
@pytest.mark.parametrize("group", [0, 1])
def test_a_step_with_other_settings_than_planned_ends_the_run(key, value, group):
    rates, optimizer = made(weight_decay_on="weights")
    lr = rates.assign(7)
    optimizer.param_groups[group][key] = value
    with pytest.raises(WorldError) as caught:
        check(rates, lr)
    planned = {"lr": lr, "betas": (0.6, 0.996), "eps": 5e-9}[key]
    shown = str(value if key != "lr" else 0.5)
    assert f"{key} " in caught.value.message
    assert shown in caught.value.message.split("; planned are")[0]
    assert caught.value.message.startswith("a step took 60 samples on 1 ranks with lr ")
    assert key != "lr" or str(planned) in caught.value.message.split("; planned are")[1]


def test_another_share_of_the_batch_ends_the_run():
    import torch

    from hpctrain.dist.single import Single

    rates, _ = made()
    share = Share(epoch=0, samples=60, mine=59, passes=(torch.arange(59),), stand_in=(False,))
    with pytest.raises(WorldError, match=r"a step took 59 samples on 1 ranks .* planned are 60 on 1"):
        rates.check(share, Single(), rates.assign(0))


def test_other_settings_than_the_plans_are_refused(ranks: Ranks):
    config = make_config(optim=ADAM)
    plan = msgspec.structs.replace(make_plan(config, 1), eps_used=1e-8)
    (report,) = ranks.start(config, 1, run=ranks.run_dir(), plan=plan).wait()
    assert report["error"] == "WorldError"
    assert report["message"] == "the config gives eps 5e-09, the plan has 1e-08"


def with_another_rate(*given):
    """Train, but in one step at twice the rate that was assigned."""
    from hpctrain.train.rates import Rates
    from tests.train import bodies

    assign, wrong = Rates.assign, given[-1]["at"]

    def assign_wrongly(self, step):
        lr = assign(self, step)
        for group in self._optimizer.param_groups:
            group["lr"] = 2 * lr if step == wrong else lr
        return lr

    Rates.assign = assign_wrongly
    return bodies.find("train")(*given)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("at", [0, 11])
def test_the_first_and_the_last_step_of_a_run_are_held_against_the_plan(ranks: Ranks, size, at):
    config = make_config(train={"steps": 12})
    body = f"{__name__}:with_another_rate"
    job = ranks.start(config, size, run=ranks.run_dir(), body=body, options={"at": at})
    for report in job.wait():
        assert report["error"] == "WorldError", report
        assert report["message"].startswith("a step took "), report
    assert 12 not in job.run.checkpoints()


def noted_momenta(*given):
    """Train; return the momentum with which each step was done."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from tests.train import bodies

    found = []

    def note(optimizer, *_):
        group = optimizer.param_groups[0]
        found.append(group["betas"][0] if "betas" in group else group["momentum"])

    hook = register_optimizer_step_pre_hook(note)
    bodies.find("train")(*given)
    hook.remove()
    return {"value": found[-given[3].total_steps :]}  # before them another optimizer shows how large its state is


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "lars", "adamw", "nadam", "lamb"])
def test_one_cycle_gives_each_step_its_momentum(ranks: Ranks, name):
    optim = {"name": name, "lr": 0.001, "momentum": 0.0, "schedule": "onecycle", "legs": "linear",
             "warmup": Duration(0, "steps"), "rise": Duration(4, "steps"), "cycle_momentum": (0.8, 0.95)}  # fmt: skip
    config = make_config(optim=optim, train={"steps": 10})
    (report,) = ranks.start(config, 1, run=ranks.run_dir(), body=f"{__name__}:noted_momenta").wait()
    up, down = [0.95 - 0.05 * step for step in range(4)], [0.8 + 0.025 * step for step in range(1, 7)]
    assert report["value"] == pytest.approx(up + down)


@pytest.mark.parametrize("size", [1, 4])
def test_the_step_of_a_tail_is_the_mean_over_its_own_samples(ranks: Ranks, size):
    """33 samples in batches of 8 leave one for the fifth step: its gradient is not that of an eighth of a batch."""
    import torch
    from safetensors.torch import load_file

    from hpctrain.data.dataset import Wanted
    from hpctrain.data.load import load
    from hpctrain.models.build import build
    from tests.train.test_loop import samples

    config = make_config(
        data={"samples": 33}, batch={"global_": 8}, train={"steps": 5}, precision="fp64", log={"samples": True},
        optim={"lr": 0.1, "momentum": 0.0, "schedule": "constant", "warmup": Duration(0, "steps")},
        checkpoint={"every": Duration(1, "steps"), "keep": 5},
    )  # fmt: skip
    assert config.data is not None
    assert config.model is not None
    plan = make_plan(config, size)
    job = ranks.start(config, size, run=ranks.run_dir(), plan=plan)
    job.outcome()
    data = load(config.data, plan, device=torch.device("cpu"), dtype=torch.float64)
    net = build(config.model, shape=data.shape, outputs=10, seed=0).double()
    for step, ids in [(step["step"], step["ids"]) for step in samples(job)][1:]:
        before, after = (load_file(job.run.checkpoint(number) / "model.safetensors") for number in (step - 1, step))
        net.load_state_dict(before)
        inputs, targets = next(data.train.stream([Wanted(torch.tensor(ids))]))
        loss = torch.nn.functional.cross_entropy(net(inputs), targets)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        for (name, part), gradient in zip(net.named_parameters(), gradients, strict=True):
            assert (after[name] - (part.detach() - 0.1 * gradient)).abs().max().item() < 1e-12
    assert len(ids) == 1
