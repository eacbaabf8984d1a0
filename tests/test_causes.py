"""The vocabulary is one: what has a budget is what the config can give one to."""

from typing import get_args

from hpctrain.causes import CAUSES, Name, advice, meaning
from hpctrain.config.schema import Restart


def test_a_cause_has_a_budget_exactly_if_the_config_has_a_field_for_it():
    assert {name for name, cause in CAUSES.items() if cause.has_budget} == set(Restart.__struct_fields__)


def test_what_is_the_users_to_mend_has_no_budget():
    assert not any(CAUSES[name].has_budget for name in ("error", "data_error", "disk_full", "cancelled", "no_progress"))


def test_every_name_has_a_meaning_and_an_advice():
    assert set(get_args(Name)) == set(CAUSES)
    for name in CAUSES:
        assert meaning(name)
        assert "/runs/net" in advice(name, "/runs/net") or name == "rank_killed"
        assert "{" not in advice(name, "/runs/net")


def test_what_is_no_cause_has_no_meaning_and_an_advice_nevertheless():
    assert meaning("sunspots") == meaning(None) == ""
    assert advice(None, "/r") == "hpctrain resume /r goes on from the last checkpoint"
