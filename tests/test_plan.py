import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctrain import plan as planning
from hpctrain.config.document import Place
from hpctrain.config.load import Loaded, load
from hpctrain.config.schema import Batch, Config, Data, Model, Optim, Train
from hpctrain.errors import ConfigError
from hpctrain.plan import Layout, Samples

MNIST = """
name: mnist
slurm: {nodes: 2, ranks_per_node: 2}
data: {dataset: mnist}
model: {name: cnn}
batch: {global: 128}
optim: {lr: 0.1, base_batch: 64, warmup: 1 epoch, schedule: cosine}
train: {epochs: 3}
"""
SIXTY = Samples(train=60000, test=10000, path="/data/mnist")


@pytest.fixture
def plan_of(tmp_path):
    def make(*overrides, samples=SIXTY, layout=None, text=MNIST):
        (tmp_path / "c.yaml").write_text(text)
        loaded = load(tmp_path / "c.yaml", overrides)
        return planning.make(loaded, layout or planning.layout_on_slurm(loaded), samples)

    return make


def test_the_numbers_of_a_plan(plan_of):
    plan = plan_of()
    assert (plan.ranks, plan.nodes, plan.ranks_per_node) == (4, 2, 2)
    assert (plan.global_batch, plan.batch_per_rank, plan.accumulate) == (128, 32, 1)
    assert (plan.lr_asked, plan.lr_used) == (0.1, 0.2)
    assert (plan.steps_per_epoch, plan.total_steps, plan.warmup_steps) == (469, 1407, 469)
    assert (plan.samples_per_rank, plan.checkpoint_every_steps) == (15000, 469)
    assert (plan.device, plan.backend) == ("cpu", "gloo")


def test_a_batch_per_rank_grows_with_the_ranks_and_the_rate_with_it(plan_of):
    plan = plan_of("batch.per_rank=32", "batch.accumulate=2", "slurm.nodes=4")
    assert (plan.global_batch, plan.lr_used) == (32 * 2 * 8, pytest.approx(0.8))


def test_the_tail_may_be_dropped(plan_of):
    plan = plan_of("batch.tail=drop")
    assert (plan.steps_per_epoch, plan.samples_per_rank) == (468, 468 * 32)


def test_gpus_give_ranks_device_and_backend(plan_of):
    plan = plan_of("slurm={nodes: 2, gpus_per_node: 4}")
    assert (plan.ranks, plan.device, plan.backend) == (8, "cuda", "nccl")
    assert plan_of("slurm={nodes: 2, gpus_per_node: 4}", "device=cpu").backend == "gloo"


def test_tf32_is_for_gpus(plan_of):
    with pytest.raises(ConfigError, match=r"tf32 is a format of GPUs.*use fp32 or bf16, or device: cuda"):
        plan_of("precision=tf32")
    assert plan_of("precision=tf32", "slurm={nodes: 2, gpus_per_node: 4}").precision == "tf32"


def test_uncounted_samples_leave_the_steps_open(plan_of):
    plan = plan_of(samples=Samples())
    assert (plan.total_steps, plan.global_batch) == (None, 128)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["slurm.nodes=3"],
            "c.yaml:6:17: a global batch of 128 cannot be split evenly over 6 ranks x 1 passes; use batch.global=126",
        ),
        (["batch.global=2"], "use batch.global=4"),
        (["dist.ranks=3"], "command line: dist.ranks=3: 3 ranks are asked for, but slurm gives 2 nodes x 2 = 4"),
        (["dist.backend=nccl"], "nccl needs GPUs, but the device is cpu"),
        (["slurm={nodes: 1, gpus_per_node: 2, ranks_per_node: 4}"], "4 ranks share 2 GPUs of a node"),
        (["batch={global: 60004, tail: drop}"], "is larger than the 60000 training samples, and tail: drop leaves"),
    ],
)
def test_numbers_that_do_not_fit_are_named_with_their_place(plan_of, overrides, message):
    with pytest.raises(ConfigError) as caught:
        plan_of(*overrides)
    assert message in str(caught.value)


def test_a_command_needs_no_numbers(plan_of):
    plan = plan_of(text="name: a\ncommand: [python, x.py]\n", samples=Samples())
    assert (plan.ranks, plan.global_batch, plan.total_steps) == (1, None, None)


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.integers(1, 64), st.integers(1, 10**7), st.booleans()
)
def test_every_sample_of_an_epoch_is_in_exactly_one_step(nodes, per_node, accumulate, per_rank, samples, drop):
    loaded = loaded_of(per_rank=per_rank, accumulate=accumulate, tail="drop" if drop else "keep")
    layout = Layout(nodes=nodes, ranks_per_node=per_node)
    try:
        plan = planning.make(loaded, layout, Samples(train=samples, test=1))
    except ConfigError:
        assert drop
        assert samples < nodes * per_node * accumulate * per_rank
        return
    assert plan.global_batch == nodes * per_node * accumulate * per_rank
    full, rest = divmod(samples, plan.global_batch)
    assert plan.steps_per_epoch == full + (0 if drop else rest > 0)


def loaded_of(**batch):
    config = Config(
        name="a",
        data=Data(dataset="mnist"),
        model=Model(name="mlp"),
        batch=Batch(**batch),
        optim=Optim(lr=0.1),
        train=Train(epochs=1),
    )
    return Loaded(config, {}, Place("c.yaml", 1, 1))


def test_lengths_of_a_schedule_become_steps(plan_of):
    plan = plan_of("optim.schedule=multistep", "optim.milestones=[1 epoch, 1000 steps, 90 %]")
    assert plan.milestone_steps == (469, 1000, 1266)
    assert plan_of("optim.schedule=linear", "optim.decay_over=2 epochs").decay_over_steps == 938
    assert plan_of("optim.schedule=restarts", "optim.period=1 epoch").period_steps == 469
    assert plan_of("optim.schedule=onecycle", "optim.warmup=0 steps", "optim.rise=50 %").rise_steps == 704


def test_the_square_root_rule_has_a_largest_batch(plan_of):
    scaled = ["optim.scale=sqrt", "optim.base_batch=16"]
    plan = plan_of(*scaled, "optim.name=adam")
    assert (plan.lr_used, plan.betas_used) == (pytest.approx(0.1 * 8**0.5), pytest.approx((0.2, 0.992)))
    assert plan_of(*scaled, "optim.name=lamb").betas_used == (0.9, 0.999)
    with pytest.raises(ConfigError) as caught:
        plan_of(*scaled, "optim.name=adam", "batch.global=256")
    message = "sqrt makes 1 - beta larger than 1 for a global batch of 256; it goes up to 160"
    assert caught.value.problems == (f"command line: optim.scale=sqrt: {message}, else use scale: linear or none",)


def test_a_smoothing_of_0_has_no_largest_batch_but_its_base(plan_of):
    scaled = ["optim.scale=sqrt", "optim.base_batch=64", "optim.name=rmsprop", "optim.alpha=0"]
    assert plan_of(*scaled, "batch.global=64").alpha_used == 0
    with pytest.raises(ConfigError, match="for a global batch of 128; it goes up to 64"):
        plan_of(*scaled, "batch.global=128")


def test_what_falls_ends_after_its_warm_up(plan_of):
    with pytest.raises(
        ConfigError, match=r"optim\.decay_over.*: step 5 is not after the warm-up of 10 steps; give more"
    ):
        plan_of("optim.schedule=cosine", "optim.warmup=10 steps", "optim.decay_over=5 steps")


def test_groups_of_a_ghost_norm_divide_the_last_batch_too_unless_no_step_comes_that_far(plan_of):
    ghost = ["model.name=cnn", "model.args={norm: before}", "model.batch_norm=ghost",
             "batch.global=128"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"do not divide the passes of an epoch's last step: 60000 - 468 x 128 = 96"):
        plan_of(*ghost)
    plan_of(*ghost, "batch.tail=drop")
    plan_of(*ghost, "train.steps=468")
    plan_of(*ghost, "model.ghost_batch=8")


def test_one_cycle_must_have_a_way_down(plan_of):
    with pytest.raises(ConfigError) as caught:
        plan_of("optim.schedule=onecycle", "optim.warmup=0 steps", "optim.rise=3 epochs")
    assert caught.value.problems == (
        "command line: optim.rise=3 epochs: 1407 of 1407 steps leave none for the way down; use fewer",
    )
