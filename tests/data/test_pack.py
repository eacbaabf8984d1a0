import importlib.util
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from hpctrain.config import schema
from hpctrain.data import folder, shards
from hpctrain.data.locate import locate
from hpctrain.data.packed import read

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("HPCTRAIN_DATA", "/nowhere")) / "imagenet-sample.tar"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def jpeg(seed, height=12, width=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return simplejpeg.encode_jpeg(pixels, 90)


def png(seed):
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6), np.uint8)).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def tree(home):
    """Forty training pictures of four classes, four of them PNGs, and four test pictures."""
    for number in range(44):
        split = "train" if number < 40 else "val"
        file = home / "src" / split / f"class{number % 4}" / f"p {number:02}.{'png' if number % 10 == 9 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number) if file.suffix == ".png" else jpeg(number))
    return home / "src"


def command(*arguments):
    return [sys.executable, "-m", "hpctrain", "pack", *map(str, arguments)]


def run(*arguments, code=0):
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert not done.stdout
    return done.stderr


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".index"}


def samples(source):
    """Return all samples without their order."""
    return sorted((content, source.names[label]) for content, label in map(source.read, range(len(source))))


def both(src, out):
    """Return train and test of a folder, and of the shards made of it."""
    data = [schema.Data(dataset=name, path=str(path)) for name, path in (("folder", src), ("shards", out))]
    return folder.open_sources(data[0], str(src)), shards.open_sources(data[1], str(out))


def test_shards_hold_the_pictures_byte_for_byte(tree, home):
    said = run(tree, home / "out", "--workers", 2)
    before, after = both(tree, home / "out")
    for one, other in zip(before, after, strict=True):
        assert one.names == other.names
        assert samples(one) == samples(other)
    assert [label for _, label in map(after[0].read, range(40))] != sorted(range(40), key=lambda n: n % 4)
    assert "hpctrain: train: 40 samples in 1 shards, " in said
    assert "hpctrain: val: 4 classes of 1 (class0) to 1 (class3) samples\n" in said
    found = locate(schema.Data(dataset="shards", path=str(home / "out")))
    assert (found.train, found.test) == (40, 4)
    assert run("--verify", home / "out").endswith(": all shards are what index.json says\n")


def test_the_same_source_gives_the_same_bytes(tree, home):
    run(tree, home / "one", "--workers", 1)
    run(tree, home / "two", "--workers", 2)
    assert files(home / "one") == files(home / "two")
    run(tree, home / "three", "--seed", 1)
    assert files(home / "one")["train-000000.tar"] != files(home / "three")["train-000000.tar"]


def test_standard_tar_reads_the_shards(tree, home):
    run(tree, home / "out")
    with tarfile.open(home / "out/val-000000.tar") as archive:
        names = archive.getnames()
        labels = [archive.extractfile(name).read() for name in names if name.endswith(".cls")]
    assert sorted(labels) == [b"0", b"1", b"2", b"3"]
    assert sorted(names)[:2] == ["00000000_p_40.cls", "00000000_p_40.jpg"]


def test_a_second_call_changes_nothing_and_other_settings_are_refused(tree, home):
    run(tree, home / "out")
    before = {path: path.stat().st_mtime_ns for path in (home / "out").iterdir()}
    run(tree, home / "out")
    assert {path: path.stat().st_mtime_ns for path in (home / "out").iterdir()} == before
    assert run(tree, home / "out", "--seed", 1, code=2) == (
        f"hpctrain: {home}/out holds shards of another source, or with other settings\n  give another OUT\n"
    )
    (home / "full").mkdir()
    (home / "full/file").touch()
    assert run(tree, home / "full", code=2) == (
        f"hpctrain: {home}/full is not empty, and no unfinished pack\n  give a new directory as OUT\n"
    )
    assert run(tree, tree / "out", code=2) == (
        f"hpctrain: {tree}/out lies in {tree}, and would be taken for a part of it\n  give an OUT beside SRC\n"
    )
    assert run(home / "gone", home / "new", code=2).startswith(f"hpctrain: {home}/gone is no directory\n")


def test_larger_pictures_are_made_smaller_and_others_stay(home):
    source = home / "src/a"
    source.mkdir(parents=True)
    kept = jpeg(0, 20, 30)
    (source / "kept.jpg").write_bytes(kept)
    (source / "tall.jpg").write_bytes(jpeg(1, 90, 40))
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(source / "wide.png")
    Image.fromarray(np.zeros((60, 60, 4), np.uint8), "CMYK").save(source / "print.jpg")
    run(home / "src", home / "out", "--resize", 20)
    data = schema.Data(dataset="shards", path=str(home / "out"), args={"test": None})
    train, _ = shards.open_sources(data, str(home / "out"))
    found = [content for content, _ in map(train.read, range(4))]
    assert kept in found
    assert sorted(simplejpeg.decode_jpeg_header(content)[:3] for content in found) == [
        (20, 20, "YCbCr"), (20, 27, "Gray"), (20, 30, "YCbCr"), (45, 20, "YCbCr"),
    ]  # fmt: skip


def damage(tree):
    (tree / "train/class0/p 00.jpg").write_bytes(jpeg(0)[:200])
    (tree / "train/class1/p 01.jpg").write_bytes(b"GIF89a")
    bomb = bytearray(png(3))
    bomb[16:24] = struct.pack(">II", 2**20, 2**20)
    (tree / "train/class3/p 39.png").write_bytes(bomb)


def test_a_corrupt_picture_stops_with_its_name(tree, home):
    damage(tree)
    said = run(tree, home / "out", "--workers", 1, code=4)
    assert any(f"{tree}/train/{name} " in said for name in ("class0/p 00.jpg", "class1/p 01.jpg", "class3/p 39.png")), (
        said
    )
    assert said.endswith("\n  remove the file, or leave out what cannot be read: --on-error skip\n")


def test_corrupt_pictures_are_left_out_and_listed(tree, home):
    damage(tree)
    said = run(tree, home / "out", "--on-error", "skip")
    split = read(home / "out").splits["train"]
    assert (split.samples, split.per_class) == (37, (9, 9, 10, 9))
    reasons = {skipped.where.removeprefix(f"{tree}/train/"): skipped.reason for skipped in split.skipped}
    assert reasons.keys() == {"class0/p 00.jpg", "class1/p 01.jpg", "class3/p 39.png"}
    assert reasons["class1/p 01.jpg"] == "is neither JPEG nor PNG: it starts with 47 49 46 38"
    assert reasons["class0/p 00.jpg"].startswith("cannot be decoded: ")
    assert reasons["class3/p 39.png"].startswith("cannot be decoded: ")
    for name, reason in reasons.items():
        assert f"hpctrain: train: left out: {tree}/train/{name} {reason}\n" in said


def test_idx_files_become_pngs(home):
    source = home / "mnist"
    source.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 4), np.uint8)
    for split in ("train", "t10k"):
        (source / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">4B3I", 0, 0, 8, 3, 7, 5, 4) + pixels.tobytes()
        )
        (source / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">4BI", 0, 0, 8, 1, 7) + bytes([0, 2, 1, 0, 2, 1, 2])
        )
    run(source, home / "out")
    data = schema.Data(dataset="shards", path=str(home / "out"))
    for part in shards.open_sources(data, str(home / "out")):
        found = [part.read(number) for number in range(7)]
        decoded = {np.asarray(Image.open(io.BytesIO(content))).tobytes(): label for content, label in found}
        assert decoded == {image.tobytes(): label for image, label in zip(pixels, [0, 2, 1, 0, 2, 1, 2], strict=True)}
        assert part.names == ("0", "1", "2")


@pytest.mark.parametrize("change", ["flip", "cut", "remove", "add", "swap"])
def test_verify_names_the_shard_that_is_wrong(tree, home, change):
    run(tree, home / "out")
    shard, other = home / "out/train-000000.tar", home / "out/val-000000.tar"
    content = shard.read_bytes()
    if change == "flip":
        shard.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
    elif change == "cut":
        shard.write_bytes(content[:-10240])
    elif change == "remove":
        shard.unlink()
        shard = f"{shard} cannot be read"
    elif change == "add":
        shard = home / "out/train-000001.tar"
        shutil.copy(other, shard)
    else:
        shutil.copy(other, shard)
    said = run("--verify", home / "out", code=4)
    assert said.startswith(f"hpctrain: {shard}")
    assert len(said.splitlines()) == 2


def test_verify_wants_a_finished_pack(home):
    assert run("--verify", home, code=2) == (
        f"hpctrain: {home} holds no index.json of hpctrain pack\n  give the OUT of a finished pack\n"
    )
    assert "pack needs SRC and OUT" in run(code=2)
    assert "--verify checks its own OUT" in run("--verify", home, home, code=2)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_and_called_again_it_ends_with_the_same_bytes(tree, home, seed, monkeypatch):
    for number in range(300):  # enough for some shards of a megabyte
        (tree / f"train/class{number % 4}/big{number}.jpg").write_bytes(jpeg(number, 60, 80))
    run(tree, home / "whole", "--shard-mb", 1)
    expected = files(home / "whole")
    assert len(expected) > 3
    chance = random.Random(seed)  # noqa: S311 - which moment is all it chooses
    kills = 0
    while True:
        started = subprocess.Popen(
            command(tree, home / "out", "--shard-mb", 1), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline, places = time.monotonic() + 60, [home / "out/.pack", home / "out"]
        goal = chance.randrange(1, 12)  # files seen in OUT and OUT/.pack
        while started.poll() is None and kills < 3 and time.monotonic() < deadline:
            if sum(len(list(place.glob("*"))) for place in places if place.is_dir()) >= goal:
                break
        if started.poll() is not None or kills == 3:
            break
        started.send_signal(signal.SIGKILL)  # its workers die with it
        started.wait()
        kills += 1
    assert started.wait(60) == 0
    assert kills
    assert files(home / "out") == expected
    assert not (home / "out/.pack").exists()
    run("--verify", home / "out")


# in a process of its own, because webdataset leaves the files open that it has read
REWRITE = """
import json, sys
import webdataset
seen, theirs, *shards = sys.argv[1:]
found = list(webdataset.WebDataset(shards, shardshuffle=False))
listed = []
for number, sample in enumerate(found):
    with open(f"{number}.picture", "wb") as file:
        file.write(sample["jpg"])
    listed.append((file.name, sample["cls"].decode()))
with open(seen, "w") as file:
    json.dump(listed, file)
with webdataset.ShardWriter(theirs + "/train-%03d.tar", maxcount=150, verbose=0) as writer:
    for sample in found:
        writer.write({"__key__": sample["__key__"], "jpg": sample["jpg"], "cls": int(sample["cls"])})
"""


def _real_or_skip():
    if not REAL.is_file():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("HPCTRAIN_DATA has no imagenet-sample.tar")


def test_the_real_pictures_go_to_webdataset_and_back(home):
    _real_or_skip()
    if importlib.util.find_spec("webdataset") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("webdataset is not installed")
    with tarfile.open(REAL) as archive:
        archive.extractall(home / "src", filter="data")
    run(home / "src", home / "out", "--shard-mb", 8)
    data = schema.Data(dataset="folder", path=str(home / "src"), args={"train": ".", "test": None})
    expected = samples(folder.open_sources(data, str(home / "src"))[0])
    ours = sorted(str(path) for path in (home / "out").glob("*.tar"))
    assert len(ours) == 5
    names = read(home / "out").names
    (home / "theirs").mkdir()
    subprocess.run([sys.executable, "-c", REWRITE, home / "seen", home / "theirs", *ours], check=True, cwd=home)
    seen = [((home / path).read_bytes(), names[int(label)]) for path, label in json.loads((home / "seen").read_text())]
    assert sorted(seen) == expected
    data = schema.Data(dataset="shards", path=str(home / "theirs"), args={"test": None})
    back, _ = shards.open_sources(data, str(home / "theirs"))
    assert sorted((content, names[label]) for content, label in map(back.read, range(len(back)))) == expected
