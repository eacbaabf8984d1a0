"""What a checkpoint must have in common with the run that goes on from it."""

import pytest

from hpctrain.config.datasets import Split
from hpctrain.errors import CheckpointError
from tests.train.ranks import make_config

torch = pytest.importorskip("torch")
from tests.train.saving import checkpoints, parts  # noqa: E402 - needs torch

pytestmark = pytest.mark.torch

OTHER_RUNS = {
    "batch": (
        {"global_batch": 16, "steps_per_epoch": 7},
        (
            "step 5 of step_00000005 is 5 x 8 = 40 samples into the run with the global batch that trained it, but "
            "5 x 16 = 80 with the one that is asked for: samples would be repeated or left out\n"
            "  keep batch.global=8 (other ranks are fine), or start a new run"
        ),
    ),
    "seed": (
        {"seed": 4},
        (
            "RUN/ckpt/step_00000005 was trained with seed 3; seed 4 gives another order of samples\n"
            "  go on with seed=3, or start a new run"
        ),
    ),
    "data": (
        {"train_samples": 96, "steps_per_epoch": 12},
        (
            "step 5 of step_00000005 is of a run with 100 samples in 13 steps per epoch; now there are 96 in 12\n"
            "  go on with the same data.samples and batch.tail, or start a new run"
        ),
    ),
}


@pytest.mark.parametrize("kind", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused_with_the_arithmetic(run, kind):
    changes, message = OTHER_RUNS[kind]
    store = checkpoints(run)
    store.save(5, *parts())
    manifest, _ = store.newest()
    with pytest.raises(CheckpointError) as caught:
        checkpoints(run, **changes).load_here(manifest, *parts())
    assert str(caught.value).replace(str(run.path), "RUN") == message


def test_another_number_of_ranks_may_go_on(run):
    store = checkpoints(run)
    store.save(5, *parts())
    checkpoints(run, ranks=4, ranks_per_node=4).load_here(store.newest()[0], *parts())


def test_another_model_is_refused_with_its_shapes(run):
    store = checkpoints(run)
    store.save(5, *parts())
    with pytest.raises(CheckpointError) as caught:
        store.load_here(store.newest()[0], *parts(width=3))
    assert "holds another model than the config's: 8 differences" in str(caught.value)
    assert "0.weight: 4 x 4 float32 in the checkpoint, 3 x 3 float32 in the model" in str(caught.value)


def test_another_optimizer_is_refused(run):
    store = checkpoints(run)
    store.save(5, *parts())
    with pytest.raises(CheckpointError, match=r"holds the state of SGD over .* optimizer is Adam over"):
        store.load_here(store.newest()[0], *parts(kind=torch.optim.Adam))


POLICIES = {
    "batch.tail": ({"batch": {"tail": "drop"}}, "keep", "drop"),
    "data.shuffle": ({"data": {"shuffle": "blocks"}}, "full", "blocks"),
    "data.block": ({"data": {"block": 16}}, "256", "16"),
    "data.dataset": ({"data": {"dataset": "mnist"}}, "digits", "mnist"),
    "data.split.validation": ({"data": {"split": Split(validation=0.25)}}, "0.0", "0.25"),
}


@pytest.mark.parametrize("key", POLICIES)
def test_another_data_policy_is_refused_with_what_to_type(run, key):
    changes, was, now = POLICIES[key]
    store = checkpoints(run)
    store.save(5, *parts())
    with pytest.raises(CheckpointError) as caught:
        checkpoints(run, config=make_config(**changes)).load_here(store.newest()[0], *parts())
    assert str(caught.value) == (
        f"{run.checkpoint(5)} was trained with {key} {was}; {now} gives another order of samples\n"
        f"  go on with {key}={was}, or start a new run"
    )


def test_data_that_changed_is_refused(run):
    store = checkpoints(run, data_digest="a")
    store.save(5, *parts())
    with pytest.raises(CheckpointError, match="was trained on other data: files were added, removed or renamed"):
        checkpoints(run, data_digest="b").load_here(store.newest()[0], *parts())
