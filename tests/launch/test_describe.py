import pytest

from hpctrain import plan as planning
from hpctrain.config.load import load
from hpctrain.launch.describe import describe
from hpctrain.plan import Samples

CONFIG = """
name: mnist
slurm: {nodes: 2, ranks_per_node: 2}
data: {dataset: mnist}
model: {name: cnn}
batch: {global: 128}
optim: {lr: 0.1, base_batch: 64, warmup: 1 epoch, schedule: cosine}
train: {epochs: 3}
"""


MNIST = Samples(train=60000, test=10000, path="/data/mnist")


@pytest.fixture
def described(tmp_path):
    def make(*overrides, samples=MNIST):
        (tmp_path / "c.yaml").write_text(CONFIG)
        loaded = load(tmp_path / "c.yaml", overrides)
        return describe(planning.make(loaded, planning.layout_on_slurm(loaded), samples), loaded.config)

    return make


def test_the_numbers_are_shown_with_what_they_follow_from(described):
    assert described().splitlines() == [
        "  ranks          4 = 2 nodes x 2, cpu, ddp over gloo, by srun",
        "  global batch   128 = 32 per rank x 1 passes x 4 ranks",
        "  learning rate  0.1 asked -> 0.2 used",
        "  samples        60000 train, 10000 test; 15000 per rank and epoch",
        "  steps          469 per epoch, 1407 in all, 469 of warm-up",
        "  precision      fp32",
    ]


def test_a_warm_up_longer_than_the_run_is_said(described):
    assert "100 in all, 469 of warm-up: the run ends before it reaches its rate" in described("train.steps=100")


def test_what_is_not_known_yet_is_said(described):
    assert "unknown until counted" in described(samples=Samples())


def test_what_the_batch_makes_of_the_optimizer_is_said(described):
    lines = described("optim.name=adamw", "optim.scale=sqrt", "optim.base_batch=32", "optim.weight_decay=0.1",
                      "optim.weight_decay_on=weights")  # fmt: skip
    assert "  learning rate  0.1 asked -> 0.2 used" in lines
    assert (
        "  optimizer      adamw, betas (0.9, 0.999) asked -> (0.6, 0.996) used, eps 1e-08 asked -> 5e-09 used" in lines
    )
    assert "  weight decay   0.1 on weights, none on biases and norms" in lines


def test_that_a_run_may_end_early_is_said(described):
    lines = described("data.split.validation=0.1", "train.stop_early.patience=3", samples=MNIST)
    assert "469 per epoch, at most 1407 in all, 469 of warm-up; ends early after 3 evaluations without a lower" in lines
