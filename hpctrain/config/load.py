"""The config file -> `Config`, with every problem at once as `file:line:col: message`.

Stages: `document` (text to nodes) -> `override` (the command line over the file) -> `values` (nodes to the classes of
the schema, by each field's type) -> `check` (rules between fields).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpctrain.config import check, override, values
from hpctrain.config.document import MAX_BYTES, NotReadableError, Place, Problem, Scalar, Section, position, read
from hpctrain.config.schema import Config
from hpctrain.errors import ConfigError, UsageError


class Loaded:
    """A config, and where each of its values came from.

    Args:
        config: the config.
        places: the places of the keys that were given, by dotted key.
        start: the first character of the file, for what no key stands for.
    """

    def __init__(self, config: Config, places: Mapping[str, Place], start: Place) -> None:
        self.config = config
        self._places = places
        self._start = start

    def replaced(self, config: Config) -> "Loaded":
        """Return another config whose values, as far as they were given, came from the same places."""
        return Loaded(config, self._places, self._start)

    def place(self, key: str) -> Place:
        """Return the place of a dotted key; if it was not given, of the nearest section around it."""
        while key and key not in self._places:
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return self._places.get(key, self._start)

    def problem(self, key: str, message: str) -> str:
        """Return `file:line:col: message` for a dotted key; `command line: key=value: message` for an override."""
        return f"{self.place(key)}: {message}"


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read a config file and lay `key.sub=value` overrides over it.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is not a config; all problems at once, in the order of the file, the command line's last.
    """
    root, problems = _root(path)
    root, found = override.apply(root, overrides)
    problems += found
    reader = values.Reader()
    config = reader.config(root)
    problems += reader.problems
    loaded = Loaded(config, reader.places, Place(str(path), 1, 1))
    if "command" not in reader.broken:
        problems += [
            (where := loaded.place(key), values.labelled(where, key, message))
            for key, message in check.check(config)
            if key.split(".")[0] not in reader.broken
        ]
    if problems:
        problems.sort(key=lambda problem: (problem[0].line == 0, problem[0].line, problem[0].column))
        raise ConfigError([f"{place}: {message}" for place, message in problems])
    return loaded


def dump(config: Config) -> str:
    """Return YAML that `load` reads back to an equal config: what was asked, without empty and untouched sections."""
    from hpctrain.config.write import text  # only a run directory pays for the emitter

    return text(config)


def _root(path: Path) -> tuple[Section, list[Problem]]:
    """Read the file down to its top-level section."""

    def place(line: int, column: int) -> Place:
        return Place(str(path), line, column)

    data = _bytes(path)
    if len(data) > MAX_BYTES:
        raise ConfigError([f"{place(1, 1)}: larger than {MAX_BYTES // 1024} KiB; is this a config?"])
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        where = place(*position(before, len(before)))
        raise ConfigError([f"{where}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"]) from None
    try:
        root, problems = read(text, place)
    except NotReadableError as error:
        raise ConfigError([f"{where}: {message}" for where, message in error.problems]) from None
    if root is None or (isinstance(root, Scalar) and root.empty):
        raise ConfigError([f"{place(1, 1)}: the file is empty; it needs at least a name, and a command or a model"])
    if not isinstance(root, Section):
        raise ConfigError([f"{root.place}: expected key: value pairs, got {values.shown(root)}"])
    return root, problems


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file", _others(path)) from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a directory, not a config file", _others(path / "?")) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", f"ls -l {path} shows who may") from None


def _others(path: Path) -> str:
    """Return a hint: the config files near a path that is none, the likeliest first."""
    import difflib  # only a mistake pays for it

    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml"})
    except OSError:
        return f"{path.parent} is no directory that can be read"
    near = difflib.get_close_matches(path.name, names, 3, cutoff=0.7) or names[:5]
    if not near:
        return f"no .yaml file in {path.parent}"
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?"
