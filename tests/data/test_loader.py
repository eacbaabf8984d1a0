import os
import signal
import threading
import time

import pytest

from hpctrain.errors import DataError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

CPU = torch.device("cpu")


class Numbers:
    """Sample n is n, three times; its label is n modulo 10. Some cannot be read, some take long."""

    def __init__(self, count=100, *, broken=(), skip=False, slow_s=0.0, seen=None):
        self.count, self.broken, self.skip, self.slow_s, self.seen = count, broken, skip, slow_s, seen
        self.closed = False

    def fill(self, task):
        from hpctrain.data.loader import read_or_next

        skipped = []
        for row in range(task.begin, task.end):
            if task.stopping.is_set():
                break

            def read(sample, *, row=row):
                if sample in self.broken:
                    raise DataError(f"sample {sample} is broken")
                task.inputs[row] = sample
                task.labels[row] = sample % 10

            time.sleep(self.slow_s)
            skipped += read_or_next(int(task.wanted.ids[row]), self.count, read, skip=self.skip)
        if self.seen is not None:
            self.seen()
        return skipped

    def close(self):
        self.closed = True


def loader(filler=None, *, workers="2", shape=(3,)):
    from hpctrain.data.batch import Kind
    from hpctrain.data.loader import Loader

    filler = filler or Numbers()
    return Loader(lambda _: filler, Kind(shape, torch.float32), count=filler.count, device=CPU, workers=workers)


def wanted(*batches):
    from hpctrain.data.dataset import Wanted

    for number, batch in enumerate(batches):
        yield Wanted(torch.tensor(batch), 0, number)


def listed(batch, inputs, labels):
    assert torch.equal(inputs[:, 0] % 10, labels.float())
    return inputs[:, 0].int().tolist()


def ours():
    return [thread for thread in threading.enumerate() if thread.name == "hpctrain loader"]


@pytest.fixture(autouse=True)
def leaves_no_threads():
    yield
    assert ours() == []


@pytest.mark.parametrize("workers", ["0", "1", "2", "5", "auto"])
def test_batches_come_as_they_are_wanted_with_any_number_of_workers(workers):
    batches = [list(range(first, first + 7 + first % 23)) for first in range(60)]  # shorter and longer ones
    assert list(loader(workers=workers).stream(wanted(*batches), listed)) == batches


def test_what_is_wanted_is_asked_for_ahead_but_only_so_far():
    from hpctrain.data.loader import BUFFERS

    asked = []

    def record():
        for batch in wanted(*[[number] for number in range(20)]):
            asked.append(batch.step)
            yield batch

    coming = loader().stream(record(), listed)
    for number in range(20):
        assert next(coming) == [number]
        assert len(asked) == min(number + 1 + BUFFERS, 20)  # no epoch ends here for anybody
    assert list(coming) == []


def test_memory_is_allocated_once():
    places = set()
    batches = [list(range(50))] * 40
    coming = loader().stream(wanted(*batches), lambda _, inputs, __: places.add(inputs.data_ptr()))
    assert len(list(coming)) == 40
    assert len(places) <= 3


def test_an_error_comes_where_its_batch_is_wanted():
    coming = loader(Numbers(broken={33, 35})).stream(wanted(range(10), range(10, 20), range(30, 60)), listed)
    assert next(coming) == list(range(10))
    assert next(coming) == list(range(10, 20))
    with pytest.raises(DataError, match="sample 33 is broken"):
        next(coming)


def test_an_error_in_what_is_wanted_ends_the_threads():
    def broken():
        yield from wanted([1])
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(loader().stream(broken(), listed))


def test_who_stops_early_ends_the_threads_at_the_sample_at_which_they_are():
    seen = []
    filler = Numbers(slow_s=0.02, seen=lambda: seen.append(1))
    coming = loader(filler).stream(wanted(*[range(64)] * 3), listed)
    next(coming)
    coming.close()
    assert ours() == []
    assert len(seen) < 3 * 8
    assert filler.closed


def test_a_stream_that_nobody_asked_ends_without_threads():
    loader().stream(wanted([1]), listed).close()


def test_workers_get_no_signals_and_one_thread_of_torch_and_leave_ours_alone():
    seen, before = [], torch.get_num_threads()

    def look():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        seen.append((blocked, torch.get_num_threads()))

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    torch.set_num_threads(2)
    try:
        list(loader(Numbers(seen=look)).stream(wanted(range(40)), listed))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    for blocked, threads in seen:
        assert threads == 1
        assert {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP} <= blocked
        assert signal.SIGSEGV not in blocked


def test_evaluation_may_run_in_inference_mode():
    with torch.inference_mode():
        assert list(loader().stream(wanted([1, 2], [3]), listed)) == [[1, 2], [3]]


@pytest.mark.parametrize("workers", ["0", "1", "3"])
def test_what_cannot_be_read_is_replaced_by_the_next_and_said_once(workers, capsys):
    filler = Numbers(3000, broken={5, 6, 2999}, skip=True)
    batches = [[4, 5, 6, 7], [2999, 0], [5] * 20]
    once = loader(filler, workers=workers)
    for _ in range(2):
        assert list(once.stream(wanted(*batches), listed)) == [[4, 7, 7, 7], [0, 0], [7] * 20]
    assert capsys.readouterr().out == (
        "hpctrain: skipped sample 5: sample 5 is broken\n"
        "hpctrain: skipped sample 6: sample 6 is broken\n"
        "hpctrain: skipped sample 2999: sample 2999 is broken\n"
    )


def test_more_than_a_thousandth_of_unreadable_samples_is_an_error(capsys):
    filler = Numbers(2999, broken={5, 60, 700}, skip=True)
    coming = loader(filler).stream(wanted([5], [60], [5, 60], [700]), listed)
    assert [next(coming) for _ in range(3)] == [[6], [61], [6, 61]]
    with pytest.raises(DataError) as caught:
        next(coming)
    assert str(caught.value) == (
        "more than 2 of 2999 samples cannot be read, the last one because: sample 700 is broken\n"
        "  data.on_error=skip is for single files; mend or remove what the log lists as skipped"
    )


@pytest.mark.parametrize("count", [1, 2, 10, 5000])
def test_a_part_that_cannot_be_read_at_all_is_an_error_soon(count):
    coming = loader(Numbers(count, broken=range(count), skip=True)).stream(wanted([0]), listed)
    with pytest.raises(DataError, match=rf"^more than {max(count // 1000, 1)} of {count} samples cannot be read"):
        next(coming)


def test_threads_do_not_keep_what_they_made():
    import gc
    import weakref

    filler = Numbers()
    alive = weakref.ref(filler)
    list(loader(filler).stream(wanted(range(30)), listed))
    del filler
    gc.collect()
    assert alive() is None


def pace(most):
    from hpctrain.data.workers import Pace

    return Pace(most)


def windows(measured, rate, waiting, count=1):
    """Let windows pass in which batches come at a rate that depends on the workers."""
    for _ in range(count * 10):
        seconds = 1 / rate(measured.workers)
        measured.note(waiting(measured.workers) * seconds, seconds)
    return measured.workers


def test_workers_are_doubled_as_long_as_training_waits_and_batches_come_faster():
    measured = pace(6)
    assert windows(measured, lambda workers: 15 * workers, lambda _: 0.5, 20) == 6


def test_workers_that_do_not_help_are_taken_back_for_good():
    measured = pace(16)
    assert windows(measured, lambda workers: 15 * min(workers, 4), lambda _: 0.5, 40) == 4
    assert windows(measured, lambda workers: 15 * workers, lambda _: 0.5, 40) == 4


def test_one_worker_is_enough_where_training_does_not_wait():
    assert windows(pace(16), lambda _: 15, lambda _: 0.01, 40) == 1


def test_automatic_workers_are_no_more_than_the_cpus_of_this_process():
    from hpctrain.data import workers

    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert workers.cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_crew_shrinks_after_what_was_given_before():
    from hpctrain.data.workers import Crew

    crew = Crew(Numbers, 4)
    assert len(ours()) == 4
    crew.resize(1)
    deadline = time.monotonic() + 60
    while len(ours()) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(ours()) == 1
    crew.resize(2)
    assert len(ours()) == 2
    crew.close()
