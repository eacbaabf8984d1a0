import pytest

from tests.train.ranks import Ranks, make_config

pytestmark = pytest.mark.torch


def test_digits_are_learnt_on_two_ranks(ranks: Ranks):
    job = ranks.start(make_config(), 2, run=ranks.run_dir())
    outcome = job.outcome()
    assert outcome["verdict"] == "completed"
    assert outcome["accuracy"] > 0.8
