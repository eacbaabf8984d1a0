import io
import tarfile
from array import array

import pytest

from hpctrain.data.samples import rows, split_key
from hpctrain.errors import DataError


def write(path, *members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def said(path):
    with pytest.raises(DataError) as caught:
        rows(path)
    return str(caught.value).replace(str(path), "FILE").splitlines()[0]


def test_a_key_ends_at_the_first_dot_of_the_file_name():
    # webdataset/tariterators.py, base_plus_ext
    assert split_key("a.b/c.d.jpg") == ("a.b/c", "d.jpg")
    assert split_key("a/b") == ("a/b", "")


def test_samples_are_groups_of_members(tmp_path):
    path = write(
        tmp_path / "x.tar",
        ("0.cls", b"7"), ("0.jpg", b"one"), ("0.json", b"{}"), ("1.input.PNG", b"three"), ("1.target.cls", b"3\n"),
    )  # fmt: skip
    found = rows(path)
    assert (found.samples, found.classes, found.size) == (2, 8, path.stat().st_size)
    content = path.read_bytes()
    places = zip(array("Q", found.offsets), array("I", found.sizes), strict=True)
    assert [content[offset : offset + size] for offset, size in places] == [b"one", b"three"]
    assert array("i", found.labels).tolist() == [7, 3]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "FILE: byte 0: holds no samples"),
        ([("0.jpg", b"1")], "FILE: member 0, byte 0: the sample has no label: no .cls with a whole number"),
        (
            [("0.txt", b"1"), ("0.cls", b"1")],
            "FILE: member 0, byte 1024: the sample has no picture: no .jpg, .jpeg or .png",
        ),
        (
            [("0.jpg", b"1"), ("0.cls", b"cat")],
            "FILE: member 0.cls, byte 1024: holds no label: a whole number of at most 1000000 is expected",
        ),
        (
            [("0.jpg", b"1"), ("0.cls", b"1" * 40)],
            "FILE: member 0.cls, byte 1024: holds no label: a whole number of at most 1000000 is expected",
        ),
        (
            [("0.jpg", b"1"), ("0.png", b"1"), ("0.cls", b"1")],
            "FILE: member 0.png, byte 1024: is the second picture of its sample",
        ),
        (
            [("0.jpg", b"1"), ("0.cls", b"1"), ("0.cls", b"1")],
            "FILE: member 0.cls, byte 2048: is the second label of its sample",
        ),
        ([("0.jpg", b""), ("0.cls", b"1")], "FILE: member 0.jpg, byte 0: has 0 bytes; a picture has 1 to 268435456"),
        (
            [("0.jpg", b"1"), ("0.cls", b"1"), ("1.jpg", b"1"), ("1.cls", b"1"), ("0.jpg", b"1"), ("0.cls", b"1")],
            "FILE: member 0.jpg, byte 4096: the key 0 stands here again, apart from the sample that has it already",
        ),
    ],
)
def test_what_is_no_sample_is_named_with_its_place(tmp_path, members, message):
    assert said(write(tmp_path / "x.tar", *members)) == message


def test_many_members_take_little_memory(tmp_path):
    import tracemalloc

    header = tarfile.TarInfo("0000000.jpg")
    header.size = 1
    with (tmp_path / "x.tar").open("wb") as file:
        for number in range(10_000):
            for suffix in ("jpg", "cls"):
                header.name = f"{number:07d}.{suffix}"
                file.write(header.tobuf() + b"1" + bytes(511))
        file.write(bytes(1024))
    tracemalloc.start()
    found = rows(tmp_path / "x.tar")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.samples == 10_000
    assert most < 120 * 10_000  # 10^6 samples: 120 MB
