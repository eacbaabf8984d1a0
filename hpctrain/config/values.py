"""Nodes -> the frozen classes of the schema. Each scalar is read by the type of its field; no problem ends the reading.

`time: 12:00:00` and `name: no` are text because their fields are; `seed: 010` is refused because YAML 1.1 and 1.2
disagree on it. What cannot be read is reported and replaced by its default, so that the rest is still looked at.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, cast

import msgspec
from msgspec import Struct

from hpctrain.config import scalars
from hpctrain.config.document import Items, Node, Place, Problem, Scalar, Section
from hpctrain.config.duration import Duration
from hpctrain.config.fields import Spec, fields
from hpctrain.config.schema import DATASET_ARGS, MODEL_ARGS, Config, Data, Model

_BAD: Any = object()
"""Stands for a value that was reported."""

CHOSEN: dict[type[Struct], tuple[str, dict[str, type[Struct]]]] = {
    Model: ("name", MODEL_ARGS),
    Data: ("dataset", DATASET_ARGS),
}
"""Sections whose `args` belong to what another key of theirs chooses."""

_MEANT = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def shorten(text: str, limit: int = 60) -> str:
    """Return text that fits in a message."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` if one of the known words is near, else nothing."""
    import difflib  # only a mistake pays for it

    near = difflib.get_close_matches(word.lower(), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def shown(node: Node) -> str:
    """Return what was written, for a message: text in quotes, numbers and truth values as they stand."""
    if isinstance(node, Items):
        return "a list"
    if isinstance(node, Section):
        return "key: value pairs"
    if node.plain and not node.text:
        return "nothing"
    text = shorten(node.text)
    return repr(text) if not node.plain or scalars.is_text(node.text) else text


def labelled(place: Place, key: str, message: str) -> str:
    """Put the key before a message, unless the place shows it: that of an override does."""
    return message if str(place).startswith(f"command line: {key}=") else f"{key}: {message}"


class Reader:
    """Reads a tree. Collects the problems, the places of all keys, and the top-level keys in which problems lie."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.places: dict[str, Place] = {}
        self.broken: set[str] = set()

    def config(self, root: Section) -> Config:
        """Read the whole; if there are problems it holds defaults, or None, where they lie."""
        return cast("Config", self._section(root, Config, "", root.place))

    def _report(self, place: Place, key: str, message: str) -> Any:
        self.broken.add(key.split(".", maxsplit=1)[0])
        self.problems.append((place, labelled(place, key, message)))
        return _BAD

    def _expected(self, node: Node, spec: Spec, key: str, hint: str = "") -> Any:
        return self._report(node.place, key, f"expected {spec.expect}, got {shown(node)}{hint}")

    def _section(self, node: Section, kind: type[Struct], key: str, place: Place) -> Struct:
        """Read a section; `place` is where a key that is missing is reported."""
        given = self._entries(node, kind, key, place)
        known = fields(kind)
        values = {known[name].name: value for name, value in given.items() if value is not _BAD}
        for field in known.values():
            if field.required and field.name not in values:
                values[field.name] = None
        return kind(**values)

    def _entries(self, node: Section, kind: type[Struct], key: str, place: Place, whose: str = "") -> dict[str, Any]:
        """Read the keys of a section that its class knows; report those that it does not, and those that miss."""
        known = fields(kind)
        values: dict[str, Any] = {}
        for name, (key_place, child) in node.entries.items():
            path = f"{key}.{name}" if key else name
            field = known.get(name)
            if field is None:
                self._unknown(key_place, path, name, kind, whose)
                continue
            self.places[path] = child.place if isinstance(child, Scalar) and not child.empty else key_place
            if name == "args" and kind in CHOSEN:
                values[name] = self._arguments(child, node, kind, path)
            else:
                values[name] = self._value(child, field.spec, path, key_place)
        for name, field in known.items():
            if field.required and name not in node.entries:
                path = f"{key}.{name}" if key else name
                self._report(place, path, f"missing; expected {field.spec.expect}")
        return values

    def _unknown(self, place: Place, path: str, name: str, kind: type[Struct], whose: str) -> None:
        known = fields(kind)
        what = f"unknown argument of {whose}" if whose else "unknown key"
        elsewhere = [] if whose else _elsewhere(name, kind)
        hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, known)
        allowed = f"; allowed: {', '.join(known)}" if known else "; it has none"
        self._report(place, path, what + (hint or allowed))

    def _arguments(self, node: Node, section: Section, kind: type[Struct], key: str) -> Any:
        """Read `args`: by the class of what is chosen, or freely for the user's own."""
        if isinstance(node, Scalar) and node.empty:
            return {}
        if not isinstance(node, Section):
            return self._expected(node, Spec(dict, dict), key)
        by, classes = CHOSEN[kind]
        chosen = section.entries.get(by, (node.place, node))[1]
        name = chosen.text if isinstance(chosen, Scalar) else ""
        if name not in classes:
            return self._free(node, key)
        given = self._entries(node, classes[name], key, node.place, whose=name)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
            if value is not _BAD
        }

    def _free(self, node: Node, key: str) -> Any:
        """Read a value that no field confines, by YAML's own rules."""
        self.places[key] = node.place
        if isinstance(node, Items):
            return [self._free(item, f"{key}[{index}]") for index, item in enumerate(node.items)]
        if isinstance(node, Section):
            return {name: self._free(child, f"{key}.{name}") for name, (_, child) in node.entries.items()}
        if not node.plain:
            return node.text
        try:
            return scalars.resolve(node.text)
        except OverflowError as error:
            return self._report(node.place, key, f"{error}, got {shown(node)}")

    def _value(self, node: Node, spec: Spec, key: str, key_place: Place) -> Any:
        """Read one value by its spec; what misses in a section is reported at its key."""
        empty = isinstance(node, Scalar) and node.empty
        if empty and spec.optional:
            return None
        if spec.base is tuple:
            return self._list(node, spec, key)
        if issubclass(spec.base, Struct) and spec.base is not Duration:
            # `slurm:` with every line under it commented out is an empty section.
            section = Section(node.place, {}) if empty else node
            if isinstance(section, Section):
                return self._section(section, spec.base, key, key_place)
        elif isinstance(node, Scalar):
            return self._scalar(node, spec, key)
        hint = "; quote it if it is meant as text" if spec.base is str and not spec.choices else ""
        return self._expected(node, spec, key, hint)

    def _scalar(self, node: Scalar, spec: Spec, key: str) -> Any:
        if spec.base is str:
            return self._text(node, spec, key)
        if spec.base is bool:
            return self._truth(node, spec, key)
        return self._duration(node, spec, key) if spec.base is Duration else self._number(node, spec, key)

    def _list(self, node: Node, spec: Spec, key: str) -> Any:
        if not isinstance(node, Items):
            alone = isinstance(node, Scalar) and not node.empty  # an empty list is meant by nothing
            written = ", ".join(node.text.split()) if key == "command" and isinstance(node, Scalar) else shown(node)
            return self._expected(node, spec, key, f"; write [{written}]" if alone else "; write []")
        specs = spec.items * len(node.items) if spec.endless else spec.items
        if len(node.items) != len(specs) or len(node.items) < spec.bounds.get("min_length", 0):
            return self._report(node.place, key, f"expected {spec.expect}, got one of {len(node.items)}")
        values = []
        for index, (item, each) in enumerate(zip(node.items, specs, strict=True)):
            self.places[f"{key}[{index}]"] = item.place
            values.append(self._value(item, each, f"{key}[{index}]", item.place))
        return _BAD if any(value is _BAD for value in values) else tuple(values)

    def _duration(self, node: Scalar, spec: Spec, key: str) -> Any:
        if node.plain and not scalars.is_text(node.text):
            return self._expected(node, spec, key)
        try:
            return Duration.parse(node.text)
        except ValueError as error:
            return self._report(node.place, key, str(error))

    def _text(self, node: Scalar, spec: Spec, key: str) -> Any:
        if node.text in spec.choices:
            return node.text
        # ASCII: \w and the like must not let other scripts' letters through to a shell.
        if spec.pattern is not None and re.fullmatch(spec.pattern, node.text, re.ASCII):
            return node.text
        if spec.pattern is None and not spec.choices:
            return node.text
        return self._expected(node, spec, key, nearest(node.text, spec.choices))

    def _truth(self, node: Scalar, spec: Spec, key: str) -> Any:
        value = scalars.WORDS.get(node.text) if node.plain else None
        if isinstance(value, bool):
            return value
        meant = _MEANT.get(node.text.lower(), node.text.lower())
        return self._expected(node, spec, key, f"; write {meant}" if meant in {"true", "false"} else "")

    def _number(self, node: Scalar, spec: Spec, key: str) -> Any:
        try:
            value = scalars.resolve(node.text)
        except OverflowError as error:
            return self._report(node.place, key, f"{error}, got {shown(node)}")
        hint = _why_no_number(node, value, spec)
        if hint is None:
            try:
                return msgspec.convert(value, spec.type)
            except msgspec.ValidationError:
                hint = ""
        return self._expected(node, spec, key, hint)


def _why_no_number(node: Scalar, value: str | float | bool | None, spec: Spec) -> str | None:
    """Return a hint, which may be empty, if a scalar is not the number that is expected; None if it is."""
    hint: str | None = None
    if value is None or isinstance(value, bool | str):
        bare = node.text.replace("_", "")
        hint = f"; write {shorten(bare)}" if bare != node.text and not scalars.is_text(bare) else ""
    elif not node.plain:
        hint = "; leave out the quotes"
    elif scalars.has_leading_zero(node.text):
        hint = f"; write {value}"
    elif spec.base is int and isinstance(value, float):
        hint = f"; write {int(value)}" if value.is_integer() and abs(value) <= scalars.LARGEST else ""
    elif not math.isfinite(value):
        hint = "; write a finite one"
    return hint


def _elsewhere(name: str, kind: type[Struct]) -> list[str]:
    """Return the keys of this name in the sections of the config other than `kind`, as they are written."""
    found = [name] if kind is not Config and name in fields(Config) else []
    for section, field in fields(Config).items():
        if issubclass(field.spec.base, Struct) and field.spec.base is not kind and name in fields(field.spec.base):
            found.append(f"{section}.{name}")
    return found
