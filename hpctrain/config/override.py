"""`key.sub=value` from the command line, laid over the tree of the file under the same rules."""

from collections.abc import Sequence

from hpctrain.config.document import Node, NotReadableError, Place, Problem, Scalar, Section, read, unprintable
from hpctrain.config.values import shorten

EITHER = (("train.epochs", "train.steps"), ("batch.global", "batch.per_rank"))
"""Pairs of keys of which a config gives one: giving one on the command line takes the other out of the file."""


def apply(root: Section, overrides: Sequence[str]) -> tuple[Section, list[Problem]]:
    """Lay overrides over the root of a file; return the new root, and what is wrong with them."""
    problems: list[Problem] = []
    given: dict[str, Node] = {}
    changed = root
    for turn, override in enumerate(overrides):
        key, equals, text = override.partition("=")
        printable = override if override.isprintable() else ascii(override)
        place = Place(f"command line: {shorten(printable, 120)}", 0, turn)
        if not equals or not all(key.split(".")):
            problems.append((place, "expected key=value, such as train.epochs=3"))
            continue
        clash = next(
            (other for other in given if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.")), None
        )
        if clash is not None:
            again = "given twice" if clash == key else f"{clash} is given too"
            problems.append((place, f"{again} on the command line; give it once"))
            continue
        try:
            given[key] = _value(text, place, problems)
            changed = _set(changed, key.split("."), given[key], place)
        except NotReadableError as error:
            problems += error.problems
    for one, other in (*EITHER, *(pair[::-1] for pair in EITHER)):
        # A file that gives both is wrong by itself, and stays so.
        replaces = _is_given(given.get(one)) and other not in given and not _is_given(_find(root, one))
        if replaces:
            changed = _without(changed, other.split("."))
    return changed, problems


def _value(text: str, place: Place, problems: list[Problem]) -> Node:
    """Read the value of an override: a list, a section or quotes as YAML writes them in one line, else plain text.

    Plain text is not looked at for YAML's marks, so that `slurm.nodelist=n[1-4],n7` needs no quotes but the shell's.
    """
    if unprintable(text) is not None:
        raise NotReadableError([(place, "unprintable character; remove it")])
    if text.lstrip()[:1] not in {"[", "{", '"', "'"}:
        return Scalar(place, text.strip(), plain=True)
    node, found = read(text, lambda _line, _column: place)
    problems += found
    return node if node is not None else Scalar(place, "", plain=True)


def _set(section: Section, path: Sequence[str], node: Node, place: Place) -> Section:
    """Return the section with one key changed; the given one may be shared by aliases and stays as it is."""
    head, *rest = path
    if not rest:
        return Section(section.place, {**section.entries, head: (place, node)})
    key_place, inner = section.entries.get(head, (place, Section(place, {})))
    if isinstance(inner, Scalar) and inner.empty:
        inner = Section(place, {})
    if not isinstance(inner, Section):
        raise NotReadableError([(place, f"{head} is not a section (see {key_place})")])
    return Section(section.place, {**section.entries, head: (key_place, _set(inner, rest, node, place))})


def _find(section: Section, key: str) -> Node | None:
    node: Node | None = section
    for part in key.split("."):
        node = node.entries.get(part, (None, None))[1] if isinstance(node, Section) else None
    return node


def _is_given(node: Node | None) -> bool:
    return node is not None and not (isinstance(node, Scalar) and node.empty)


def _without(section: Section, path: Sequence[str]) -> Section:
    """Return the section without one key, which may be absent."""
    head, *rest = path
    entries = dict(section.entries)
    if not rest:
        entries.pop(head, None)
    elif head in entries and isinstance(inner := entries[head][1], Section):
        entries[head] = (entries[head][0], _without(inner, rest))
    return Section(section.place, entries)
