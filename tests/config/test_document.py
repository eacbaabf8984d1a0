import time

import pytest

LEVELS = 500
ESCAPE = "remove it, or write it as an escape in double quotes"


def _short(value):
    return repr(value)[:40]


def test_duplicate_keys_name_both_lines(problems, good):
    assert problems(f"{good}seed: 1\nslurm:\n  nodes: 1\n  nodes: 2\nseed: 2\n") == [
        "run.yaml:10:3: nodes: given twice, on line 9 and on line 10",
        "run.yaml:11:1: seed: given twice, on line 7 and on line 11",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml:1:1: the file is empty; it needs at least a name, and a command or a model"),
        ("# nothing\n", "run.yaml:1:1: the file is empty; it needs at least a name, and a command or a model"),
        ("---\n", "run.yaml:1:1: the file is empty; it needs at least a name, and a command or a model"),
        ("- a\n", "run.yaml:1:1: expected key: value pairs, got a list"),
        ("name", "run.yaml:1:1: expected key: value pairs, got 'name'"),
        (
            "name: a\n---\nname: b\n",
            "run.yaml:2:1: a second document; a config is one document, so remove this '---' and what follows",
        ),
        ("name: a\n\tseed: 1\n", "run.yaml:2:1: a tab; YAML indents with spaces"),
        ("slurm:\n\tnodes: 1\n", "run.yaml:2:1: a tab; YAML indents with spaces"),
        (
            "name: a: b\n",
            (
                "run.yaml:1:8: not YAML: a second ': ' in one value, or a line that is indented too far; quote "
                "the value, or align the line"
            ),
        ),
        (
            "name: a\nseed: [1\n",
            (
                "run.yaml:3:1: not YAML: did not find expected ',' or ']', while parsing a flow sequence "
                "that starts on line 2"
            ),
        ),
        (
            "name: @a",
            (
                "run.yaml:1:7: not YAML: found character that cannot start any token, while scanning for the next "
                "token that starts on line 1"
            ),
        ),
        (
            "name: a\0b",
            f"run.yaml:1:8: unprintable character '\\x00'; {ESCAPE}",
        ),
        (
            "name: a\nx: \x1b[0m",
            f"run.yaml:2:4: unprintable character '\\x1b'; {ESCAPE}",
        ),
        (
            "name: a\u2028b: 1",
            f"run.yaml:1:8: unprintable character '\\u2028'; {ESCAPE}",
        ),
        ("name: a\nä: ".encode() + b"\xff", "run.yaml:2:4: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("name: a".encode("utf-16"), "run.yaml:1:1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("name: *a", "run.yaml:1:7: *a has no &a before it"),
        ("name: &a [*a]", "run.yaml:1:11: *a stands inside &a: a value cannot contain itself"),
        ("name: &a {b: {c: *a}}", "run.yaml:1:18: *a stands inside &a: a value cannot contain itself"),
        (b"name: a\n" + b"#" * 1024 * 1024, "run.yaml:1:1: larger than 1024 KiB; is this a config?"),
        ("x: [" + "1," * 10_000 + "]", "run.yaml:1:19999: more than 10000 keys and values (each alias counts in full)"),
        (
            "x: &a 1\ny: [" + "*a," * 33 + "]",
            "run.yaml:2:101: more than 32 aliases",
        ),
    ],
    ids=_short,
)
def test_what_is_no_document_ends_the_reading(problems, text, message):
    assert problems(text) == [message]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("x: " + "[" * LEVELS + "]" * LEVELS, "1:35"),
        ("x: " + "[" * LEVELS, "1:35"),
        ("x: " + "{a: " * LEVELS, "1:128"),
        ("- " * LEVELS, "1:65"),
        ("".join(f"{' ' * level}a:\n" for level in range(LEVELS)), "33:33"),
        ("[" * 1_000_000, "1:33"),
    ],
    ids=_short,
)
def test_deep_nesting_is_refused_before_anything_recurses(problems, text, place):
    assert problems(text) == [f"run.yaml:{place}: nested deeper than 32 levels"]


def test_thirty_two_levels_are_allowed(load, good):
    text = good.replace("{name: mlp}", "{name: 'a:b', args: {x: " + "[" * 29 + "]" * 29 + "}}")
    assert load(text).config.model.args["x"][0]
    with pytest.raises(Exception, match="nested deeper than 32 levels"):
        load(text.replace("[[", "[[[").replace("]]", "]]]"))


def test_an_alias_counts_the_levels_below_it(problems):
    assert problems("a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 15 + "*a" + "]" * 15) == [
        "run.yaml:2:19: *a is nested deeper than 32 levels"
    ]


def test_an_alias_bomb_is_refused_at_once(problems):
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n"
    for name, before in zip("bcdefgh", "abcdefg", strict=True):
        bomb += f"{name}: &{name} [{','.join(['*' + before] * 4)}]\n"
    start = time.process_time()
    found = problems(bomb)
    assert len(found) == 1
    assert "counts in full" in found[0]
    assert time.process_time() - start < 1


def test_aliases_of_a_list_are_separate_values(load, good):
    text = good.replace("{name: mlp}", "{name: 'a:b', args: {x: &x [1, 2], y: *x, z: *x}}")
    args = load(text).config.model.args
    assert args == {"x": [1, 2], "y": [1, 2], "z": [1, 2]}
    assert args["x"] is not args["y"]


def test_tags_merge_keys_and_odd_keys_are_refused_together(problems, good):
    text = good.replace("name: run", "name: !!python/object/apply:os.system run")
    text += "<<: {seed: 1}\nslurm: !x {nodes: 1}\n? [a]\n: 1\nlog: {every: !!str 5 steps}\n"
    assert problems(text) == [
        "run.yaml:1:7: the tag !!python/object/apply:os.system is not allowed; the key decides the type of its value",
        "run.yaml:7:1: merge keys (<<) are not allowed; write the keys out",
        "run.yaml:8:8: the tag !x is not allowed; the key decides the type of its value",
        "run.yaml:9:3: a key must be a word, not a list or key: value pairs",
        "run.yaml:11:14: the tag !!str is not allowed; the key decides the type of its value",
    ]


def test_a_byte_order_mark_and_other_line_ends_are_read(load, good):
    assert load(b"\xef\xbb\xbf" + good.replace("\n", "\r\n").encode()).config.name == "run"


def test_a_number_of_5000_digits_is_a_problem_like_any_other(problems, good):
    shown = "9" * 57 + "..."
    assert problems(f"{good}seed: {'9' * 5000}") == [
        f"run.yaml:7:7: seed: a whole number must fit in 64 bits, got {shown}"
    ]
    assert problems(good.replace("{name: mlp}", f"{{name: 'a:b', args: {{n: {'9' * 5000}}}}}")) == [
        f"run.yaml:3:32: model.args.n: a whole number must fit in 64 bits, got {shown}"
    ]
