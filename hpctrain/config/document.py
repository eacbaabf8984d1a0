"""Text -> a tree of nodes that know their place; YAML's surprises and attacks are refused here.

The tree is built from libyaml's events with a stack of its own, so that depth is bounded before anything recurses
and an alias is counted before it is followed. Refused: duplicate keys, merge keys, tags, several documents,
recursive aliases, and whatever is over the limits below.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import yaml
from msgspec import Struct

from hpctrain.config.scalars import WORDS

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_ALIASES = 32
MAX_VALUES = 10_000
"""Keys and values of a file, those that aliases repeat counted each time: the budget that stops an alias bomb."""


class Place(Struct, frozen=True):
    """Where something stands: in a file, or (line 0, and the column is its turn) on the command line."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """Return `file:line:col`, or `command line: key=value`."""
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Scalar(Struct):
    """One value as it is written; `plain` if it has no quotes."""

    place: Place
    text: str
    plain: bool

    @property
    def empty(self) -> bool:
        """Whether it is null: nothing at all, `~` or `null`."""
        return self.plain and WORDS.get(self.text, self) is None


class Items(Struct):
    """A list."""

    place: Place
    items: list["Node"]


class Section(Struct):
    """Key: value pairs; each key with its own place."""

    place: Place
    entries: dict[str, tuple[Place, "Node"]]


Node = Scalar | Items | Section
Problem = tuple[Place, str]


class NotReadableError(Exception):
    """The text is not YAML, or over a limit; the last of its problems ended the reading."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


class _Open(Struct):
    """A list or section whose end has not come yet; `height` counts the levels in it and below."""

    node: Items | Section
    anchor: str | None
    size: int = 1
    height: int = 0
    key: tuple[Place, str | None] | None = None


class _Known(Struct):
    """An anchored node; `node` is None as long as it is still open."""

    node: Node | None = None
    size: int = 1
    height: int = 0


def read(text: str, place: Callable[[int, int], Place]) -> tuple[Node | None, list[Problem]]:
    """Read one document.

    Args:
        text: YAML.
        place: makes a place from a line and a column that count from 1.

    Returns:
        The root, None if there is no document; and problems that do not hinder reading on.

    Raises:
        NotReadableError: the text is not YAML, or over a limit.
    """
    bad = unprintable(text)
    if bad is not None:
        line, column = position(text, bad)
        message = f"unprintable character {text[bad]!a}; remove it, or write it as an escape in double quotes"
        raise NotReadableError([(place(line, column), message)])
    tree = _Tree(place)
    try:
        for event in _events(text):
            tree.add(event)
    except yaml.MarkedYAMLError as error:
        problem = (tree.place(error.problem_mark or error.context_mark), _not_yaml(error, text))
        raise NotReadableError([*tree.problems, problem]) from None
    return tree.root, tree.problems


def unprintable(text: str) -> int | None:
    """Return the index of the first character that cannot stand in YAML, if there is one.

    These are what YAML 1.2 does not print, and three characters that YAML 1.1, so libyaml, takes for line breaks.
    """
    if text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        return None  # almost always: the pattern takes milliseconds to compile
    allowed = r"\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff"
    match = re.search(f"[^{allowed}]", text)
    return None if match is None else match.start()


def position(text: str, index: int) -> tuple[int, int]:
    """Return line and column, from 1, of a character."""
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


def _events(text: str) -> Iterator[yaml.Event]:
    parser = yaml.CSafeLoader(text)
    try:
        while (event := parser.get_event()) is not None and not isinstance(event, yaml.StreamEndEvent):
            yield event
    finally:
        parser.dispose()


def _not_yaml(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    line = text.splitlines()[mark.line] if mark is not None and mark.line < len(text.splitlines()) else ""
    if mark is not None and line[mark.column : mark.column + 1] == "\t":
        return "a tab; YAML indents with spaces"
    problem = error.problem or "unreadable"
    if problem.startswith("mapping values are not allowed"):
        problem = "a second ': ' in one value, or a line that is indented too far; quote the value, or align the line"
    start = error.context_mark
    since = f", {error.context} that starts on line {start.line + 1}" if error.context and start is not None else ""
    return f"not YAML: {problem}{since}"


class _Tree:
    """Grows from events. `root` is the document's node once it is complete."""

    def __init__(self, place: Callable[[int, int], Place]) -> None:
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self._place = place
        self._open: list[_Open] = []
        self._anchors: dict[str, _Known] = {}
        self._values = 0
        self._aliases = 0
        self._documents = 0

    def place(self, mark: Any) -> Place:
        """Return the place of libyaml's mark, which counts from 0."""
        return self._place(mark.line + 1, mark.column + 1) if mark is not None else self._place(1, 1)

    def add(self, event: yaml.Event) -> None:
        """Take the next event.

        Raises:
            NotReadableError: a limit is passed.
        """
        place = self.place(event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            self._refuse_tag(event.tag, place)
            scalar = Scalar(place, event.value, plain=not event.style)
            if event.anchor:
                self._anchors[event.anchor] = _Known(scalar)
            self._count(1, place)
            self._attach(scalar, place, size=1, height=0)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._refuse_tag(event.tag, place)
            if len(self._open) >= MAX_DEPTH:
                self._stop(place, f"nested deeper than {MAX_DEPTH} levels")
            self._count(1, place)
            listed = isinstance(event, yaml.SequenceStartEvent)
            self._open.append(_Open(Items(place, []) if listed else Section(place, {}), event.anchor))
            if event.anchor:
                self._anchors[event.anchor] = _Known()
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._follow(event.anchor or "", place)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(place, "a second document; a config is one document, so remove this '---' and what follows")

    def _stop(self, place: Place, message: str) -> NoReturn:
        raise NotReadableError([*self.problems, (place, message)])

    def _refuse_tag(self, tag: str | None, place: Place) -> None:
        if tag is not None:
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.append((place, f"the tag {tag} is not allowed; the key decides the type of its value"))

    def _count(self, values: int, place: Place) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            self._stop(place, f"more than {MAX_VALUES} keys and values (each alias counts in full)")

    def _close(self) -> None:
        done = self._open.pop()
        if done.anchor:
            self._anchors[done.anchor] = _Known(done.node, done.size, done.height + 1)
        self._attach(done.node, done.node.place, size=done.size, height=done.height + 1)

    def _follow(self, anchor: str, place: Place) -> None:
        known = self._anchors.get(anchor)
        if known is None:
            self._stop(place, f"*{anchor} has no &{anchor} before it")
        if known.node is None:
            self._stop(place, f"*{anchor} stands inside &{anchor}: a value cannot contain itself")
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            self._stop(place, f"more than {MAX_ALIASES} aliases")
        if len(self._open) + known.height > MAX_DEPTH:
            self._stop(place, f"*{anchor} is nested deeper than {MAX_DEPTH} levels")
        self._count(known.size, place)
        self._attach(known.node, place, size=known.size, height=known.height)

    def _attach(self, node: Node, place: Place, *, size: int, height: int) -> None:
        """Hang a complete node, of so many values in all, into the list or section that is open."""
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        parent.size += size
        parent.height = max(parent.height, height)
        if isinstance(parent.node, Items):
            parent.node.items.append(node)
        elif parent.key is None:
            parent.key = (place, self._key(node, place))
        else:
            (key_place, key), parent.key = parent.key, None
            if key is not None:
                self._enter(parent.node, key, key_place, node)

    def _key(self, node: Node, place: Place) -> str | None:
        if not isinstance(node, Scalar):
            self.problems.append((place, "a key must be a word, not a list or key: value pairs"))
            return None
        if node.plain and node.text == "<<":
            self.problems.append((place, "merge keys (<<) are not allowed; write the keys out"))
            return None
        return node.text

    def _enter(self, section: Section, key: str, place: Place, node: Node) -> None:
        if key in section.entries:
            first = section.entries[key][0]
            lines = f", on line {first.line} and on line {place.line}" if place.line else ""
            self.problems.append((place, f"{key}: given twice{lines}"))
        else:
            section.entries[key] = (place, node)
