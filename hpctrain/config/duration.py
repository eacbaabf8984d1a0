"""A length of training: `5 epochs`, `1000 steps` or `10 %`; resolved to steps once, in `hpctrain.schedule`."""

import re
from typing import Literal, Self

import msgspec

Unit = Literal["steps", "epochs", "%"]

PATTERN = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(steps?|epochs?|%)"
EXPECT = "a length such as '5 epochs', '1000 steps' or '10 %'"


class Duration(msgspec.Struct, frozen=True):
    """A count with its unit.

    Percent is of the whole training. A fraction of an epoch or percent rounds to the nearest step;
    steps are whole.
    """

    count: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `5 epochs`, `1 epoch`, `1000 steps`, `10 %`.

        Raises:
            ValueError: the text is none of these; the message says what is.
        """
        match = re.fullmatch(PATTERN, text.strip(), re.ASCII)
        if match is None:
            raise ValueError(f"expected {EXPECT}, got {text!r}")
        count, word = float(match[1]), match[2]
        unit: Unit = "%" if word == "%" else "steps" if word.startswith("step") else "epochs"
        if unit == "steps" and not count.is_integer():
            raise ValueError(f"expected a whole number of steps, got {text!r}")
        if unit == "%" and count > 100:
            raise ValueError(f"expected at most 100 %, got {text!r}")
        return cls(count, unit)

    def __str__(self) -> str:
        """Return the text that `parse` reads back to an equal value."""
        number = f"{self.count:g}" if float(f"{self.count:g}") == self.count else repr(self.count)
        if "e" in number:
            from decimal import Decimal  # only a very long or very short length has an exponent

            number = f"{Decimal(number):f}"
        word = self.unit[:-1] if self.count == 1 and self.unit != "%" else self.unit
        return f"{number} {word}"
