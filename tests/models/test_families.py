"""The models of the papers: published numbers of weights, the shapes they are meant for, and that they learn."""

import pytest

from hpctrain.config import schema
from hpctrain.errors import UsageError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

SMALL = {
    "linear": ((6,), {}),
    "logistic": ((6,), {}),
    "mlp": ((1, 8, 8), {"hidden": [16, 8], "activation": "swish", "batch_norm": True, "dropout": 0.1}),
    "cnn": ((1, 8, 8), {"channels": [4, 8], "norm": "before", "hidden": 16, "dropout": 0.1, "kernel": 5}),
    "lenet": ((1, 28, 28), {}),
    "resnet20": ((3, 16, 16), {}),
    "resnet18": ((3, 16, 16), {"stem": "small"}),
    "inception": ((3, 32, 32), {}),
    "vit-tiny": ((3, 16, 16), {"patch": 8}),
}


def build(name, shape, outputs=10, seed=0, **args):
    from hpctrain.models.build import build as build_model

    return build_model(schema.Model(name=name, args=args), shape=shape, outputs=outputs, seed=seed)


@pytest.fixture(autouse=True)
def one_thread():
    """Small layers gain nothing by more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(model):
    return sum(part.numel() for part in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "args", "count"),
    [
        ("lenet", (1, 28, 28), 10, {}, 61_706),  # the variant whose third layer sees all maps, pooling without weights
        ("lenet", (1, 32, 32), 10, {}, 61_706),
        ("resnet20", (3, 32, 32), 10, {}, 269_722),  # He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million
        ("resnet32", (3, 32, 32), 10, {}, 464_154),
        ("resnet44", (3, 32, 32), 10, {}, 658_586),
        ("resnet56", (3, 32, 32), 10, {}, 853_018),
        ("resnet110", (3, 32, 32), 10, {}, 1_727_962),
        ("vit-tiny", (3, 224, 224), 1000, {}, 5_717_416),  # Touvron et al. 2021, table 1: 5 and 22 million
        ("vit-small", (3, 224, 224), 1000, {}, 22_050_664),
        ("inception", (3, 224, 224), 1000, {"auxiliary": False}, 7_005_832),  # Szegedy et al. 2015: about 7 million
        ("inception", (3, 224, 224), 1000, {}, 13_385_816),
    ],
)
def test_they_have_the_published_number_of_weights(name, shape, outputs, args, count):
    assert weights(build(name, shape, outputs, **args)) == count


@pytest.mark.parametrize("name", SMALL)
def test_a_model_learns_a_small_batch_and_evaluates_to_one_output(name):
    from hpctrain.train.objective import Objective

    shape, args = SMALL[name]
    outputs = 1 if name in {"linear", "logistic"} else 10
    model = build(name, shape, outputs, **args)
    task = {"linear": "number"}.get(name, "classes")
    loss = "binary_cross_entropy" if name == "logistic" else "auto"
    objective = Objective(task, classes=2 if name == "logistic" else 10, loss=loss)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, *shape, generator=generator)
    labels = torch.randint(2 if outputs == 1 else 10, (8,), generator=generator)
    targets = labels.float() if task == "number" else labels
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02 if name in {"linear", "vit-tiny"} else 0.1, momentum=0.9)
    history = []
    for _ in range(6):
        optimizer.zero_grad()
        heads = objective.heads(model(inputs), 8, torch.float32)
        (objective.total(heads, targets) / 8).backward()
        assert all(part.grad is not None for part in model.parameters())
        optimizer.step()
        history.append(objective.loss(heads[0], targets).item())
    assert min(history[-2:]) < 0.95 * history[0]
    assert model.eval()(inputs).shape == (8, outputs)


@pytest.mark.parametrize("name", SMALL)
def test_weights_follow_from_the_seed_alone_and_layers_do_not_start_alike(name):
    shape, args = SMALL[name]
    torch.manual_seed(1)
    one = build(name, shape, seed=5, **args).state_dict()
    torch.manual_seed(2)
    two, other = build(name, shape, seed=5, **args).state_dict(), build(name, shape, seed=6, **args).state_dict()
    assert all(one[key].equal(two[key]) for key in one)
    drawn = [value for key, value in one.items() if value.ndim > 1]
    assert not any(one[key].equal(other[key]) for key in one if one[key].ndim > 1)
    assert not any(a.shape == b.shape and a.equal(b) for n, a in enumerate(drawn) for b in drawn[n + 1 :])


def test_the_names_of_layers_are_those_of_the_config():
    from typing import get_args

    from hpctrain.config import models
    from hpctrain.models import layers

    assert set(layers.ACTIVATIONS) == set(get_args(models.Activation))
    assert {"default", *layers._INITS} == set(get_args(models.Init))


@pytest.mark.parametrize("activation", ["relu", "prelu", "gelu", "swish", "hardtanh"])
@pytest.mark.parametrize("pool", ["max", "average", "none"])
def test_a_cnn_is_convolution_activation_pooling_whatever_the_order_it_computes(activation, pool):
    model = build("cnn", (2, 8, 8), channels=[5], hidden=4, activation=activation, pool=pool, norm="after")
    convolution, act = model[0], next(part for part in model if type(part) is type(_activation(activation)))
    images = torch.randn(3, 2, 8, 8)
    after = act(convolution(images))
    pools = {"max": torch.nn.MaxPool2d(2), "average": torch.nn.AvgPool2d(2), "none": torch.nn.Identity()}
    expected = torch.nn.BatchNorm2d(5)(pools[pool](after))
    head = next(n for n, part in enumerate(model) if isinstance(part, torch.nn.Flatten))
    assert torch.allclose(model[:head](images), expected, atol=1e-6)


def _activation(name):
    from hpctrain.models.layers import ACTIVATIONS

    return ACTIVATIONS[name]()


def test_a_cnn_has_what_it_is_asked_for():
    args = {"kernel": 5, "channels": [16, 32], "hidden": 64, "dense": [20], "norm": "after", "norm_blocks": [2]}
    model = build("cnn", (1, 28, 28), **args, dropout_blocks=0.25, dropout=0.5)
    kinds = [type(part).__name__ for part in model]
    assert kinds == [
        "Conv2d", "MaxPool2d", "ReLU", "Dropout", "Conv2d", "MaxPool2d", "ReLU", "BatchNorm2d", "Dropout",
        "Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip
    assert (model[0].kernel_size, model[0].padding, model[10].in_features) == ((5, 5), (2, 2), 7 * 7 * 32)


@pytest.mark.parametrize(("kernel", "padding", "left"), [(5, 0, 4), (5, 1, 5), (4, 1, 6), (3, 1, 7), (3, 2, 8)])
def test_a_margin_decides_what_a_convolution_leaves(kernel, padding, left):
    model = build("cnn", (1, 28, 28), channels=[4, 8], kernel=kernel, padding=padding, hidden=16)
    assert model[7].in_features == left * left * 8
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_an_mlp_has_what_it_is_asked_for():
    model = build("mlp", (4,), hidden=[8, 6], activation="selu", batch_norm=True, dropout=0.5, dropout_input=0.2)
    kinds = [type(part).__name__ for part in model]
    hidden = ["Linear", "BatchNorm1d", "SELU", "Dropout"]
    assert kinds == ["Flatten", "Dropout", *hidden, *hidden, "Linear"]
    assert [part.p for part in model if isinstance(part, torch.nn.Dropout)] == [0.2, 0.5, 0.5]


def test_weights_start_as_each_initialisation_says():
    def first(init, **args):
        model = build("mlp", (600,), hidden=[400], init=init, **args)
        assert model[1].bias.eq(0).all()
        return model[1].weight.detach()

    assert first("constant", init_value=0.25).eq(0.25).all()
    assert first("constant").eq(0.01).all()
    assert first("normal", init_value=0.3).std().item() == pytest.approx(0.3, rel=0.02)
    assert first("glorot").abs().max().item() == pytest.approx((6 / 1000) ** 0.5, rel=0.01)
    assert first("he").std().item() == pytest.approx((2 / 600) ** 0.5, rel=0.02)
    rows = first("orthogonal")
    assert torch.allclose(rows @ rows.T, torch.eye(400), atol=1e-5)


def test_equal_weights_never_part_which_is_why_a_constant_start_fails():
    model = build("mlp", (3,), outputs=1, hidden=[4], activation="tanh", init="constant", init_value=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.randn(8, 3)) - 1).square().mean().backward()
        optimizer.step()
    assert model[1].weight.eq(model[1].weight[0]).all()


def test_the_auxiliary_classifiers_speak_in_training_alone():
    model = build("inception", (3, 32, 32))
    assert [tuple(part.shape) for part in model(torch.randn(2, 3, 32, 32))] == [(2, 10)] * 3
    assert model.auxiliary_weight == 0.3
    assert tuple(model.eval()(torch.randn(2, 3, 32, 32)).shape) == (2, 10)
    assert tuple(build("inception", (3, 32, 32), auxiliary=False)(torch.randn(2, 3, 32, 32)).shape) == (2, 10)


def test_a_small_stem_keeps_height_and_width():
    small, large = (build("resnet18", (3, 32, 32), stem=stem) for stem in ("small", "large"))
    images = torch.randn(2, 3, 32, 32)
    assert small[:3](images).shape == (2, 64, 32, 32)
    assert large[:4](images).shape == (2, 64, 8, 8)
    assert weights(small) == 11_173_962


def test_blocks_for_small_pictures_start_as_identities_and_halve_by_zeros():
    from hpctrain.models.cifar_resnet import _Block

    blocks = [part.eval() for part in build("resnet20", (3, 32, 32)).modules() if isinstance(part, _Block)]
    assert len(blocks) == 9
    images = torch.rand(2, 16, 8, 8)
    assert blocks[0](images).equal(images)
    halved = blocks[3](images)
    assert halved[:, 8:24].equal(images[:, :, ::2, ::2])
    assert halved[:, :8].eq(0).all()
    assert halved[:, 24:].eq(0).all()


@pytest.mark.parametrize(
    ("name", "shape", "args", "message"),
    [
        ("lenet", (1, 8, 8), {}, "model.name: lenet leaves nothing of 8 x 8 pixels\n  use images of at least 12 x 12"),
        ("vit-tiny", (3, 28, 28), {}, "patches of 16 do not fill images of 28 x 28\n  give one of 2, 4, 7, 14, 28"),
        ("resnet20", (4,), {}, "resnet20 needs images (C, H, W), and the inputs have the shape (4,)"),
        ("cnn", (4,), {}, "cnn needs images (C, H, W), and the inputs have the shape (4,)\n  use model.name=mlp"),
    ],
)
def test_inputs_that_a_model_cannot_take_are_refused(name, shape, args, message):
    with pytest.raises(UsageError) as caught:
        build(name, shape, **args)
    assert message in str(caught.value)


def test_what_draws_is_known():
    from hpctrain.models.build import draws

    def found(name, shape=(3, 32, 32), **args):
        return draws(build(name, shape, **args), name)

    assert [found("mlp"), found("cnn"), found("resnet20"), found("vit-tiny", patch=8)] == [False] * 4
    assert [found("mlp", dropout=0.1), found("cnn", dropout_blocks=0.1), found("inception")] == [True] * 3
    assert found("vit-tiny", patch=8, dropout=0.1)
    assert draws(torch.nn.Linear(1, 1), "pkg.mod:fn")
