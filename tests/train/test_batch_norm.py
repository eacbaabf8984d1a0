"""Batch norm over all ranks and over small groups, through whole runs."""

from typing import Literal

import pytest

from hpctrain.config.duration import Duration
from hpctrain.config.schema import Dist
from tests.train.ranks import Job, Ranks, make_config

pytestmark = pytest.mark.torch

NET = "tests.train.nets:normed_images"
FOUR, SYNC = "/ (4 ranks x 1 passes)\n  use ", "model.batch_norm=sync"
TAIL = "batch.tail: batch norm would see fewer than 2 samples in a pass of an epoch's last step:"


def normed(batch_norm, *, samples=240, strategy: Literal["ddp", "horovod"] = "ddp", model=None, **changes):
    """Return a config of 20 steps in float64; with 250 samples each fifth step has fewer than 48."""
    changes = {"batch": {"global_": 48}, "precision": "fp64", **changes}
    return make_config(
        data={"samples": samples},
        model={"name": NET, "args": {}, "batch_norm": batch_norm, **(model or {})},
        train={"steps": 20},
        dist=Dist(strategy=strategy),
        **changes,
    )


def trained(ranks: Ranks, config, size: int):
    job = ranks.start(config, size, run=ranks.run_dir(f"{len(ranks.jobs)}"))
    job.outcome()
    return weights(job)


def weights(job: Job, step=20):
    from safetensors.torch import load_file

    return load_file(job.run.checkpoint(step) / "model.safetensors")


def furthest(one, other):
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.fixture
def strategy(request):
    if request.param == "horovod":
        request.getfixturevalue("horovod")
    return request.param


@pytest.mark.parametrize("samples", [240, 250], ids=["even", "ragged"])
@pytest.mark.parametrize("strategy", ["ddp", "horovod"], indirect=True)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_synchronised_ranks_equal_one_rank_without_accumulation(ranks: Ranks, size, strategy, samples):
    """250 samples leave 10 for the last step: 3, 3, 2 and 2 on four ranks."""
    alone = trained(ranks, normed("local", samples=samples), 1)
    assert furthest(trained(ranks, normed("sync", samples=samples, strategy=strategy), size), alone) < 1e-10
    if size == 2:
        assert furthest(trained(ranks, normed("local", samples=samples), size), alone) > 1e-3, "or this shows nothing"


def test_a_rank_that_has_no_samples_of_its_own_counts_for_nothing(ranks: Ranks):
    """Of two samples in the last step two of four ranks have none."""
    alone = trained(ranks, normed("local", samples=242), 1)
    assert furthest(trained(ranks, normed("sync", samples=242), 4), alone) < 1e-10


def test_with_accumulation_each_pass_has_statistics_of_all_ranks(ranks: Ranks):
    batch = {"global_": 48, "accumulate": 2}
    alone = trained(ranks, normed("local", batch=batch), 1)
    assert furthest(trained(ranks, normed("sync", batch=batch), 2), alone) < 1e-10


def test_a_synchronised_run_resumes_to_the_byte(ranks: Ranks):
    config = normed("sync", samples=250, precision="bf16", checkpoint={"every": Duration(1, "steps"), "keep": 99})
    whole = ranks.start(config, 3, run=ranks.run_dir("whole"))
    whole.outcome()
    run = ranks.run_dir("cut")
    ranks.start(config, 3, run=run, until=7).outcome()
    again = ranks.start(config, 3, run=run)
    again.outcome()
    for step in (7, 8, 20):
        files = [(job.run.checkpoint(step) / "model.safetensors").read_bytes() for job in (whole, again)]
        assert files[0] == files[1], step


def test_small_groups_do_not_know_how_many_ranks_there_are(ranks: Ranks):
    ghost = {"ghost_batch": 6}
    found = [trained(ranks, normed("ghost", model=ghost, samples=264), size) for size in (1, 2, 4)]
    first, *others = (
        {name: value for name, value in each.items() if name.endswith(("weight", "bias"))} for each in found
    )
    for several in others:
        assert furthest(several, first) < 1e-10
    assert furthest(trained(ranks, normed("local", samples=264), 1), found[0]) > 1e-3


@pytest.mark.parametrize(
    ("samples", "size", "batch", "message"),
    [
        (240, 4, 4, f"batch: batch norm would see 1 sample in a pass: 4 samples {FOUR}batch.global=8 or {SYNC}"),
        (241, 1, 48, f"{TAIL} 241 - 5 x 48 = 1 samples / (1 ranks x 1 passes)\n  use batch.tail=drop"),
        (246, 4, 48, f"{TAIL} 246 - 5 x 48 = 6 samples {FOUR}batch.tail=drop or {SYNC}"),
    ],
)
def test_a_single_sample_is_refused_before_the_first_step(ranks: Ranks, samples, size, batch, message):
    job = ranks.start(normed("local", samples=samples, batch={"global_": batch}), size, run=ranks.run_dir())
    for report in job.wait():
        assert (report["error"], report["message"]) == ("UsageError", message)


def test_a_model_without_batch_norm_has_nothing_to_share(ranks: Ranks):
    job = ranks.start(normed("sync", model={"name": "mlp"}), 1, run=ranks.run_dir())
    [report] = job.wait()
    assert report["message"] == "model.batch_norm: sync, but mlp has no batch norm\n  remove model.batch_norm"
