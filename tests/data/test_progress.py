import io

from hpctrain.data.progress import Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_come_now_and_then_where_there_is_no_terminal():
    stream, clock = io.StringIO(), Clock()
    progress = Progress("packing", "shards", stream=stream, clock=clock)
    for done in range(101):
        progress(done, 100)
        clock.now += 1
    assert stream.getvalue().splitlines()[:2] == [
        "hpctrain: packing: 10 of 100 shards (10 %), 1:22 left",
        "hpctrain: packing: 20 of 100 shards (20 %), 1:16 left",
    ]
    assert len(stream.getvalue().splitlines()) == 10


def test_one_line_changes_on_a_terminal():
    stream, clock = Terminal(), Clock()
    progress = Progress("packing", "shards", stream=stream, clock=clock)
    progress(500, 1000)
    clock.now += 3600
    progress(501, 1000)
    progress(502, 1000)
    progress(1000, 1000)
    first, last = stream.getvalue().removeprefix("\r\x1b[K").split("\r\x1b[K")
    assert first == "hpctrain: packing: 501 of 1000 shards (50 %), 249:30:00 left"
    assert last == "hpctrain: packing: 1000 of 1000 shards (100 %)\n"


def test_what_is_quick_says_nothing_where_there_is_no_terminal():
    stream = io.StringIO()
    Progress("listing", "classes", stream=stream)(10, 10)
    assert not stream.getvalue()
