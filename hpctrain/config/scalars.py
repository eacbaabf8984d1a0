"""Plain YAML scalars by the core schema of YAML 1.2, which PyYAML's own tables are not.

Under PyYAML's YAML 1.1 rules `12:00:00` is 43200, `no` is false, `010` is 8, and `1e-3` is a string. The one table
here serves the reader and the writer, so that what is written is read back.
"""

import re
from math import inf, nan

WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), nan),
}
"""What YAML 1.2 reads words as; every other word is text."""

NUMBER = re.compile(
    r"([-+]?[0-9]+)|0o([0-7]+)|0x([0-9a-fA-F]+)|[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
)
"""A number: groups 1 to 3 are whole in base 10, 8 and 16; else it has a point or an exponent."""

LARGEST = 2**63 - 1
"""Whole numbers must fit in 64 bits: so do those of the JSON files of a run, of torch and of Slurm."""


def resolve(text: str) -> str | float | bool | None:
    """Return the value of a plain scalar: None, bool, int, float or, for all else, the text itself.

    Raises:
        OverflowError: a whole number needs more than 64 bits.
    """
    if text in WORDS:
        return WORDS[text]
    match = NUMBER.fullmatch(text)
    if match is None:
        return text
    if match.lastindex is None:
        return float(text)
    digits = match[match.lastindex]
    # Python refuses to convert more than 4,300 digits; leading zeros are no excuse to come close.
    number = LARGEST + 1 if len(digits) > 64 else int(digits, (0, 10, 8, 16)[match.lastindex])
    if abs(number) > LARGEST:
        raise OverflowError("a whole number must fit in 64 bits")
    return number


def is_text(text: str) -> bool:
    """Say whether a plain scalar is text, rather than a number, a truth value or nothing."""
    return text not in WORDS and NUMBER.fullmatch(text) is None


def has_leading_zero(text: str) -> bool:
    """Say whether a decimal number starts with a needless 0: YAML 1.1 reads `010` as 8, YAML 1.2 as 10."""
    digits = text.lstrip("+-")
    return digits[:1] == "0" and digits[1:2].isdigit()
