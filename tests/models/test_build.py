import sys

import msgspec
import pytest

from hpctrain.config import schema
from hpctrain.errors import JobError, UsageError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

SHAPE = (1, 28, 28)


def build(name, seed=0, shape=SHAPE, classes=10, **args):
    from hpctrain.models.build import build as build_model

    return build_model(schema.Model(name=name, args=args), shape=shape, outputs=classes, seed=seed)


def test_the_names_are_those_of_the_config():
    from hpctrain.models.build import BUILDERS

    assert BUILDERS.keys() == schema.MODEL_ARGS.keys()


@pytest.mark.parametrize(("name", "args"), [
    *[(name, {}) for name in schema.MODEL_ARGS],
    ("mlp", {"batch_norm": True}), ("cnn", {"norm": "after"}), ("inception", {"auxiliary": False}),
])  # fmt: skip
def test_the_plan_knows_which_models_have_batch_norms(name, args):
    from hpctrain.config.models import has_batch_norm
    from hpctrain.models import batch_norm

    model = build(name, shape=(3, 32, 32), **args)
    assert has_batch_norm(schema.Model(name=name, args=args)) == bool(batch_norm.norms(model))


@pytest.mark.parametrize(("name", "args", "weights"), [
    ("mlp", {}, 784 * 128 + 128 + 128 * 10 + 10),
    ("mlp", {"hidden": []}, 784 * 10 + 10),
    ("mlp", {"hidden": [32, 16]}, 784 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
    ("cnn", {}, 9 * 32 + 32 + 9 * 32 * 64 + 64 + 64 * 49 * 128 + 128 + 1290),
    ("cnn", {"channels": [4], "hidden": 8}, 9 * 4 + 4 + 4 * 196 * 8 + 8 + 90),
])  # fmt: skip
def test_models_have_the_layers_they_are_asked_for(name, args, weights):
    model = build(name, **args)
    assert sum(part.numel() for part in model.parameters()) == weights
    assert model(torch.zeros(3, *SHAPE)).shape == (3, 10)


@pytest.mark.parametrize(("activation", "expected"), [("relu", [0.0, 2.0]), ("tanh", [-0.9640, 0.9640])])
def test_a_table_goes_through_dense_layers_and_their_activation(activation, expected):
    model = build("mlp", shape=(7,), classes=1, hidden=[2], activation=activation)
    assert [tuple(part.shape) for part in model.parameters()] == [(2, 7), (2,), (1, 2), (1,)]
    assert model(torch.zeros(5, 7)).shape == (5, 1)
    assert model[2](torch.tensor([-2.0, 2.0])).tolist() == pytest.approx(expected, abs=1e-4)


def test_pooling_before_relu_changes_nothing():
    from torch import nn

    ours = build("cnn", channels=[4], hidden=8)
    conv, pool, relu, *rest = ours
    assert (type(pool), type(relu)) == (nn.MaxPool2d, nn.ReLU)
    images = torch.randn(5, *SHAPE)
    for order in ([conv, pool, relu], [conv, relu, pool]):
        ours.zero_grad()
        out = nn.Sequential(*order, *rest)(images)
        out.square().sum().backward()
        found = (out, [part.grad.clone() for part in ours.parameters()])
        if order[1] is pool:
            first = found
    assert first[0].equal(found[0])
    assert all(one.equal(other) for one, other in zip(first[1], found[1], strict=True))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_initial_weights_follow_from_the_seed_alone(name):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = build(name, seed=5).state_dict()
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(2)
    two, other = build(name, seed=5).state_dict(), build(name, seed=6).state_dict()
    assert all(one[key].equal(two[key]) for key in one)
    assert not any(one[key].equal(other[key]) for key in one)


def test_a_cnn_too_deep_for_its_images_is_refused():
    with pytest.raises(UsageError) as caught:
        build("cnn", shape=(1, 8, 8), channels=[4, 4, 4, 4])
    assert str(caught.value) == (
        "model.args.channels: 4 blocks leave nothing of 8 pixels\n  give at most 3 for this dataset"
    )


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A module of the user's own, importable as `mynet`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "mynet.py").write_text(text)
        sys.modules.pop("mynet", None)
        return tmp_path / "mynet.py"

    yield write
    sys.modules.pop("mynet", None)


def test_the_users_own_model_gets_its_args(users):
    users("from torch import nn\n\ndef build(width, bias=True):\n    return nn.Linear(width, 2, bias=bias)\n")
    model = build("mynet:build", width=3, bias=False)
    assert model.weight.shape == (2, 3)
    assert model.bias is None
    assert model.weight.equal(build("mynet:build", width=3, bias=False).weight)


LAZY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, in_training):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Dropout(0.5))
        self.last, self.in_training = nn.LazyLinear(10), in_training

    def forward(self, images):
        return self.last(self.body(images)) if self.training or not self.in_training else self.body(images)

def build(in_training=False):
    return Net(in_training)
"""


def test_lazy_layers_get_their_weights_from_the_seed_before_anybody_sorts_them(users):
    from hpctrain.config.optim import Optim
    from hpctrain.train.optim import groups

    users(LAZY)
    one, two, other = (build("mynet:build", seed=seed) for seed in (5, 5, 6))
    for key in ("body.1.weight", "last.weight"):
        assert one.state_dict()[key].equal(two.state_dict()[key])
        assert not one.state_dict()[key].equal(other.state_dict()[key])
    assert one.training
    assert one.body[2].running_mean.tolist() == [0] * 4
    decayed, spared = groups(Optim(lr=0.1, weight_decay=0.1, weight_decay_on="weights"), one, "mynet:build")
    assert [tuple(part.shape) for part in decayed["params"]] == [(4, 784), (10, 4)]
    assert [tuple(part.shape) for part in spared["params"]] == [(4,), (4,), (4,), (10,)]


def test_lazy_layers_that_no_evaluation_reaches_are_refused(users):
    users(LAZY)
    with pytest.raises(JobError) as caught:
        build("mynet:build", in_training=True)
    assert str(caught.value) == (
        "model.name: mynet:build has lazy layers that get no shape in evaluation: last.weight, last.bias\n"
        "  give these layers their sizes"
    )
    with pytest.raises(JobError, match=r"mynet:build failed on a batch of shape \(2,\): IndexError"):
        build("mynet:build", shape=())


def test_a_missing_module_is_named():
    with pytest.raises(UsageError, match=r"there is no module 'nosuchnet' \(looked for 'nosuchnet.deep' on sys.path\)"):
        build("nosuchnet.deep:build")


def test_a_missing_function_shows_what_there_is(users):
    path = users("def make():\n    pass\n\ndef other():\n    pass\n")
    with pytest.raises(UsageError) as caught:
        build("mynet:build")
    assert str(caught.value) == f"model.name: 'build' does not exist in {path}\n  its functions are: make, other"


def test_an_import_that_the_users_module_lacks_is_told_apart(users):
    path = users("import notinstalled_xyz\n")
    with pytest.raises(UsageError) as caught:
        build("mynet:build")
    assert str(caught.value).startswith("model.name: mynet imports 'notinstalled_xyz', which is not installed\n")
    assert f'File "{path}", line 1' in str(caught.value)


def test_an_exception_in_the_users_function_shows_the_users_line(users):
    path = users("def build(width):\n    return 1 / width\n")
    with pytest.raises(JobError) as caught:
        build("mynet:build", width=0)
    assert str(caught.value).startswith("model.name: mynet:build(width=0) raised ZeroDivisionError: division by zero\n")
    assert str(caught.value).endswith("\n  correct the function or model.args")
    assert f'File "{path}", line 2, in build' in str(caught.value)


def test_wrong_arguments_are_told(users):
    users("def build(width):\n    return None\n")
    with pytest.raises(JobError, match="unexpected keyword argument 'depth'"):
        build("mynet:build", depth=3)


def test_what_is_no_module_is_refused(users):
    path = users("def build():\n    return [1]\n")
    with pytest.raises(JobError) as caught:
        build("mynet:build")
    assert str(caught.value) == (
        "model.name: mynet:build() returned builtins.list, not a torch.nn.Module\n"
        f"  let it return the module ({path}:1)"
    )


def test_every_optimizer_of_the_config_exists():
    from hpctrain.train.optim import BUILDERS

    (names,) = {field.type for field in msgspec.structs.fields(schema.Optim) if field.name == "name"}
    assert set(names.__args__) == BUILDERS.keys()
