import io
import json
import os
import tarfile
import threading
from pathlib import Path

import pytest

from hpctrain.config import schema
from hpctrain.data import index, shards
from hpctrain.data.locate import locate
from hpctrain.errors import DataError, UsageError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(path, *samples):
    with tarfile.open(path, "w") as archive:
        for key, content, label in samples:
            for name, text in ((f"{key}.jpg", content), (f"{key}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
    return path


@pytest.fixture
def packed(home):
    """Two training shards of five samples and one test shard of one, by a foreign program."""
    directory = home / "data"
    directory.mkdir()
    write(directory / "train-0.tar", ("a", b"A", 2), ("b", b"BB" * 700, 0))
    write(directory / "train-1.tar", ("a", b"C", 1), ("d/e", b"D", 0), ("f", b"F", 2))
    write(directory / "val-0.tar", ("a", b"V", 1))
    return directory


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def data(directory, **more):
    return schema.Data(dataset="shards", path=str(directory), **more)


def contents(source):
    return [source.read(number) for number in range(len(source))]


def test_any_sample_is_read_by_its_number(packed):
    train, test = shards.open_sources(data(packed), str(packed))
    assert contents(train) == [(b"A", 2), (b"BB" * 700, 0), (b"C", 1), (b"D", 0), (b"F", 2)]
    assert contents(test) == [(b"V", 1)]
    assert train.names == test.names == ("0", "1", "2")
    assert train.where(3) == f"{packed}/train-1.tar: member d/e.jpg, byte 2560"
    for beyond in (-1, 5):
        with pytest.raises(IndexError):
            train.read(beyond)
    train.close()
    assert train.read(0) == (b"A", 2)


def test_names_of_classes_come_from_index_json(packed):
    (packed / "index.json").write_text(
        json.dumps(
            {
                "format": "hpctrain-shards-1",
                "settings": {"source": "", "shard_mb": 1, "resize": None, "quality": 90, "seed": 0, "on_error": "stop"},
                "names": ["cat", "dog", "emu", "fox"],
                "splits": {},
            }
        )
    )
    train, _ = shards.open_sources(data(packed), str(packed))
    assert train.names == ("cat", "dog", "emu", "fox")
    (packed / "index.json").write_text('{"format": "hpctrain-shards-1"}')
    with pytest.raises(DataError, match=r"index\.json is damaged: Object missing required field `settings`"):
        shards.open_sources(data(packed), str(packed))
    (packed / "index.json").write_text('{"format": "another program\'s"}')
    assert shards.open_sources(data(packed), str(packed))[0].names == ("0", "1", "2")


def test_threads_share_a_source(packed):
    train, _ = shards.open_sources(data(packed), str(packed))
    expected, wrong = contents(train), []
    train.close()

    def read():
        wrong.extend(turn for turn in range(300) if train.read(turn % 5) != expected[turn % 5])

    before = open_files()
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert open_files() == before + 2


def test_more_shards_than_may_stay_open(packed, monkeypatch):
    monkeypatch.setattr(shards, "_MOST_OPEN", 1)
    train, _ = shards.open_sources(data(packed), str(packed))
    before = open_files()
    assert [content[:1] for content, _ in contents(train)] == [b"A", b"B", b"C", b"D", b"F"]
    assert open_files() == before + 1


def test_foreign_shards_get_an_index_on_first_use(packed):
    found = locate(data(packed))
    assert (found.train, found.path) == (None, str(packed))
    shards.open_sources(data(packed), str(packed))
    found = locate(data(packed))
    assert (found.train, found.test) == (5, 1)
    shards.open_sources(data(packed), str(packed), found.digest)
    with pytest.raises(DataError, match="the shards changed after the run was submitted"):
        shards.open_sources(data(packed), str(packed), "other")


def test_the_index_lies_beside_the_shards_or_in_the_cache(packed, home, monkeypatch):
    index.load(packed, "train-*.tar")
    assert (packed / "train-_.index").is_file()
    (packed / "train-_.index").unlink()
    write_file = index.cache.write

    def only_elsewhere(path, chunks):
        if path.parent == packed:
            raise PermissionError(13, "read-only")
        write_file(path, chunks)

    monkeypatch.setattr(index.cache, "write", only_elsewhere)
    first = index.load(packed, "train-*.tar")
    assert list((home / "cache").rglob("train-_.index"))
    monkeypatch.setattr(index, "make", None)
    assert index.load(packed, "train-*.tar") == first


@pytest.mark.parametrize("change", ["content", "new shard", "removed"])
def test_an_index_of_other_shards_is_made_anew(packed, change):
    before = index.load(packed, "train-*.tar").header
    if change == "content":
        write(packed / "train-0.tar", ("a", b"other", 1))
    elif change == "new shard":
        write(packed / "train-2.tar", ("a", b"other", 1))
    else:
        (packed / "train-0.tar").unlink()
    assert index.known(packed, "train-*.tar") is None
    after = index.load(packed, "train-*.tar").header
    assert after.digest != before.digest
    assert after.count == {"content": 4, "new shard": 6, "removed": 3}[change]


def test_a_copy_of_the_shards_has_the_same_digest(packed, home):
    import shutil

    shutil.copytree(packed, home / "copy", copy_function=shutil.copy)
    one, two = (index.load(place, "train-*.tar").header for place in (packed, home / "copy"))
    assert one.digest == two.digest
    assert one != two  # the times of change


def test_a_sample_that_is_cut_off_is_named(packed):
    train, _ = shards.open_sources(data(packed), str(packed))
    os.truncate(packed / "train-1.tar", 2600)
    with pytest.raises(DataError) as caught:
        train.read(4)
    assert str(caught.value) == (
        f"{packed}/train-1.tar: member , byte 4608 ends after 0 of 1 bytes\n"
        "  the shard was cut after the run was submitted: get it again"
    )


def test_an_index_that_lies_is_refused(packed):
    found = index.load(packed, "train-*.tar")
    for begin, value in ((0, 2**63), (0, 0), (40, 2**32 - 1), (40, 0)):
        rows = bytearray(found.rows)
        rows[begin : begin + (8 if begin < 40 else 4)] = value.to_bytes(8 if begin < 40 else 4, "little")
        with pytest.raises(DataError, match="does not fit the shards"):
            shards.Shards(packed, index.Index(found.header, bytes(rows)), ("0", "1", "2"))
    with pytest.raises(DataError, match="has the label 2, and there are 2 classes"):
        shards.Shards(packed, found, ("0", "1"))


def said(directory, **args):
    with pytest.raises(UsageError) as caught:
        locate(data(directory, args=args))
    return str(caught.value).replace(str(directory), "DIR")


def test_missing_shards_say_what_is_there(packed):
    assert said(packed, train="part-*.tar") == (
        "DIR: no shards are named part-*.tar\n  there are train-0.tar, train-1.tar, val-0.tar; data.args.train and "
        "data.args.test are their patterns, such as train-*.tar; test may be null"
    )
    assert said(packed, train="a/*.tar") == (
        "a/*.tar: the pattern of shards holds a '/'\n  name their directory by data.path"
    )
    assert said(packed / "gone") == "DIR: No such file or directory\n  give the directory of the shards: data.path=DIR"


def test_compressed_shards_are_refused_with_what_to_type(packed):
    (packed / "train-0.tar").rename(packed / "train-0.tar.gz")
    assert said(packed, train="train-*") == (
        "DIR/train-0.tar.gz is no .tar: in a compressed file no sample can be found by its offset\n"
        "  unpack the shards, such as gunzip DIR/*.tar.gz"
    )


def test_many_large_shards_are_read_by_several_processes(packed, monkeypatch):
    for number in range(8):
        write(packed / f"big-{number}.tar", *((f"{n}", bytes([n]), n) for n in range(number + 1)))
    alone = index.make(packed, "big-*.tar")
    monkeypatch.setattr(index, "_WORTH_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    together = index.make(packed, "big-*.tar")
    assert [shard.samples for shard in together.header.shards] == list(range(1, 9))
    assert together == alone


def test_an_error_in_a_process_is_the_same_error(packed, monkeypatch):
    monkeypatch.setattr(index, "_WORTH_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    for number in range(4):
        write(packed / f"big-{number}.tar", ("a", b"1", 1))
    os.truncate(packed / "big-2.tar", 1024)
    with pytest.raises(DataError) as caught:
        index.make(packed, "big-*.tar")
    assert caught.value.message == (f"{packed}/big-2.tar: byte 1024: the archive does not end with a block of zeros")
    assert caught.value.hint
