"""Damaged files of every format that is read whole: only our errors, little memory, and nothing written.

Each case is a small whole dataset of which one file is damaged at random, by a seed. It is counted as the login node
does and read as a rank does: either both work, or one of them raises an error of ours that names the file.
"""

import gzip
import random
import struct
import tracemalloc

import pytest

from hpctrain.config import schema
from hpctrain.config.datasets import Split
from hpctrain.data.locate import locate
from hpctrain.errors import DataError, UsageError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

CASES = 250
MOST_BYTES = 8 * 2**20  # what one case may take: some times the buffers of 1 MiB that are read at once

ABSURD = (0, 1, 2**16, 2**24, 2**31 - 1, 2**32 - 1)
PARTS = [
    *(b"", b"\0", b'"', b'""', b",", b",,,", b"\n", b"\r", b"\r\n", b'"' + b"\n" * 3000, b"\xff", b"\xef\xbb\xbf"),
    *(b"nan", b"inf", b"1e999", b"1e300", b"-", b"0x10", b"1_0", b"M\xc3", b"9" * 400, b"A" * 70_000, b"x" * 2**17),
]


def idx(random, *shape):
    size = 1
    for side in shape:
        size *= side
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape) + random.randbytes(size)


def table(random):
    rows = [f"{random.choice('MFI')},{random.random()},{random.randrange(9)}" for _ in range(30)]
    files = {"t.csv": "\n".join(["sex,length,rings", *rows]).encode()}
    args = {"target": "rings", "categories": ["sex"], "task": random.choice(["regression", "classification"])}
    return files, {"dataset": "table", "path": "t.csv", "args": args, "split": Split(test=0.2, validation=0.1)}


def family(random):
    files = {}
    for name, count in (("train", 12), ("t10k", 4)):
        files[f"{name}-images-idx3-ubyte"] = idx(random, count, 5, 4)
        files[f"{name}-labels-idx1-ubyte"] = idx(random, count)
    return files, {"dataset": "idx", "path": "."}


def zipped(random):
    files, section = family(random)
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}, section


def cifar(random):
    one = [bytes([label % 10]) + random.randbytes(3072) for label in range(3)]
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    files = {name: b"".join(one) for name in names}
    files["batches.meta.txt"] = b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n"
    only = random.choice([[], ["airplane", "bird"]])
    return files, {"dataset": "cifar10", "path": ".", "args": {"only": only}}


def damage(random, content):
    """Return the content with one to three faults: cut, longer, other bytes, absurd numbers, repeated parts."""
    for _ in range(random.randint(1, 3)):
        size = len(content)
        at, to = sorted(random.randint(0, min(size, random.choice([3, 16, size]))) for _ in range(2))
        kind = random.randrange(8)
        if kind == 0:
            content = content[: random.choice([at, size - at])]
        elif kind == 1:
            content = content[:at] + content[to:]
        elif kind == 2:
            content = content[:at] + random.choice(PARTS) + content[to:]
        elif kind == 3:
            content = content[:at] + struct.pack(">I", random.choice(ABSURD)) + content[at + 4 :]
        elif kind == 4 and size:
            at = min(at, size - 1)
            content = content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]
        elif kind == 5:
            content = content[:at] + content[at:to] * random.choice([2, 50]) + content[to:]
        elif kind == 6:  # a field of a table
            fields = content.split(b",")
            fields[random.randrange(len(fields))] = random.choice(PARTS)
            content = b",".join(fields)
        else:
            content = content + random.randbytes(random.choice([1, 4, 3073]))
    return content


def damaged(random, name, content):
    """Return a damaged file; of a compressed one half of the time what it holds is damaged, not the file."""
    if name.endswith(".gz") and random.random() < 0.5:
        return gzip.compress(damage(random, gzip.decompress(content)), mtime=0)
    return damage(random, content)


def read(section, samples):
    from hpctrain.data import images, table

    reader = table.load if section.dataset == "table" else images.load
    cpu = torch.device("cpu")
    return reader(section, path=samples.path, train_samples=samples.train, seed=0, device=cpu, dtype=torch.float32)


def attempt(allowed, call, *given):
    """Return what a call gives, and its error, which must be of this kind alone."""
    try:
        return call(*given), None
    except (UsageError, DataError) as error:
        return None, error if type(error) is allowed else pytest.fail(f"{type(error)}: {error}")


@pytest.mark.parametrize("make", [table, family, zipped, cifar])
def test_a_damaged_file_gives_an_error_of_ours_or_whole_samples(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    drawn = random.Random(f"damage {make.__name__}")  # noqa: S311 - the same cases every time
    early = late = 0
    tracemalloc.start()
    for case in range(CASES):
        files, keys = make(drawn)
        section = schema.Data(**keys)
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        planned = locate(section, {})
        name = drawn.choice(sorted(files))
        (tmp_path / name).write_bytes(damaged(drawn, name, files[name]))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        samples, told = attempt(UsageError, locate, section, {})
        # files may be damaged after they were counted, too
        data, refused = attempt(DataError, read, section, samples or planned)
        assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES, case
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files), case
        early, late = early + (told is not None), late + (told is None and refused is not None)
        for error in (told, refused):
            places = (str(tmp_path), keys["dataset"], "data.args")
            assert error is None or any(place in error.message for place in places), case
        if data is None:
            continue
        assert samples is None or (data.train.count, data.test.count) == (samples.train, samples.test), case
        for part in (data.train, data.test):
            assert torch.isfinite(part.inputs).all(), case
            assert torch.isfinite(part.targets).all(), case
            assert len(part.inputs) == len(part.targets) == part.count, case
            assert data.task == "number" or int(part.targets.max()) < data.outputs, case
    tracemalloc.stop()
    assert early > CASES // 4  # the damage is not harmless
    assert early + late < CASES  # nor always fatal
