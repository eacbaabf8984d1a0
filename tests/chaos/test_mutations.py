"""Damaged and planted checkpoints: each is found out, or does no harm; nothing in them is executed."""

import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from hpctrain.errors import CheckpointError
from hpctrain.manifest import FORMAT, MANIFEST, MODEL, OPTIM, Manifest, Sum, best, verify

torch = pytest.importorskip("torch")
from tests.chaos import saves  # noqa: E402 - needs torch

pytestmark = pytest.mark.torch

FILES = ("manifest.json", "model.safetensors", "optim.safetensors", "ema.safetensors", "rng.safetensors")
Mutation = tuple[str, Path, bytes | Callable[[Path], None]]


class Planted:
    """What a pickle in the place of a checkpoint would run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def run(tmp_path):
    run = saves.run_at(tmp_path / "run")
    checkpoints = saves.store(run)
    for step in (1, 2):
        saves.save(checkpoints, step)
    return run


def contents(run, step):
    return {name: (run.checkpoint(step) / name).read_bytes() for name in FILES}


def changed_bytes(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Ways in which the bytes of a file go bad."""
    chance = random.Random(name)  # noqa: S311 - the same every time
    for place in range(len(content)) if name == MANIFEST else sorted(chance.sample(range(len(content)), 200)):
        bit = 1 << chance.randrange(8)
        yield f"bit {bit} of byte {place}", content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
    for length in {0, 1, 7, 8, len(content) - 1, *chance.sample(range(len(content)), 40)}:
        yield f"cut to {length}", content[:length]
    for more in (b"\0", b"\n", b" ", b"{}", bytes(4096), content):
        yield f"{len(more)} bytes appended", content + more
    for begin in chance.sample(range(len(content)), 20):
        end = min(begin + chance.choice([1, 16, 512]), len(content))
        if any(content[begin:end]):
            yield f"zeros from {begin} to {end}", content[:begin] + bytes(end - begin) + content[end:]
    if name == MANIFEST:
        for start in (b"[" * 10**6, b'{"a":' * 10**5, b"\xff" * 1000, b"null", b"[]", b'{"format":2}', bytes(10**6)):
            yield f"{start[:9]!r}", start


def pickles(content: bytes, canary: Path) -> Iterator[tuple[str, bytes]]:
    """What would be executed by `pickle` and `torch.load`."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        planted = pickle.dumps(Planted(canary), protocol)
        yield f"pickle {protocol}", planted
        yield f"pickle {protocol} of the right size", (planted + content)[: len(content)]


def link_elsewhere(file: Path) -> None:
    file.symlink_to(file.rename(file.parent.parent / "moved"))


def link_to_zeros(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def sparse(file: Path) -> None:
    os.truncate(file, 1 << 40)


KINDS = (Path.unlink, link_elsewhere, link_to_zeros, link_to_itself, directory, pipe, sparse)


def damages(good: Path, others: list[dict[str, bytes]], canary: Path) -> Iterator[Mutation]:
    """Ways in which the files of a checkpoint go bad: the file, and its new content or what is done to it."""
    before = {name: (good / name).read_bytes() for name in FILES}
    for name, content in before.items():
        for what, new in (*changed_bytes(name, content), *pickles(content, canary)):
            yield what, good / name, new
        for number, files in enumerate([before, *others]):
            for part, theirs in files.items():
                if theirs != content:
                    yield f"{part} of checkpoint {number}", good / name, theirs
        for kind in KINDS:
            yield kind.__name__, good / name, kind


def sealed(good: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What only somebody who makes a right manifest for it can do."""
    manifest = msgspec.json.decode((good / MANIFEST).read_bytes(), type=Manifest)

    def change(**fields: object) -> Callable[[], object]:
        made = msgspec.structs.replace(manifest, **fields).sealed()
        return lambda: (good / MANIFEST).write_bytes(made.encode())

    for step in (0, 1, 3, -1, 2**62):
        yield f"step {step}", change(step=step)
    for format_ in (0, 1, FORMAT - 1, FORMAT + 1):
        yield f"format {format_}", change(format=format_)
    for fields in ({"seed": 4}, {"global_batch": 16}, {"train_samples": 99}, {"steps_per_epoch": 12}):
        yield f"{fields}", change(**fields)
    yield "another dataset", change(policy=msgspec.structs.replace(manifest.policy, dataset="mnist"))
    yield "another optimizer", change(optimizer=manifest.optimizer | {"kind": "Adam"})
    yield "no optimizer", change(optimizer={})
    yield "other groups", change(optimizer=manifest.optimizer | {"groups": [1]})
    for name in manifest.files:
        fewer = {key: value for key, value in manifest.files.items() if key != name}
        if name != "ema.safetensors":
            yield f"without {name}", change(files=fewer)
        for size in (0, -1, 2**40, 2**62):
            yield f"{name} of {size} bytes", change(files=manifest.files | {name: Sum(size, "0" * 64)})
    for name in ("../../../secret", "/etc/passwd", "model.pt", ""):
        yield f"also {name!r}", change(files=manifest.files | {name: Sum(0, "0" * 64)})


def replaced(good: Path, name: str, content: bytes) -> None:
    """Put another content in the place of a file, with a manifest that says so."""
    import hashlib

    manifest = msgspec.json.decode((good / MANIFEST).read_bytes(), type=Manifest)
    files = manifest.files | {name: Sum(len(content), hashlib.sha256(content).hexdigest())}
    (good / name).write_bytes(content)
    (good / MANIFEST).write_bytes(msgspec.structs.replace(manifest, files=files).sealed().encode())


def forged(good: Path, canary: Path) -> Iterator[tuple[str, str, bytes]]:
    """Contents that are no such file, though the manifest says they are."""
    for name in FILES[1:]:
        content = (good / name).read_bytes()
        length = int.from_bytes(content[:8], "little")
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            yield f"pickle {protocol}", name, pickle.dumps(Planted(canary), protocol)
        for claimed in (0, 1, length - 1, length + 8, 2**31, 2**40, 2**62, 2**64 - 1):
            yield f"header of {claimed}", name, claimed.to_bytes(8, "little") + content[8:]
        header = content[8 : 8 + length]
        for old, new in (
            (b'"F32"', b'"I64"'), (b'"F32"', b'"F33"'), (b"[0,", b"[9,"), (b'"shape":[', b'"shape":[9999999999,'),
            (b'"data_offsets"', b'"data_offset_"'), (b"{", b"["), (b'"I64"', b'"F64"'),
        ):  # fmt: skip
            if old in header:
                new_header = header.replace(old, new)
                made = len(new_header).to_bytes(8, "little") + new_header + content[8 + length :]
                yield f"{old!r} -> {new!r}", name, made
        yield "empty", name, b""
        if name != OPTIM:  # whose tensors may have any names: state that no optimizer asks for does nothing
            yield "another file", name, (good / OPTIM).read_bytes()


def restore(directory: Path, before: dict[str, bytes]) -> None:
    if directory.is_symlink():
        directory.unlink()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in before.items():
        (directory / name).write_bytes(content)


@pytest.mark.timeout(600)  # thousands of checkpoints: a minute, several on a busy machine
def test_every_damage_is_found_and_the_one_before_is_used(run, tmp_path):
    foreign_run = saves.run_at(tmp_path / "foreign")
    saves.save(saves.store(foreign_run), 2, seed=5)
    good, canary, count = run.checkpoint(2), tmp_path / "canary", 0
    before, others = contents(run, 2), [contents(run, 1), contents(foreign_run, 2)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoints = saves.Checkpoints(run, 1, saves.PLAN, saves.make_config())
    for what, file, damage in damages(good, others, canary):
        if isinstance(damage, bytes):
            file.write_bytes(damage)
        else:
            damage(file)
        manifest, problems = checkpoints.newest()
        assert manifest is not None, (what, file)
        assert manifest.step == 1, (what, file)
        assert len(problems) == 1
        named = good if what.startswith("manifest.json of") else file  # that one is right: what it names is not
        assert str(named) in problems[0], (what, file, problems)
        count += 1
        restore(good, before)
        (good.parent / "moved").unlink(missing_ok=True)
    assert checkpoints.newest() == (verify(good, 2), [])
    assert count >= 2000
    assert not canary.exists()
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    assert grown_mib < 200


def test_whole_directories_that_stand_in_the_wrong_place(run, tmp_path):
    good, before = run.checkpoint(2), contents(run, 2)
    checkpoints = saves.Checkpoints(run, 1, saves.PLAN, saves.make_config())
    elsewhere = tmp_path / "elsewhere"
    for what in ("another step", "a link", "a file", "a pipe", "nothing"):
        shutil.rmtree(elsewhere, ignore_errors=True)
        good.rename(elsewhere)
        if what == "another step":
            shutil.copytree(run.checkpoint(1), good)
        elif what == "a link":
            good.symlink_to(elsewhere)
        elif what == "a file":
            good.write_bytes(before[MODEL])
        elif what == "a pipe":
            os.mkfifo(good)
        else:
            good.mkdir()
        manifest, problems = checkpoints.newest()
        assert manifest is not None
        assert (manifest.step, len(problems)) == (1, 1), what
        assert str(good) in problems[0]
        if not good.is_dir():
            good.unlink()
        restore(good, before)


def test_a_manifest_made_for_it_gets_nothing_accepted_that_does_not_fit(run):
    """With the sums right this is no damage but malice, or another run: refused when it is read or loaded."""
    good, before = run.checkpoint(2), contents(run, 2)
    checkpoints = saves.Checkpoints(run, 1, saves.PLAN, saves.make_config())
    count = 0
    for what, change in sealed(good):
        change()
        manifest, problems = checkpoints.newest()
        assert manifest is not None
        if manifest.step == 2:
            with pytest.raises((CheckpointError, KeyError)):
                saves.load(checkpoints, manifest)
        else:
            assert (manifest.step, len(problems)) == (1, 1), what
        restore(good, before)
        count += 1
    assert count > 30


def test_files_forged_with_their_manifest_execute_nothing_and_take_no_memory(run, tmp_path):
    good, before, canary = run.checkpoint(2), contents(run, 2), tmp_path / "canary"
    checkpoints = saves.Checkpoints(run, 1, saves.PLAN, saves.make_config())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for what, name, content in list(forged(good, canary)):
        replaced(good, name, content)
        manifest, problems = checkpoints.newest()
        assert problems == []
        assert manifest is not None
        try:
            saves.load(checkpoints, manifest)
        except (CheckpointError, KeyError, RuntimeError, TypeError, ValueError, IndexError):
            pass
        else:
            pytest.fail(f"{what} in {name} was loaded")
        restore(good, before)
    assert not canary.exists()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024 < 200
    # the canary works: it is what `pickle` would have run
    pickle.loads(pickle.dumps(Planted(canary)))  # noqa: S301
    assert canary.exists()


def test_a_checkpoint_that_lost_its_score_is_not_the_best(run):
    manifests = [verify(run.checkpoint(step), step) for step in (1, 2)]
    assert best(manifests).step == 1
    assert best([msgspec.structs.replace(manifest, score=None) for manifest in manifests]) is None
