import math

import pytest

from hpctrain.config.duration import Duration
from hpctrain.config.scalars import LARGEST, is_text, resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("NULL", None),
        ("true", True), ("True", True), ("FALSE", False),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"), ("nUll", "nUll"),
        ("0", 0), ("-7", -7), ("+7", 7), ("010", 10), ("0o17", 15), ("0x1F", 31), ("0b11", "0b11"),
        ("1_000", "1_000"), ("12:00:00", "12:00:00"), ("30:00", "30:00"), ("2024-01-02", "2024-01-02"),
        ("1e3", 1000.0), ("1e-3", 0.001), ("1.", 1.0), (".5", 0.5), ("-2.5E+2", -250.0), ("+.inf", math.inf),
        ("-.INF", -math.inf), ("1e400", math.inf), (".", "."), ("e3", "e3"), ("1e", "1e"), ("- 1", "- 1"), ("1 ", "1 "),
        ("0x", "0x"), ("\u0661", "\u0661"), ("1\n", "1\n"), ("inf", "inf"), ("nan", "nan"), ("=", "="), ("<<", "<<"),
        (str(LARGEST), LARGEST), (str(-LARGEST), -LARGEST),
    ],
)  # fmt: skip
def test_a_plain_scalar_is_what_yaml_1_2_says(text, value):
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)
    assert is_text(text) == isinstance(value, str)


def test_not_a_number_is_read():
    assert str(resolve(".nan")) == "nan"


@pytest.mark.parametrize("text", [str(LARGEST + 1), "9" * 5000, "-" + "9" * 5000, "0" * 5000 + "1", "0x" + "f" * 16])
def test_a_whole_number_of_more_than_64_bits_is_an_overflow_not_a_value_error(text):
    with pytest.raises(OverflowError, match="64 bits"):
        resolve(text)


@pytest.mark.parametrize("text", ["no", "010", "1e3", "true", "null", "0x1F", "1_000", "12"])
def test_the_name_of_a_run_is_literal_text(load, good, text):
    assert load(good.replace("name: run", f"name: {text}")).config.name == text


@pytest.mark.parametrize("text", ["12:00:00", "30:00:00", "1-12", "1-12:30", "0:01:00"])
def test_a_time_is_text(load, good, text):
    assert load(f"{good}slurm: {{time: {text}}}").config.slurm.time == text


@pytest.mark.parametrize("text", ["", "~", "null", "Null"])
def test_null_is_none_where_it_is_allowed(load, good, text):
    config = load(f"{good}slurm:\n  time: {text}\n  ranks_per_node: {text}\n  nodes: 2\n").config
    assert (config.slurm.time, config.slurm.ranks_per_node, config.slurm.nodes) == (None, None, 2)


def test_null_in_quotes_is_text(load, good):
    assert load(f"{good}slurm: {{account: 'null'}}").config.slurm.account == "null"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("1e3", 1000.0), ("1", 1.0), (".5", 0.5), ("5.0e-5", 5e-5)]
)
def test_a_number_field_takes_every_way_to_write_a_number(load, good, text, value):
    lr = load(good.replace("lr: 0.1", f"lr: {text}")).config.optim.lr
    assert lr == value
    assert type(lr) is float


@pytest.mark.parametrize(("text", "value"), [("42", 42), ("+42", 42), ("0", 0), ("0x10", 16), ("0o17", 15)])
def test_a_whole_number_field_takes_whole_numbers(load, good, text, value):
    assert load(f"{good}seed: {text}").config.seed == value


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_a_truth_value(load, good, text, value):
    assert load(f"{good}log: {{samples: {text}}}").config.log.samples is value


@pytest.mark.parametrize(
    ("text", "count", "unit", "shown"),
    [
        ("5 epochs", 5, "epochs", "5 epochs"),
        ("1 epoch", 1, "epochs", "1 epoch"),
        ("1.5epochs", 1.5, "epochs", "1.5 epochs"),
        ("1000 steps", 1000, "steps", "1000 steps"),
        ("10 %", 10, "%", "10 %"),
        ("10%", 10, "%", "10 %"),
        ("1000000000 steps", 1e9, "steps", "1000000000 steps"),
        ("0.00000012345 epochs", 1.2345e-7, "epochs", "0.00000012345 epochs"),
    ],
)
def test_a_length_is_read_and_written(text, count, unit, shown):
    assert Duration.parse(text) == Duration(count, unit)
    assert str(Duration.parse(text)) == shown
    assert Duration.parse(shown) == Duration(count, unit)


@pytest.mark.parametrize(
    "text", ["5", "epochs", "-1 epochs", "1e3 steps", "1.5 steps", "101 %", "9" * 400 + " steps", "٣ steps"]
)
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        Duration.parse(text)
