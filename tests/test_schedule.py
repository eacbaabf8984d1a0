import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctrain.config.duration import Duration
from hpctrain.schedule import is_due, lr_at, scaled_lr, to_steps


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


def test_linear_scaling_is_the_ratio_of_batches():
    assert scaled_lr(0.1, rule="linear", batch=8192, base_batch=256) == pytest.approx(3.2)
    assert scaled_lr(0.1, rule="none", batch=8192, base_batch=256) == 0.1
    assert scaled_lr(0.1, rule="linear", batch=8192, base_batch=None) == 0.1


def test_warm_up_reaches_the_peak_with_its_last_step():
    rates = [lr_at(s, peak=1.0, shape="constant", warmup_steps=4, total_steps=10) for s in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_starts_at_the_peak_and_ends_near_zero():
    rates = [lr_at(s, peak=2.0, shape="cosine", warmup_steps=0, total_steps=100) for s in range(100)]
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.001
    assert rates == sorted(rates, reverse=True)


def test_step_schedule_decays_at_its_multiples():
    rates = [
        lr_at(s, peak=1.0, shape="step", warmup_steps=0, total_steps=30, decay=0.1, decay_every_steps=10)
        for s in (0, 9, 10, 19, 20, 29)
    ]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@given(st.integers(0, 10**6), st.integers(0, 1000), st.integers(1, 10**6), st.sampled_from(["constant", "cosine"]))
def test_no_rate_exceeds_the_peak_or_is_negative(step, warmup, total, shape):
    step = min(step, total - 1)
    rate = lr_at(step, peak=0.4, shape=shape, warmup_steps=warmup, total_steps=total)
    assert 0 <= rate <= 0.4
