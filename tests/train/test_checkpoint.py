import os
import random
import shutil

import msgspec
import numpy as np
import pytest

from hpctrain.errors import CheckpointError
from tests.train.ranks import make_config

torch = pytest.importorskip("torch")
from hpctrain.dist.single import SingleStep  # noqa: E402 - needs torch
from hpctrain.train import rng  # noqa: E402
from hpctrain.train.average import Average  # noqa: E402
from tests.train.saving import CPU, PLAN, Store, checkpoints, parts, state_of  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("kind", "options"), [
    (torch.optim.SGD, {}), (torch.optim.SGD, {"momentum": 0.9, "fused": True}), (torch.optim.AdamW, {}),
    (torch.optim.Adam, {"amsgrad": True}), (torch.optim.RMSprop, {"centered": True}), (torch.optim.Adagrad, {}),
])  # fmt: skip
def test_a_saved_state_comes_back_to_the_byte(run, kind, options):
    model, step = parts(kind=kind, **options)
    store = checkpoints(run)
    store.save(5, model, step)
    other, other_step = parts(seed=1, kind=kind, **options)
    assert state_of(other, other_step) != state_of(model, step)
    manifest, damaged = store.newest()
    assert (manifest.step, manifest.epoch, manifest.position, damaged) == (5, 0, 40, [])
    store.load_here(manifest, other, other_step)
    assert state_of(other, other_step) == state_of(model, step)


def test_momentum_of_channels_last_weights_lies_in_memory_as_they_do(run):
    def build():
        model = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        return model, SingleStep(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True))

    model, step = build()
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    step.optimizer.step()
    store = checkpoints(run)
    store.save(1, model, step)
    other, other_step = build()
    store.load_here(store.newest()[0], other, other_step)
    weight = other.weight
    assert other_step.optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()
    other.zero_grad()
    model.zero_grad()
    for one, steps in ((model, step), (other, other_step)):
        one(torch.ones(2, 3, 5, 5)).sum().backward()
        steps.optimizer.step()
    assert model.weight.equal(other.weight)


def test_settings_are_those_of_the_config_not_of_the_checkpoint(run):
    model, step = parts(momentum=0.9, weight_decay=0.5)
    store = checkpoints(run)
    store.save(5, model, step)
    other, other_step = parts(momentum=0.8, weight_decay=0.1)
    store.load_here(store.newest()[0], other, other_step)
    assert other_step.optimizer.param_groups[0]["momentum"] == 0.8
    assert other_step.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_the_newest_are_kept(run):
    store = checkpoints(run, keep=2)
    for step in (1, 2, 3, 4):
        store.save(step, *parts())
    assert run.checkpoints() == [3, 4]
    assert list(run.staging(1).iterdir()) == []


def _mutants(path):
    """Ways in which a file goes bad: a bit flips, at several places; it is cut, empty, longer, or gone."""
    content = path.read_bytes()
    for place in {0, 7, len(content) // 3, len(content) // 2, len(content) - 1}:
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    yield content[:-1]
    yield b""
    yield content + b"\0"
    yield bytes(len(content))
    yield None


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "optim.safetensors", "rng.safetensors"])
def test_whatever_is_damaged_is_skipped_and_named(run, name):
    store = checkpoints(run)
    for step in (1, 2):
        store.save(step, *parts(momentum=0.9))
    file = run.checkpoint(2) / name
    content = file.read_bytes()
    for mutant in _mutants(file):
        if mutant is None:
            file.unlink()
        else:
            file.write_bytes(mutant)
        manifest, damaged = store.newest()
        assert manifest is not None
        assert manifest.step == 1
        assert len(damaged) == 1
        assert str(file) in damaged[0]
        file.write_bytes(content)
    assert store.newest()[0].step == 2


def test_a_damaged_checkpoint_is_replaced_and_never_counts_as_one_that_is_kept(run):
    store = checkpoints(run, keep=1)
    store.save(2, *parts())
    shutil.copytree(run.checkpoint(2), run.checkpoint(4))  # says step 2: it is not what stands here
    assert store.newest()[0].step == 2
    store.save(3, *parts())
    assert run.checkpoints() == [3]
    (run.checkpoint(3) / "manifest.json").unlink()
    store.save(3, *parts())
    assert store.newest()[0].step == 3


def test_there_is_none_at_first(run):
    assert checkpoints(run).newest() == (None, [])


def test_a_newer_attempt_shuts_out_an_older_one(run):
    old = checkpoints(run, 1)
    old.save(1, *parts())
    (run.staging(1) / "half").mkdir()
    new = checkpoints(run, 2)
    assert [path.name for path in run.stage.iterdir()] == ["attempt_2"]
    with pytest.raises(CheckpointError) as caught:
        old.save(2, *parts())
    assert str(caught.value) == (
        f"step 2 was not saved: attempt 1 was shut out by a newer attempt of {run.path} "
        f"({run.staging(1) / 'step_00000002'} is gone)\n"
        "  this attempt is stale; the newer one goes on from the last checkpoint"
    )
    assert run.checkpoints() == [1]
    new.save(2, *parts())
    assert run.checkpoints() == [1, 2]


def test_a_stale_attempt_cannot_publish_what_it_had_written(run, monkeypatch):
    from hpctrain.train import durable

    old = checkpoints(run, 1)
    syncs = []

    def fenced_at_the_last_moment(directory):
        syncs.append(directory)
        if directory.name == "step_00000007":  # all files are written, the rename comes next
            checkpoints(run, 2)

    monkeypatch.setattr(durable, "sync", fenced_at_the_last_moment)
    with pytest.raises(CheckpointError, match="attempt 1 was shut out"):
        old.save(7, *parts())
    assert syncs
    assert run.checkpoints() == []


def test_an_attempt_that_is_shut_out_when_it_has_published_says_so(run, monkeypatch):
    """What is too old it cannot delete any more: that is no fault of the disk."""
    from hpctrain.train import durable

    old = checkpoints(run, 1, keep=1)
    old.save(6, *parts())
    sync = durable.sync

    def fenced_when_it_has_been_renamed(directory):
        sync(directory)
        if directory == run.ckpt:
            checkpoints(run, 2)

    monkeypatch.setattr(durable, "sync", fenced_when_it_has_been_renamed)
    with pytest.raises(CheckpointError, match="step 7 was saved, and then attempt 1 was shut out"):
        old.save(7, *parts())
    monkeypatch.undo()
    assert run.checkpoints() == [6, 7]
    before = (run.checkpoint(7) / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match="the evaluation at step 7 was not noted: attempt 1 was shut out"):
        old.amend(7, score=0.5, losses=[])
    assert (run.checkpoint(7) / "manifest.json").read_bytes() == before


def test_an_attempt_that_comes_too_late_does_not_begin(run):
    checkpoints(run, 5)
    with pytest.raises(CheckpointError, match=r"attempt 5 of .* runs already: this is 4"):
        checkpoints(run, 4)


def test_a_killed_delete_or_save_leaves_nothing_that_looks_whole(run, monkeypatch):
    store = checkpoints(run, 1, keep=1)
    store.save(1, *parts())
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if it died before deleting
    store.save(2, *parts())
    monkeypatch.undo()
    assert run.checkpoints() == [2]
    checkpoints(run, 2)
    assert [path.name for path in run.stage.iterdir()] == ["attempt_2"]


def test_a_full_disk_is_an_error_that_says_how_much_is_missing(run, monkeypatch):
    store = checkpoints(run)
    store.save(1, *parts())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step 2 was not saved: No space left on device \(\d+ bytes for"):
        store.save(2, *parts())
    monkeypatch.undo()
    assert store.newest()[0].step == 1
    store.save(2, *parts())
    assert store.newest()[0].step == 2


def draws():
    numbers = [random.random(), random.gauss(0, 1), np.random.random(), np.random.standard_normal()]  # noqa: NPY002, S311
    return [*numbers, *torch.rand(3).tolist()]


def test_averages_and_generators_come_back(run):
    model, step = parts(momentum=0.9)
    average = Average(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update()
    store = checkpoints(run)
    rng.key(1, 2, 3, CPU)
    random.gauss(0, 1)  # a generator that has drawn one number ahead
    store.save(5, model, step, average)
    drawn = draws()
    other, other_step = parts(seed=1, momentum=0.9)
    other_average = Average(other, 0.5)
    rng.key(4, 5, 6, CPU)
    manifest, _ = store.newest()
    assert Store(run, 1, msgspec.structs.replace(PLAN, ranks=2), make_config()).load_here(
        manifest, other, other_step, other_average
    ) == []  # fmt: skip
    assert draws() == drawn
    assert state_of(other, other_step) == state_of(model, step)
    with average.in_use(), other_average.in_use():
        assert state_of(other, other_step) == state_of(model, step)


@pytest.mark.parametrize(("name", "scores", "best"), [
    ("accuracy", [0.2, 0.9, None, 0.9, 0.1, 0.3], 4), ("error", [3.0, 0.5, 0.7, None, float("nan"), 9.0], 2),
    ("accuracy", [None] * 6, None),
])  # fmt: skip
def test_the_best_score_is_kept_the_newest_of_equals(run, name, scores, best):
    store = checkpoints(run, keep=1, keep_best=True)
    for step, score in enumerate(scores, 1):
        store.save(step, *parts(), score=score, score_name=name)
    assert run.checkpoints() == sorted({best, 6} - {None})
    assert checkpoints(run, 2, keep=1, keep_best=True).newest()[0].step == 6  # nothing but the manifests knows it


def test_what_stands_in_the_place_of_a_checkpoint_is_replaced(run):
    store = checkpoints(run, keep=1)
    store.save(1, *parts())
    (run.ckpt / "elsewhere").mkdir()
    run.checkpoint(2).symlink_to(run.ckpt / "elsewhere")
    run.checkpoint(3).write_text("a file")
    os.mkfifo(run.checkpoint(4))
    assert [store.newest()[0].step, len(store.newest()[1])] == [1, 3]
    store.save(2, *parts())
    assert run.checkpoints() == [2]
    assert store.newest()[0].step == 2
    assert (run.ckpt / "elsewhere").is_dir()


def test_old_ones_stay_until_the_new_one_has_been_read_back(run, monkeypatch):
    from hpctrain.train import durable

    store = checkpoints(run, keep=1)
    store.save(1, *parts())
    sync = durable.sync

    def lost_on_the_way(directory):
        sync(directory)
        if directory == run.ckpt:  # it has been renamed, and the disk has kept something else
            (run.checkpoint(2) / "optim.safetensors").write_bytes(b"something else")

    monkeypatch.setattr(durable, "sync", lost_on_the_way)
    with pytest.raises(CheckpointError, match=r"optim.safetensors: damaged"):
        store.save(2, *parts())
    assert run.checkpoints() == [1, 2]
    assert store.newest()[0].step == 1
