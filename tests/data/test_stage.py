import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hpctrain.data import index, packed, stage
from hpctrain.errors import DataError

COPIER = """
import sys
from pathlib import Path
from hpctrain.data import index, stage
directory = Path(sys.argv[1])
print(stage.staged("$NODE", directory, [index.load(directory, "train-*.tar").header], None))
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Two shards with index.json, and an empty directory as the node's disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "data"
    directory.mkdir()
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("NODE", str(tmp_path / "node"))
    for number in range(2):
        with tarfile.open(directory / f"train-{number}.tar", "w") as archive:
            for name in ("a.jpg", "a.cls"):
                info = tarfile.TarInfo(name)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"1"))
    return directory


def contents(directory, **other):
    shards = []
    for path in sorted(directory.glob("*.tar")):
        digest = other.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(packed.Shard(path.name, 1, path.stat().st_size, digest))
    settings = packed.Settings("", 1, None, 90, 0, "stop")
    return packed.Contents(packed.FORMAT, settings, ("0", "1"), {"train": packed.Split(2, (0, 2), tuple(shards))})


def staged(directory, where="$NODE", known=None):
    return stage.staged(where, directory, [index.load(directory, "train-*.tar").header], known)


def files(place):
    return {path.name: path.read_bytes() for path in place.glob("*.tar")}


@pytest.mark.parametrize("with_sums", [True, False])
def test_shards_are_copied_once_and_used_again(made, capfd, with_sums):
    known = contents(made) if with_sums else None
    place = staged(made, known=known)
    assert place.parent == made.parent / "node" / f"hpctrain-{os.getuid()}"
    assert files(place) == files(made)
    assert f"hpctrain: data.stage: copying 2 shards, 0.0 GB, to {place}\n" == capfd.readouterr().err
    assert place.parent.stat().st_mode & 0o777 == 0o700
    assert staged(made, known=known) == place
    assert not capfd.readouterr().err


def test_other_shards_go_to_another_place(made):
    first = staged(made)
    os.utime(made / "train-0.tar", (1, 1))
    assert staged(made) != first


def test_a_copy_that_was_interrupted_is_completed(made, capfd):
    place = staged(made)
    (place / "train-1.tar").rename(place / ".train-1.tar")
    assert staged(made) == place
    assert "copying 1 shards" in capfd.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["train-0.tar", "train-1.tar"]


def test_a_damaged_shard_is_named_and_nothing_is_left(made):
    with pytest.raises(DataError) as caught:
        staged(made, known=contents(made, **{"train-1.tar": "0" * 64}))
    assert str(caught.value) == (
        f"{made}/train-1.tar: what was read is not what index.json says\n"
        f"  hpctrain pack --verify {made} says which shards are damaged"
    )
    assert not list((made.parent / "node").rglob("*.tar"))


def fallback(made, capfd, where="$NODE"):
    assert staged(made, where) == made
    return capfd.readouterr().err.replace(str(made.parent), "TMP")


def on_a_disk_of(made, options):
    """Stage in a process that has a small disk of its own in the node's place."""
    index.load(made, "train-*.tar")
    script = f'mount -t tmpfs -o {options} tmpfs "$NODE" && "$@" && ls -A "$NODE"/*'
    ended = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-c",
            COPIER,
            str(made),
        ],
        cwd=Path(__file__).parents[2],
        text=True,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.splitlines()[0] == str(made)
    assert ".tar" not in "".join(ended.stdout.splitlines()[1:])
    return ended.stderr


def test_without_room_the_original_is_read(made):
    said = on_a_disk_of(made, "size=8m")
    assert "has 0.0 GB free, 0.0 GB are needed; shards are read from" in said


@pytest.mark.parametrize("inodes", [4, 5])
def test_a_disk_that_fills_up_is_left_as_it_was(made, inodes):
    said = on_a_disk_of(made, f"size=256m,nr_inodes={inodes}")
    assert "copying 2 shards" in said
    assert f"No space left on device; shards are read from {made}\n" in said


def test_a_variable_or_directory_that_is_not_there(made, capfd):
    assert fallback(made, capfd, "$NO_SUCH/x") == (
        "hpctrain: data.stage: $NO_SUCH/x names a variable that is not set on this node; "
        "shards are read from TMP/data\n"
    )
    assert fallback(made, capfd, "$NODE/gone") == (
        "hpctrain: data.stage: there is no directory TMP/node/gone on this node; shards are read from TMP/data\n"
    )


def test_a_directory_that_others_may_write_is_not_trusted(made, capfd):
    mine = made.parent / "node" / f"hpctrain-{os.getuid()}"
    mine.mkdir()
    mine.chmod(0o777)
    assert fallback(made, capfd) == (
        f"hpctrain: data.stage: TMP/node/hpctrain-{os.getuid()}: is not this user's alone; "
        "shards are read from TMP/data\n"
    )
    mine.rmdir()
    mine.symlink_to("/tmp")
    assert "shards are read from TMP/data" in fallback(made, capfd)


def test_one_process_copies_and_the_others_wait(made):
    index.load(made, "train-*.tar")
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", COPIER, str(made)],
            cwd=root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    said = [rank.communicate(timeout=60) for rank in ranks]
    assert len({out for out, _ in said}) == 1
    assert files(Path(said[0][0].strip())) == files(made)
    assert sum("copying 2 shards" in err for _, err in said) == 1
