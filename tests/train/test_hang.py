"""Who is to blame: from where the ranks stand, however they wait."""

import pytest

from hpctrain.train.hang import RankReport, blamed, sentence
from hpctrain.train.heartbeat import Heart, Phase, View

LONG = 120.4


def rank(number, step, phase, *, hangs=True, state="S", host=None, where="", users=False, cpu=0.0, passes=0):
    position = (-1, 0, 0) if phase is Phase.START else (step, passes, int(phase))
    return RankReport(
        rank=number, host=host or f"n{number // 2 + 1}", pid=100 + number, step=step, phase=phase.name.lower(),
        position=position, still_s=LONG, hangs=hangs, state=state, where=where, users=users, cpu=cpu,
    )  # fmt: skip


def waiting(number, step=7):
    return rank(number, step, Phase.BACKWARD, where="loop.py:9 in train")


def said(ranks, missing=0):
    guilty = blamed(ranks)
    return [one.rank for one in guilty], sentence(guilty, ranks, missing) if guilty else None


def test_the_rank_that_is_behind_all_others_is_named():
    late = rank(3, 7, Phase.DATA, where="cards.py:81 in __getitem__", users=True)
    assert said([waiting(0), waiting(1), waiting(2), late]) == ([3], (
        "rank 3 on n2 made no progress for 120 s in data at step 7 (cards.py:81 in __getitem__); ranks 0-2 wait for it "
        "in backward"
    ))  # fmt: skip


def test_with_a_device_the_others_may_have_run_ahead_into_any_phase():
    ranks = [rank(0, 9, Phase.DATA), rank(1, 8, Phase.FORWARD), rank(2, 9, Phase.FORWARD), rank(3, 8, Phase.BACKWARD)]
    assert said(ranks)[0] == [1]


def test_who_may_take_longer_is_waited_for():
    ranks = [rank(0, 7, Phase.CHECKPOINT, hangs=False), *map(waiting, range(1, 4))]
    assert said(ranks) == ([], None)
    ranks[0] = rank(0, 7, Phase.CHECKPOINT)
    assert said(ranks)[0] == [0]


def test_a_save_or_an_evaluation_comes_before_the_next_step():
    assert said([rank(0, 7, Phase.EVAL), rank(1, 7, Phase.COMM)])[0] == [0]
    assert said([rank(0, 7, Phase.CHECKPOINT), rank(1, 7, Phase.DATA)])[0] == [0]
    assert said([rank(0, 7, Phase.COMM), rank(1, 7, Phase.FORWARD)])[0] == [0]


def test_an_earlier_pass_of_the_same_step_is_behind():
    ranks = [rank(0, 7, Phase.FORWARD, passes=1), rank(1, 7, Phase.BACKWARD, passes=0)]
    assert said(ranks)[0] == [1]


def test_a_rank_that_never_began_is_behind_one_that_resumed_far_on():
    guilty, text = said([rank(0, 0, Phase.START, where="net.py:3 in build", users=True), waiting(1, step=500)])
    assert guilty == [0]
    assert text.startswith("rank 0 on n1 made no progress for 120 s in start (net.py:3 in build); rank 1 waits")


@pytest.mark.parametrize(("state", "text"), [
    ("T", "rank 1 on n1 was stopped by a signal (SIGSTOP) in backward at step 7; ranks 0, 2 wait for it in backward"),
    ("X", "rank 1 on n1 has ended in backward at step 7; ranks 0, 2 wait for it in backward"),
    ("D", ("rank 1 on n1 waits in the kernel (a file system or a device) in backward at step 7; ranks 0, 2 wait for it"
           " in backward")),
])  # fmt: skip
def test_at_the_same_place_the_state_of_a_process_tells(state, text):
    ranks = [waiting(0), rank(1, 7, Phase.BACKWARD, state=state), waiting(2)]
    assert said(ranks) == ([1], text)


def test_at_the_same_place_the_code_of_the_user_or_a_busy_processor_tells():
    users = rank(1, 7, Phase.BACKWARD, where="net.py:5 in backward", users=True)
    assert said([waiting(0), users, waiting(2)])[0] == [1]
    assert said([waiting(0), waiting(1), rank(2, 7, Phase.BACKWARD, state="R", cpu=0.98)])[0] == [2]


def test_where_nothing_tells_them_apart_nobody_is_blamed_alone():
    assert said([waiting(number) for number in range(4)]) == ([0, 1, 2, 3], (
        "none of the 4 ranks made progress for 120 s; all are in backward at step 7 (loop.py:9 in train), rank 0 on n1"
        ": not all take part in the same collective, or the network between them is cut"
    ))  # fmt: skip


def test_several_that_are_behind_are_all_named():
    ranks = [waiting(0), waiting(1), rank(2, 7, Phase.DATA), rank(3, 7, Phase.DATA)]
    assert said(ranks, missing=4) == ([2, 3], (
        "ranks 2-3 made no progress for 120 s in data at step 7, the first on n2; ranks 0-1 wait for them in backward; "
        "of 4 more ranks nothing is known"
    ))  # fmt: skip


def test_while_somebody_debugs_a_rank_nothing_hangs():
    assert said([waiting(0), rank(1, 7, Phase.FORWARD, state="t")]) == ([], None)


def test_what_a_heart_shows_is_what_a_watchdog_reads():
    import os

    heart = Heart()
    view = View(os.dup(heart.fd))
    assert view.read().position == (-1, 0, 0)
    heart.begin(40)
    heart.enter(Phase.DATA, 40)
    first = view.read()
    heart.enter(Phase.FORWARD, 40, 2)
    pulse = view.read()
    assert (pulse.step, pulse.number, pulse.phase, pulse.first) == (40, 2, Phase.FORWARD, 40)
    assert first.position < pulse.position
    assert pulse.since > first.since
    assert pulse.seconds[Phase.DATA] == pytest.approx(pulse.since - first.since)
    heart.enter(Phase.FORWARD, 40, 2)
    assert view.read().since > pulse.since  # the same again is a beat, too
    view.close()
