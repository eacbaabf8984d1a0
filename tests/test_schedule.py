import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctrain.config.duration import Duration
from hpctrain.config.optim import Settings
from hpctrain.schedule import Curve, evaluations_without_gain, is_due, reductions, scaled, to_steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("5 epochs", 50),
        ("1 epoch", 10),
        ("0.5 epochs", 5),
        ("1000 steps", 1000),
        ("10 %", 90),
        ("0 steps", 0),
        ("0.01 epochs", 1),
    ],
)
def test_lengths_become_steps(text, steps):
    assert to_steps(Duration.parse(text), steps_per_epoch=10, total_steps=900) == steps


def test_periodic_work_is_due_at_multiples_and_at_the_end():
    assert [done for done in range(1, 8) if is_due(done, 3, 7)] == [3, 6, 7]
    assert [done for done in range(1, 8) if is_due(done, 0, 7)] == [7]


ADAM = Settings(lr=0.001, betas=(0.9, 0.999), eps=1e-8)


@pytest.mark.parametrize(
    ("rule", "smoothed", "used"),
    [
        ("none", True, ADAM),
        ("linear", True, Settings(lr=0.004, betas=(0.9, 0.999), eps=1e-8)),
        ("sqrt", True, Settings(lr=0.002, betas=(0.6, 0.996), eps=5e-9)),
        ("sqrt", False, Settings(lr=0.002, betas=(0.9, 0.999), eps=1e-8)),
    ],
)
def test_a_batch_four_times_as_large_changes_what_its_rule_says(rule, smoothed, used):
    found = scaled(ADAM, rule=rule, smoothed=smoothed, batch=1024, base_batch=256)
    assert found.lr == pytest.approx(used.lr)
    assert found.betas == pytest.approx(used.betas)
    assert found.eps == pytest.approx(used.eps)


@pytest.mark.parametrize("rule", ["none", "linear", "sqrt"])
@pytest.mark.parametrize("base_batch", [None, 256])
def test_the_base_batch_itself_changes_nothing(rule, base_batch):
    settings = Settings(lr=0.3, betas=(0.9, 0.98), alpha=0.99, eps=1e-8)
    assert scaled(settings, rule=rule, smoothed=True, batch=256, base_batch=base_batch) == settings


def test_linear_scaling_is_the_ratio_of_batches():
    assert scaled(Settings(0.1), rule="linear", smoothed=False, batch=8192, base_batch=256).lr == pytest.approx(3.2)
    assert scaled(Settings(0.1), rule="sqrt", smoothed=False, batch=6400, base_batch=64).lr == pytest.approx(1.0)


def curve(shape, total=100, **changes):
    return Curve(shape=shape, total_steps=total, **changes)


def parts(made, steps=None):
    return [made.part(step) for step in range(made.total_steps if steps is None else steps)]


def test_warm_up_reaches_the_peak_with_its_last_step():
    assert parts(curve("constant", 6, warmup_steps=4)) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_starts_at_the_peak_and_ends_near_zero():
    found = parts(curve("cosine"))
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5)
    assert 0 < found[99] < 0.001
    assert found == sorted(found, reverse=True)


def test_step_schedule_decays_at_its_multiples():
    made = curve("step", 30, decay=0.1, decay_every_steps=10)
    assert [made.part(step) for step in (0, 9, 10, 19, 20, 29)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_linear_is_the_lectures_decay_to_a_floor():
    first, floor, tau = 0.1, 0.02, 40
    made = curve("linear", decay_over_steps=tau, floor=floor / first)
    for step in range(100):
        a = min(step / tau, 1)
        assert first * made.part(step) == pytest.approx((1 - a) * first + a * floor)


def test_what_falls_begins_after_the_warm_up():
    for shape in ("linear", "cosine", "polynomial"):
        made = curve(shape, warmup_steps=10, decay_over_steps=60, floor=0.25)
        assert made.part(9) == made.part(10) == 1.0
        assert [made.part(step) for step in (60, 61, 99)] == [0.25] * 3
        assert made.part(11) < 1.0


def test_restarts_begin_anew_after_each_period():
    made = curve("restarts", 90, warmup_steps=5, period_steps=10, period_growth=2)
    starts = [step for step in range(5, 90) if made.part(step) == 1.0]
    assert starts == [5, 15, 35, 75]


def test_one_cycle_rises_to_its_peak_and_momentum_does_the_opposite():
    made = curve("onecycle", 50, rise_steps=15, start=0.1, floor=0.01, legs="linear", cycle_momentum=(0.85, 0.95))
    found, momenta = parts(made), [made.momentum(step) for step in range(50)]
    assert (found[0], found[14], found[49]) == pytest.approx((0.1, 1.0, 0.01))
    assert (momenta[0], momenta[14], momenta[49]) == pytest.approx((0.95, 0.85, 0.95))
    assert max(found) == found[14]
    assert curve("onecycle", rise_steps=10).momentum(3) is None


def test_one_cycle_of_a_single_step_up_starts_at_the_peak():
    assert parts(curve("onecycle", 3, rise_steps=1)) == pytest.approx([1.0, 0.5, 0.0])


SHAPES = ["constant", "step", "multistep", "linear", "cosine", "polynomial", "onecycle", "plateau", "restarts"]


@given(
    st.integers(0, 10**6), st.integers(0, 1000), st.integers(2, 10**6), st.sampled_from(SHAPES), st.floats(0, 0.99),
    st.integers(0, 5),
)  # fmt: skip
def test_no_rate_exceeds_the_peak_or_is_negative(step, warmup, total, shape, floor, reduced):
    made = Curve(
        shape=shape, total_steps=total, warmup_steps=0 if shape == "onecycle" else warmup, floor=floor,
        decay_every_steps=7, milestone_steps=(3, 20), rise_steps=max(total // 3, 1), period_steps=5, period_growth=2,
    )  # fmt: skip
    found = made.part(min(step, total - 1), reduced)
    assert 0 <= found <= 1 + 1e-12


def plateau(losses, *, patience=2, threshold=0.0, cooldown=0):
    return reductions(losses, patience=patience, threshold=threshold, cooldown=cooldown)


def test_a_plateau_reduces_when_patience_is_over():
    assert plateau([3, 2, 1, 1, 1]) == 0
    assert plateau([3, 2, 1, 1, 1, 1]) == 1
    assert plateau([3, 2, 1, 1, 1, 1, 1, 1, 1]) == 2
    assert plateau([3, 2, 1, 1, 1, 1, 1, 1, 1], cooldown=2) == 1
    assert plateau([1, 0.99, 0.98, 0.97], threshold=0.1) == 1
    assert plateau([1, None, None, None]) == 1


def test_an_early_stop_counts_evaluations_since_the_lowest_loss():
    assert evaluations_without_gain([], min_delta=0.0) == 0
    assert evaluations_without_gain([3, 2, 1, 2, 1.5], min_delta=0.0) == 2
    assert evaluations_without_gain([3, 2, 1.95, 1.91], min_delta=0.1) == 2
    assert evaluations_without_gain([None, None], min_delta=0.0) == 2
    assert evaluations_without_gain([1, math.nan], min_delta=0.0) == 1
