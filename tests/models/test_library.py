"""Models of torchvision and timm, which tests/run.sh installs; what is refused needs neither."""

import pytest

from hpctrain.config import schema
from hpctrain.errors import JobError, UsageError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def build(name, shape=(3, 64, 64), outputs=7, seed=0, **args):
    from hpctrain.models.build import build as build_model

    return build_model(schema.Model(name=name, args=args), shape=shape, outputs=outputs, seed=seed)


@pytest.mark.filterwarnings("ignore")  # theirs, of what will change in later versions
@pytest.mark.parametrize(
    ("name", "shape", "args", "outputs"),
    [
        ("torchvision:resnet18", (3, 64, 64), {}, 1),
        ("torchvision:googlenet", (3, 64, 64), {"init_weights": False}, 3),
        ("timm:resnet18", (1, 28, 28), {}, 1),
        ("timm:vit_tiny_patch16_224", (3, 64, 64), {"img_size": 64}, 1),
    ],
)
def test_they_are_built_for_the_data_from_the_seed_alone(library, name, shape, args, outputs):
    from hpctrain.models.build import draws

    library(name.partition(":")[0])
    torch.manual_seed(1)
    one = build(name, shape, **args)
    torch.manual_seed(2)
    two, other = build(name, shape, **args).state_dict(), build(name, shape, seed=1, **args).state_dict()
    assert all(value.equal(two[key]) for key, value in one.state_dict().items())
    assert not all(value.equal(other[key]) for key, value in one.state_dict().items())
    heads = one(torch.randn(2, *shape))
    heads = heads if isinstance(heads, tuple) else (heads,)
    assert [tuple(head.shape) for head in heads] == [(2, 7)] * outputs
    assert one.eval()(torch.randn(2, *shape)).shape == (2, 7)
    assert draws(one, name)


def test_a_library_that_is_not_there_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError) as caught:
        build("timm:resnet18")
    assert str(caught.value) == (
        "model.name: timm cannot be loaded: there is no module 'timm'\n"
        "  install it into the job's Python (env.venv): python -m pip install --no-deps timm"
    )


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_not_there_or_takes_other_pictures_is_refused(library):
    library("torchvision")
    with pytest.raises(UsageError, match=r"torchvision has no model 'resnet19'\n  did you mean resnet1"):
        build("torchvision:resnet19")
    with pytest.raises(UsageError) as caught:
        build("torchvision:fasterrcnn_resnet50_fpn")
    assert str(caught.value).startswith(
        "model.name: torchvision has no model that classifies images by the name of 'fasterrcnn_resnet50_fpn'\n"
    )
    for name, near in (("deeplabv3_resnet50", "resnet50"), ("quantized_resnet18", "resnet18")):
        with pytest.raises(UsageError, match=rf"{name}'\n  did you mean .*{near}"):
            build(f"torchvision:{name}")
    with pytest.raises(UsageError) as caught:
        build("torchvision:resnet18", (1, 28, 28))
    assert str(caught.value) == (
        "model.name: torchvision:resnet18 takes pictures of 3 channels, and the data have 1\n"
        "  use data.args.channels=rgb, or timm:resnet18, which takes any number"
    )
    with pytest.raises(JobError, match=r"torchvision:resnet18\(depth=3\) raised TypeError(.|\n)*correct model.args"):
        build("torchvision:resnet18", depth=3)
