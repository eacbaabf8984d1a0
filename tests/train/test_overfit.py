"""What `run --overfit` takes out of a model."""

import pytest

from hpctrain.config import schema

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402


def built(name, shape, **args):
    from hpctrain.models.build import build

    return build(schema.Model(name=name, args=args), shape=shape, outputs=3, seed=0)


def assert_draws_until_it_is_off(model, shape, outputs=lambda given: given):
    from hpctrain.train.overfit import without_dropout

    model.train()
    inputs = torch.rand(8, *shape)
    assert not torch.equal(outputs(model(inputs)), outputs(model(inputs)))
    off = without_dropout(model)
    assert torch.equal(outputs(model(inputs)), outputs(model(inputs)))
    assert without_dropout(model) == 0
    return off


def test_a_transformer_draws_nothing_without_dropout():
    model = built("vit-tiny", (1, 8, 8), patch=4, dropout=0.5)
    with torch.no_grad():
        nn.init.normal_(model.last.weight)
    assert assert_draws_until_it_is_off(model, (1, 8, 8)) == 1 + 12 * 4  # the attention of a layer, and three dropouts


def test_neither_do_layers_that_repeat():
    lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5)
    assert assert_draws_until_it_is_off(lstm, (4, 4), lambda given: given[0]) == 1


@pytest.mark.filterwarnings("ignore")  # theirs
def test_paths_of_torchvision_that_are_dropped(library):
    library("torchvision")
    from torchvision.ops import StochasticDepth

    assert assert_draws_until_it_is_off(nn.Sequential(StochasticDepth(0.5, "row")), (4,)) == 1
