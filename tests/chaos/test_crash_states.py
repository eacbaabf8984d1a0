"""After a power cut at any moment of several saves a complete checkpoint is found, never older than acknowledged."""

import hashlib
import random
import shutil

import pytest

pytest.importorskip("torch")
from tests.chaos import oplog, saves

pytestmark = pytest.mark.torch


@pytest.mark.timeout(600)  # hundreds of small trees: a minute, several on a busy machine
def test_every_crash_leaves_what_was_acknowledged(strace, tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    operations = oplog.record(strace, oplog.saving(root), root, tmp_path / "log")
    disk = oplog.Disk()
    for part in ("attempts", "ckpt", "stage"):
        oplog.apply(disk, oplog.Record("mkdir", [part]))
    oplog.apply(disk, oplog.Record("fsync", [""]))
    chance, seen, acknowledged, ages = random.Random(3), set(), 0, set()  # noqa: S311 - the same every time
    for operation in operations:
        if operation.call == "say":
            acknowledged = int(operation.content.split()[1])
        else:
            oplog.apply(disk, operation)
        for files in oplog.crashes(disk, chance):
            digest = hashlib.sha256(repr((sorted(files.items()), acknowledged)).encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            ages.add(check(tmp_path / "crashed", files, acknowledged, goes_on=len(seen) % 10 == 0) - acknowledged)
    assert acknowledged == 5
    assert len(seen) >= 500
    assert {call for call in (operation.call for operation in operations) if "rename" in call or call == "fsync"}
    assert 0 in ages  # most states have what was acknowledged
    assert 1 in ages  # and some the save that was under way


def check(path, files, acknowledged, *, goes_on):
    """Begin a new attempt on what the crash left; return the step that it goes on from."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in files.items():
        if content is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(content)
    run = saves.run_at(path)
    checkpoints = saves.store(run, 9, keep_best=True)
    manifest, _ = checkpoints.newest()
    step = 0 if manifest is None else manifest.step
    assert step >= acknowledged, sorted(files)
    assert [entry.name for entry in run.stage.iterdir()] == ["attempt_9"]  # leftovers are gone
    if manifest is not None and goes_on:
        expected, found = saves.Trained(0, step), saves.load(checkpoints, manifest)
        assert found.model.state_dict().keys() == expected.model.state_dict().keys()
        for name, value in expected.model.state_dict().items():
            assert found.model.state_dict()[name].allclose(value, atol=1e-4)  # of another process: not the last bits
        saves.save(checkpoints, step + 1)
        newest, _ = checkpoints.newest()
        assert newest is not None
        assert newest.step == step + 1
    return step
