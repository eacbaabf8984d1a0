import pytest

from hpctrain.config import schema

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def build(name, shape=(3, 224, 224), classes=1000, **args):
    from hpctrain.models.build import build as build_model

    return build_model(schema.Model(name=name, args=args), shape=shape, outputs=classes, seed=0)


# weights with 1,000 classes, as torchvision documents its models of the same names
WEIGHTS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160}


@pytest.mark.parametrize("name", WEIGHTS)
def test_they_have_the_published_number_of_weights(name):
    assert sum(part.numel() for part in build(name).parameters()) == WEIGHTS[name]


@pytest.mark.parametrize(("name", "side", "channels"), [("resnet18", 64, 3), ("resnet50", 33, 1)])
def test_they_take_pictures_of_other_sizes(name, side, channels):
    model = build(name, shape=(channels, side, side), classes=7)
    assert model(torch.randn(2, channels, side, side)).shape == (2, 7)


def test_blocks_start_as_identities_unless_told_otherwise():
    from hpctrain.models.resnet import _Block

    model, plain = build("resnet18", classes=5), build("resnet18", classes=5, zero_init=False)
    blocks = [part for part in model.modules() if isinstance(part, _Block)]
    assert len(blocks) == 8
    images = torch.rand(2, 64, 8, 8)
    assert blocks[0].eval()(images).equal(images)
    assert all(block.body[-1].weight.eq(0).all() for block in blocks)
    assert not any(block.body[-1].weight.eq(0).any() for block in plain.modules() if isinstance(block, _Block))


def test_convolutions_start_by_their_fan_out():
    weight = build("resnet50")[0].weight
    assert weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
