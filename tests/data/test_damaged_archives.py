"""Damaged files of all kinds that shards and folders consist of: our errors or the right samples, and no more."""

import io
import os
import random
import tarfile
import tracemalloc

import msgspec
import pytest

from hpctrain.config import schema
from hpctrain.data import folder, index, listing, packed, shards
from hpctrain.errors import DataError, UsageError

MUTANTS = 250  # of each of five kinds of files
LARGE = 8 * 2**20  # bytes of memory that no damage of these small files may cost


def mutate(content, chance):
    """Return content with some bytes changed, cut out, put in or repeated."""
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        place = chance.randrange(len(out) + 1) if chance.random() < 0.5 else chance.randrange(min(len(out), 600) + 1)
        kind = chance.randrange(7)
        if kind == 0:
            out[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del out[place:]
        elif kind == 2:
            del out[place : place + chance.choice((1, 7, 511, 512))]
        elif kind == 3:
            out[place:place] = chance.randbytes(chance.choice((1, 8, 512)))
        elif kind == 4:
            out[place : place + 8] = chance.choice((b"\xff" * 8, bytes(8), b"\x80" + b"\xff" * 7, b"77777777"))
        elif kind == 5:
            out[place:place] = out[place // 512 * 512 : place // 512 * 512 + 1024]
        else:
            digit = chance.choice(b"0123456789-eE.[]{}\"',")
            out[place : place + 1] = bytes([digit]) * chance.choice((1, 30))
        out = out or bytearray(b"\0")
    return bytes(out)


def mend(content):
    """Give every header of a damaged archive its checksum again, so that what it says is believed."""
    out = bytearray(content)
    for begin in range(0, len(out) - 511, 512):
        block = out[begin : begin + 512]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + sum(block[156:]) + 256
            out[begin + 148 : begin + 156] = b"%06o\0 " % total
    return bytes(out)


def archive(kind):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=kind) as file:
        for number in range(3):
            deep = "deep/" * 30 * (number == 1)
            for name, content in ((f"{deep}{number}.jpg", b"\xff\xd8" * 300), (f"{deep}{number}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return written.getvalue()[: 512 * 40]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path


def survives(home, use):
    """Say whether our own error came; nothing else may, nor much memory be taken, nor a file appear elsewhere."""
    tracemalloc.start()
    try:
        use()
    except (DataError, UsageError) as error:
        assert str(home / "data") in str(error)  # noqa: PT017 - other errors are what this looks for
        return False
    else:
        return True
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < LARGE
        assert sorted(path.name for path in home.iterdir() if path.name != "cache") == ["data"]


@pytest.mark.parametrize("mended", [False, True])
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_damaged_tar_files(home, kind, mended):
    chance, whole, passed = random.Random(kind * 2 + mended), archive(kind), 0  # noqa: S311
    path = home / "data/train-0.tar"
    data = schema.Data(dataset="shards", path=str(home / "data"), args={"test": None})

    def use():
        train, _ = shards.open_sources(data, str(home / "data"))
        for number in range(len(train)):
            content, label = train.read(number)
            assert content
            assert 0 <= label < len(train.names)
            assert train.where(number).startswith(str(path))
        train.close()

    path.write_bytes(whole)
    assert survives(home, use)
    for _ in range(MUTANTS):
        content = mutate(whole, chance)
        path.write_bytes(mend(content) if mended else content)
        (home / "data/train-_.index").unlink(missing_ok=True)
        passed += survives(home, use)
    assert 0 < passed < MUTANTS * 0.9  # some damage is in a picture or in padding, most is not


def test_damaged_index_files(home):
    (home / "data/train-0.tar").write_bytes(archive(tarfile.GNU_FORMAT))
    expected = index.load(home / "data", "train-*.tar")
    file, chance = home / "data/train-_.index", random.Random(1)  # noqa: S311
    whole = file.read_bytes()

    def use():
        index.known(home / "data", "train-*.tar")
        found = index.load(home / "data", "train-*.tar")
        assert found == expected
        shards.Shards(home / "data", found, ("0", "1"))

    for _ in range(MUTANTS):
        file.write_bytes(mutate(whole, chance))
        survives(home, use)


def test_damaged_index_json(home):
    settings = packed.Settings("", 1, None, 90, 0, "stop")
    split = packed.Split(3, (0, 3), (packed.Shard("train-0.tar", 3, 10240, "0" * 64),))
    whole = msgspec.json.encode(packed.Contents(packed.FORMAT, settings, ("0", "1"), {"train": split}))
    chance, refused = random.Random(2), 0  # noqa: S311
    for _ in range(MUTANTS):
        (home / "data" / packed.NAME).write_bytes(mutate(whole, chance))
        refused += not survives(home, lambda: packed.read(home / "data"))
    assert refused > MUTANTS / 2


def test_damaged_listings(home):
    for number in range(5):
        (home / f"data/train/class{number % 2}").mkdir(parents=True, exist_ok=True)
        (home / f"data/train/class{number % 2}/{number}.jpg").write_bytes(b"picture")
    for directory, _, _ in os.walk(home / "data"):
        os.utime(directory, (1e9, 1e9))
    expected = listing.load(home / "data/train")
    [file] = (home / "cache/hpctrain/listings").glob("[0-9a-f]*")
    whole, chance = file.read_bytes(), random.Random(3)  # noqa: S311

    def use():
        found = listing.load(home / "data/train")
        assert found.names == expected.names
        source = folder.Folder(found)
        assert [source.read(number)[0] for number in range(5)] == [b"picture"] * 5

    for _ in range(MUTANTS):
        file.write_bytes(mutate(whole, chance))
        assert survives(home, use)


def test_many_entries_cost_little_memory(home):
    """Directories, which count for nothing, one after the other, and no samples."""
    header = tarfile.TarInfo("d/")
    header.type = tarfile.DIRTYPE
    with (home / "data/train-0.tar").open("wb") as file:
        file.writelines(header.tobuf() for _ in range(20_000))
        file.write(bytes(1024))
    data = schema.Data(dataset="shards", path=str(home / "data"), args={"test": None})
    assert not survives(home, lambda: shards.open_sources(data, str(home / "data")))
