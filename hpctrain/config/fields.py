"""The fields of the config classes, taken apart: what `load` reads by, and what messages and docs say of them."""

from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from hpctrain.config.duration import EXPECT as A_LENGTH
from hpctrain.config.duration import Duration


class Spec(Struct, frozen=True):
    """What one value may be.

    Args:
        base: str, int, float, bool, Duration, tuple, dict or the class of a section.
        type: the annotation without `| None`, as msgspec converts it.
        optional: null is allowed.
        bounds: the limits, as `ge`, `gt`, `le`, `lt` and `min_length`.
        choices: the words that are allowed; with a pattern, besides what it matches.
        pattern: what text must `fullmatch`.
        pattern_words: the pattern in words.
        items: of a list: the spec of each item, or one that holds for all of them.
        endless: a list has any number of items.
    """

    base: type
    type: Any
    optional: bool = False
    bounds: dict[str, Any] = {}
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    pattern_words: str = ""
    items: tuple["Spec", ...] = ()
    endless: bool = False

    @property
    def expect(self) -> str:
        """What is expected, in words that follow `expected`."""
        if self.choices:
            alternatives = ", ".join(self.choices)
            if self.pattern is not None:
                return f"one of {alternatives}, or {self.pattern_words}"
            return f"one of {alternatives}" if len(self.choices) > 1 else alternatives
        if self.base is tuple:
            least = self.bounds.get("min_length", 0)
            count = "" if self.endless else f" of {len(self.items)} values"
            count = f" of at least {least} value{'s' * (least > 1)}" if least else count
            return f"a list{count}, each {self.items[0].expect}"
        if self.base in _NUMBERS:
            limits = [f"{_LIMITS[name]} {limit}" for name, limit in self.bounds.items()]
            return " ".join([_NUMBERS[self.base], " and ".join(limits).replace(" and of ", " and ")]).strip()
        return self.pattern_words or _WORDS.get(self.base, "key: value pairs")


_NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}
_LIMITS = {"ge": "of at least", "gt": "greater than", "le": "of at most", "lt": "less than"}
_WORDS: dict[type, str] = {bool: "true or false", str: "text", Duration: A_LENGTH}


class Field(Struct, frozen=True):
    """One key of a section; `name` is its attribute, which Python's own words force to differ (`global_`)."""

    key: str
    name: str
    spec: Spec
    required: bool
    default: Any


@cache
def fields(kind: type[Struct]) -> dict[str, Field]:
    """Return the fields of a config class by their keys, in their order."""
    return {
        info.encode_name: Field(
            info.encode_name,
            info.name,
            take_apart(info.type),
            info.required,
            None if info.required else info.default if info.default is not NODEFAULT else info.default_factory(),
        )
        for info in msgspec.structs.fields(kind)
    }


def take_apart(annotation: Any) -> Spec:
    """Take a type annotation of the schema apart.

    Raises:
        TypeError: the schema uses a type that configs are not written in.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return _confined(annotation)
    if origin is Union or origin is UnionType:
        return _either(annotation)
    if origin is Literal:
        return Spec(str, annotation, choices=get_args(annotation))
    if origin is tuple:
        items = get_args(annotation)
        endless = items[-1] is Ellipsis
        return Spec(
            tuple, annotation, items=tuple(take_apart(item) for item in items if item is not Ellipsis), endless=endless
        )
    if origin is dict:
        return Spec(dict, annotation)
    if isinstance(annotation, type):
        return Spec(annotation, annotation)
    raise TypeError(f"a config field cannot be {annotation}")


def _confined(annotation: Any) -> Spec:
    """`Annotated[X, Meta(...), ...]`."""
    inner, *metas = get_args(annotation)
    spec = take_apart(inner)
    bounds = dict(spec.bounds)
    pattern, words = spec.pattern, spec.pattern_words
    for meta in metas:
        if not isinstance(meta, Meta):
            raise TypeError(f"a config field cannot be annotated with {meta}")
        bounds |= {name: limit for name in (*_LIMITS, "min_length") if (limit := getattr(meta, name)) is not None}
        extra = meta.extra or {}
        pattern, words = extra.get("pattern", pattern), extra.get("expect", words)
    return msgspec.structs.replace(spec, type=annotation, bounds=bounds, pattern=pattern, pattern_words=words)


def _either(annotation: Any) -> Spec:
    """`X | None`, or words and a pattern (`Literal[...] | Annotated[str, ...]`)."""
    specs = [take_apart(part) for part in get_args(annotation) if part is not NoneType]
    optional = NoneType in get_args(annotation)
    if len(specs) == 1:
        return msgspec.structs.replace(specs[0], optional=optional)
    words = [spec for spec in specs if spec.choices]
    patterns = [spec for spec in specs if spec.pattern is not None]
    if len(words) != 1 or len(patterns) != 1 or len(specs) != 2:
        raise TypeError(f"a config field cannot be {annotation}")
    return msgspec.structs.replace(patterns[0], optional=optional, choices=words[0].choices)
