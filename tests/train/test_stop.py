import os
import signal

import pytest

from hpctrain.train.stop import Stop

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.fixture
def stop():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    stop = Stop()
    stop.install()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "cause"), [
    (signal.SIGTERM, "preempted"), (signal.SIGUSR2, "time_limit"), (signal.SIGINT, "cancelled"),
])  # fmt: skip
def test_each_signal_has_its_cause(stop, number, cause):
    assert stop.cause is None
    os.kill(os.getpid(), number)
    assert stop.cause == cause


def test_repeated_signals_change_nothing(stop):
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert stop.cause == "time_limit"


def test_a_handler_stays_installed_until_the_loop_asks(stop):
    from hpctrain.dist.single import Single

    assert stop.agree(1, Single()) is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.agree(2, Single()) == "preempted"


class Clock:
    """Time that passes as the test says."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def test_the_ranks_agree_about_twice_a_second_whatever_a_step_takes(monkeypatch):
    from hpctrain.dist.single import Single
    from hpctrain.train import stop as module

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    for step_s, expected in [(0.001, 500), (0.01, 50), (0.2, 2), (3.0, 1)]:
        stop, done = Stop(), 0
        for _ in range(8):
            steps = max(stop.next_step - done, 1)
            done += steps
            clock.now += steps * step_s
            stop.agree(done, Single())
        assert stop.next_step - done == expected


def test_after_a_slow_stretch_the_interval_follows(monkeypatch):
    from hpctrain.dist.single import Single
    from hpctrain.train import stop as module

    clock, stop, done = Clock(), Stop(), 0
    monkeypatch.setattr(module, "time", clock)
    intervals = []
    for step_s in [0.001] * 6 + [0.1] * 3:
        steps = max(stop.next_step - done, 1)
        done += steps
        clock.now += steps * step_s
        stop.agree(done, Single())
        intervals.append(stop.next_step - done)
    assert intervals[5] == 500
    assert intervals[6:] == [5, 5, 5]


def test_where_ranks_caught_different_signals_one_cause_is_agreed():
    class Two:
        """A group whose other rank was told by USR2, and proposes 7 steps."""

        rank, size = 1, 2

        def sum(self, values):
            return values + torch.tensor([0, 1, 0, 7])

    stop = Stop()
    assert stop.agree(10, Two()) == "time_limit"
    assert stop.next_step == 17
    stop.cause = "preempted"
    assert stop.agree(17, Two()) == "time_limit"
    stop.cause = "cancelled"
    assert stop.agree(24, Two()) == "cancelled"
