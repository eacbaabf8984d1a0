import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpctrain.data.csv_rows import count, rows
from hpctrain.errors import UsageError


@pytest.fixture
def file(tmp_path):
    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_rows_come_with_their_lines_and_empty_lines_do_not_count(file):
    path = file("a,b\r\n\r\n1, 2\n\n\n'x',\" y, z\"\n7,8")
    assert list(rows(path, ",")) == [(1, ["a", "b"]), (3, ["1", "2"]), (6, ["'x'", " y, z"]), (7, ["7", "8"])]
    assert count(path, ",") == 4


def test_a_quoted_field_may_hold_a_line_end(file):
    path = file('a,b\n"1\n2",3\n4,"5""6"\n')
    assert list(rows(path, ",")) == [(1, ["a", "b"]), (3, ["1\n2", "3"]), (4, ["4", '5"6'])]
    assert count(path, ",") == 3


@pytest.mark.parametrize(("delimiter", "text"), [(";", "a;b"), ("\\t", "a\tb"), (" ", "a b"), ("ß", "aßb")])
def test_any_character_may_stand_between_columns(file, delimiter, text):
    assert list(rows(file(text), delimiter)) == [(1, ["a", "b"])]


def test_a_byte_order_mark_is_no_part_of_the_first_name(file):
    assert list(rows(file(b"\xef\xbb\xbfa,b\n"), ",")) == [(1, ["a", "b"])]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.sampled_from(["", "a,b", "1", '"x\ny",2', '"q"', "ü,ö"]), max_size=12), end=st.booleans())
def test_counting_agrees_with_reading(file, monkeypatch, lines, end):
    monkeypatch.setattr("hpctrain.data.csv_rows._BLOCK", 7)  # blocks that end anywhere
    for newline in ("\n", "\r\n"):
        path = file(newline.join(lines) + newline * end)
        assert count(path, ",") == len(list(rows(path, ",")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,\xe92\n", ":2: is not UTF-8 (byte 0xe9 at 3)\n  convert it: iconv -f latin1 -t utf-8 FILE"),
        ("a,b".encode("utf-16"), ":1: holds a NUL byte\n  is this a CSV file in UTF-8? See data.path"),
        (b"a,b\n1,\0\n", ":2: holds a NUL byte\n  is this a CSV file in UTF-8? See data.path"),
        (b"a" * 200_000, ":1: field larger than field limit (131072)\n  see whether quotes and line ends are whole"),
        (b"a," * 2**20, ":1: a row is longer than 1048576 bytes\n  is this a CSV file in UTF-8? See data.path"),
        (
            b"a\n1," + b'"\n",' * (2**18 + 9),
            ":262146: a row is longer than 1048576 bytes\n  is this a CSV file in UTF-8? See data.path",
        ),
        (b'a,"b\n', ":1: unexpected end of data\n  see whether quotes and line ends are whole"),
        (b'a,"b"c\n', ":1: ',' expected after '\"'\n  see whether quotes and line ends are whole"),
        (
            b"a,b\rc,d\r",
            ":1: a carriage return stands inside of the line\n  see whether quotes and line ends are whole",
        ),
    ],
)
def test_what_is_no_csv_file_is_refused_with_its_line(file, content, said):
    path = file(content)
    with pytest.raises(UsageError) as caught:
        list(rows(path, ","))
    assert str(caught.value) == f"{path}{said}"


def test_a_line_without_end_is_not_counted_forever(file):
    with pytest.raises(UsageError, match="a row is longer than 1048576 bytes"):
        count(file(b"1," * (2**20 + 2**19)), ",")


def test_a_file_that_is_not_there(tmp_path):
    for read in (count, lambda *given: list(rows(*given))):
        with pytest.raises(UsageError, match=r"gone.csv: No such file or directory\n  give a CSV file"):
            read(tmp_path / "gone.csv", ",")
        with pytest.raises(UsageError, match="Is a directory"):
            read(tmp_path, ",")
