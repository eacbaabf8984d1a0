"""What of an optimizer and its schedule does not fit, with its place; and what has no effect."""

from typing import get_args

import pytest

from hpctrain.config.optim import BY_NAME, BY_SCHEDULE, Optim, Optimizer, Shape, asked, spares, unread

ADAMS = "adam, amsgrad, nadam, radam, adamax, adamw or lamb"
OTHERS = "constant, step, multistep, linear, cosine, polynomial, plateau or restarts"
NO_VALIDATION = "looks at a validation set, and there is none; set one apart, such as data.split.validation=0.1"

RULES = [
    ("{lr: 0.1, momentum: 0.9, name: adam}",
     "optim.momentum: nothing reads this with name: adam; remove it, or use name: sgd, rmsprop or lars"),
    ("{lr: 0.1, betas: [0.9, 0.99]}",
     "optim.betas: nothing reads this with name: sgd; remove it, or use name: " + ADAMS),
    ("{lr: 0.1, trust: 0.01}", "optim.trust: nothing reads this with name: sgd; remove it, or use name: lars"),
    ("{lr: 0.1, power: 3}",
     "optim.power: nothing reads this with schedule: constant; remove it, or use schedule: polynomial"),
    ("{lr: 0.1, schedule: onecycle, warmup: 5 epochs}",
     "optim.warmup: nothing reads this with schedule: onecycle; remove it, or use schedule: " + OTHERS),
    ("{lr: 0.1, nesterov: true}", "optim.nesterov: needs momentum greater than 0, such as momentum: 0.9"),
    ("{lr: 0.1, momentum: 0.9, nesterov: true, dampening: 0.1}",
     "optim.dampening: cannot be combined with nesterov; remove one of them"),
    ("{lr: 0.1, schedule: multistep}",
     "optim.milestones: missing; say where to decay, such as milestones: [30 epochs, 60 epochs]"),
    ("{lr: 0.1, schedule: step, decay_every: 0 steps}",
     "optim.decay_every: must be longer than 0 with schedule: step"),
    ("{lr: 0.1, schedule: restarts, period: 0 steps}",
     "optim.period: must be longer than 0 with schedule: restarts"),
    ("{lr: 0.1, schedule: onecycle, rise: 0 %}", "optim.rise: must be longer than 0 with schedule: onecycle"),
    ("{lr: 0.1, schedule: onecycle, cycle_momentum: [0.95, 0.85]}",
     "optim.cycle_momentum: runs from 0.95 down to 0.85; give the smaller number first"),
    ("{lr: 0.1, schedule: onecycle, cycle_momentum: [0.85, 0.95], momentum: 0.9}",
     "optim.momentum: follows from cycle_momentum; give one of them"),
    ("{lr: 0.1, schedule: onecycle, cycle_momentum: [0.85, 0.95], name: adagrad}",
     "optim.cycle_momentum: adagrad has no momentum; remove it"),
    ("{lr: 0.1, schedule: onecycle, cycle_momentum: [0.85, 0.95], name: adam, scale: sqrt, base_batch: 64}",
     "optim.cycle_momentum: scale: sqrt scales the first of betas, in whose place this is; give one of them"),
    ("{lr: 0.1, schedule: onecycle, cycle_momentum: [0, 0.95], name: rmsprop}",
     "optim.cycle_momentum: rmsprop needs momentum greater than 0, such as [0.85, 0.95]"),
    ("{lr: 0.1, schedule: cosine, decay_over: 0 steps}",
     "optim.decay_over: must be longer than 0 with schedule: cosine"),
    ("{lr: 0.1, scale: sqrt}",
     "optim.scale: sqrt scales from base_batch, which is missing; give it, or remove scale"),
    ("{lr: 0.1, schedule: plateau}",
     "optim.schedule: plateau " + NO_VALIDATION),
    ("{lr: 0.1, name: adam, betas: [0.9, 1.0]}",
     "optim.betas[1]: expected a number of at least 0 and less than 1, got 1.0"),
    ("{lr: 0.1, name: adam, eps: 0}", "optim.eps: expected a number greater than 0, got 0"),
    ("{lr: 0.1, schedule: cosine, floor: 1}",
     "optim.floor: expected a number of at least 0 and less than 1, got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "message"), RULES, ids=[section for section, _ in RULES])
def test_a_rule_of_the_optimizer(problems, good, section, message):
    key = message.split(":")[0].removeprefix("optim.")
    place = f"optim: {section}".find(f" {key.split('[')[0]}: ") + 2  # a list is blamed at its key
    column = {"milestones": 1, "betas": place, "betas[1]": place + 13, "cycle_momentum": place}.get(key)
    column = column or place + len(key) + 2
    assert problems(good.replace("{lr: 0.1}", section)) == [f"run.yaml:5:{column}: {message}"]


def test_stopping_early_needs_a_validation_set(problems, load, good):
    text = good.replace("epochs: 3", "epochs: 3, stop_early: {patience: 5}")
    assert problems(text) == [f"run.yaml:6:20: train.stop_early: {NO_VALIDATION}"]
    assert load(text, "data.split.validation=0.1").config.train.stop_early.patience == 5
    assert load(text, "data.split.fold=2/5").config.train.stop_early.min_delta == 0


@pytest.mark.parametrize("key", ["clip_norm", "clip_value", "l1", "l2"])
def test_adasum_has_no_gradient_to_limit(problems, good, key):
    text = good.replace("epochs: 3", f"epochs: 3, {key}: 0.5") + "dist: {strategy: horovod, horovod: {op: adasum}}\n"
    (problem,) = problems(text)
    assert problem.endswith(f"train.{key}: comes too late with adasum: the optimizer has seen the gradient; "
                            "use op: average")  # fmt: skip


@pytest.mark.parametrize("section", [
    "{lr: 0.1, name: adam, betas: [0.9, 0.98], eps: 1e-6, weight_decay_on: weights, weight_decay: 0.1}",
    "{lr: 0.1, name: rmsprop, alpha: 0.9, momentum: 0.9, centered: true}",
    "{lr: 0.1, schedule: multistep, milestones: [30 epochs, 500 steps, 90 %], decay: 0.5}",
    "{lr: 0.1, schedule: onecycle, rise: 20 %, legs: linear, start: 0.2, cycle_momentum: [0.85, 0.95], nesterov: true}",
    "{lr: 0.1, schedule: linear, decay_over: 50 epochs, floor: 0.01, warmup: 1 epoch}",
    "{lr: 0.1, schedule: restarts, period: 5 epochs, period_growth: 2, floor: 0.1}",
    "{lr: 0.1, scale: sqrt, base_batch: 64, name: lamb}",
    "{lr: 0.1, momentum: 0.0, name: adam}",
])  # fmt: skip
def test_what_no_rule_of_the_optimizer_forbids(load, good, section):
    assert load(good.replace("{lr: 0.1}", section)).config.optim is not None


def test_every_argument_is_read_by_somebody_and_every_choice_is_known():
    for table, choices in ((BY_NAME, get_args(Optimizer)), (BY_SCHEDULE, get_args(Shape))):
        for key, readers in table.items():
            assert key in Optim.__struct_fields__
            assert readers
            assert set(readers) <= set(choices)
    assert not set(dict(unread(Optim(lr=1.0)))) & {"momentum", "nesterov", "dampening", "warmup"}


@pytest.mark.parametrize(("optim", "betas", "alpha", "eps"), [
    (Optim(lr=1.0), None, None, None),
    (Optim(name="adam", lr=1.0), (0.9, 0.999), None, 1e-8),
    (Optim(name="adam", lr=1.0, betas=(0.0, 0.5), eps=1e-3), (0.0, 0.5), None, 1e-3),
    (Optim(name="rmsprop", lr=1.0), None, 0.99, 1e-8),
    (Optim(name="rmsprop", lr=1.0, alpha=0.0), None, 0.0, 1e-8),
    (Optim(name="adadelta", lr=1.0), None, None, 1e-6),
    (Optim(name="adagrad", lr=1.0), None, None, 1e-10),
    (Optim(name="lamb", lr=1.0), (0.9, 0.999), None, 1e-6),
    (Optim(name="lars", lr=1.0), None, None, None),
])  # fmt: skip
def test_what_is_asked_for_without_a_word(optim, betas, alpha, eps):
    settings = asked(optim)
    assert (settings.lr, settings.betas, settings.alpha, settings.eps) == (1.0, betas, alpha, eps)


def test_who_spares_biases_and_norms():
    residual = ("resnet50", "torchvision:resnet50", "timm:resnet18")
    others = ("mlp", "cnn", "resnet_own:build", "resnet.net:build")
    assert [spares(Optim(lr=1.0), name) for name in residual + others] == [True] * 3 + [False] * 4
    assert [spares(Optim(name=name, lr=1.0), "mlp") for name in ("adamw", "lars", "lamb")] == [False, True, True]
    assert not spares(Optim(name="lars", lr=1.0, weight_decay_on="all"), "resnet50")
