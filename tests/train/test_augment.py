"""Augmented runs: to the byte the same for any ranks with the same micro-batches, and after a resume."""

import pytest

from tests.train.ranks import Job, Ranks, make_config

pytestmark = pytest.mark.torch

OPTIONS = {"crop": "padded", "padding": 1, "flip": True, "jitter": 0.3, "cutout": 2, "label_smoothing": 0.1}
MIXED = {**OPTIONS, "mixup": 0.4, "cutmix": 1.0}


def state(job: Job, step: int) -> tuple[bytes, bytes]:
    path = job.run.checkpoint(step)
    return (path / "model.safetensors").read_bytes(), (path / "optim.safetensors").read_bytes()


def config(augment, **changes):
    from hpctrain.config.datasets import Augment

    return make_config(**{"data": {"augment": Augment(**augment)}, "train": {"steps": 40}, **changes})


@pytest.mark.parametrize("augment", [OPTIONS, MIXED], ids=["samples", "mixed"])
def test_two_ranks_equal_one_rank_with_accumulation_and_a_resumed_run_to_the_byte(ranks: Ranks, augment):
    one = ranks.start(config(augment, batch={"global_": 64, "accumulate": 2}), 1, run=ranks.run_dir("1"))
    two = ranks.start(config(augment, batch={"global_": 64}), 2, run=ranks.run_dir("2"))
    cut = ranks.run_dir("cut")
    assert ranks.start(config(augment, batch={"global_": 64}), 2, run=cut, until=27).outcome()["step"] == 27
    rest = ranks.start(config(augment, batch={"global_": 64, "accumulate": 2}), 1, run=cut)
    for job in (one, two, rest):
        assert job.outcome()["verdict"] == "completed"
    assert state(one, 40) == state(two, 40) == state(rest, 40)
    plain = ranks.start(config({}, batch={"global_": 64}), 2, run=ranks.run_dir("plain"))
    plain.outcome()
    assert state(plain, 40) != state(two, 40)


def test_what_belongs_to_samples_is_the_same_on_any_number_of_ranks(ranks: Ranks):
    import torch
    from safetensors.torch import load

    jobs = [ranks.start(config(OPTIONS, precision="fp64"), size, run=ranks.run_dir(f"{size}")) for size in (1, 3, 4)]
    for job in jobs:
        job.outcome()
    first, *others = (load(state(job, 40)[0]) for job in jobs)
    for other in others:
        for key, value in first.items():
            assert torch.allclose(value, other[key], rtol=0, atol=1e-10), key


def test_a_mixed_run_learns(ranks: Ranks):
    job = ranks.start(config({"mixup": 0.2, "label_smoothing": 0.1}, train={"epochs": 4}), 2, run=ranks.run_dir())
    assert job.outcome()["accuracy"] > 0.8
    # the loss of soft labels stays above their own entropy; right answers are counted by the likelier class
    last = job.metrics("train")[-1]
    assert last["loss"] > 0.3
    assert last["accuracy"] > 0.5
