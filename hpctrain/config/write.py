"""`Config` -> YAML that `load` reads back to an equal one, and that people can read."""

import re
from typing import Any

import msgspec
import yaml

from hpctrain.config import scalars
from hpctrain.config.duration import Duration
from hpctrain.config.optim import Optim, unread
from hpctrain.config.schema import Config

_BARE = re.compile(r"[\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd]*")
"""Text that needs no escapes; what has others, or several lines, goes in double quotes."""


class _Dumper(yaml.CSafeDumper):
    """Quotes what the core schema of YAML 1.2 would not read as text; repeats instead of making aliases."""

    def ignore_aliases(self, _data: object) -> bool:
        return True

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        """Return the tag of a plain scalar, by the same table that `load` reads with."""
        if kind is not yaml.ScalarNode:
            return "tag:yaml.org,2002:seq" if kind is yaml.SequenceNode else "tag:yaml.org,2002:map"
        return _tag(value) if implicit[0] else "tag:yaml.org,2002:str"

    def text(self, data: str) -> yaml.Node:
        """Return the node of a string."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if _BARE.fullmatch(data) else '"')

    def row(self, data: list[Any]) -> yaml.Node:
        """Return the node of a list, written in one line."""
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(list, _Dumper.row)


def text(config: Config) -> str:
    """Return the config as YAML, without what is None, empty, read by nothing, or a section of nothing but defaults."""
    return yaml.dump(
        _tree(config), Dumper=_Dumper, allow_unicode=True, default_flow_style=False, sort_keys=False, width=1_000_000
    )


def _tree(section: msgspec.Struct) -> dict[str, Any]:
    tree = {}
    idle = {key for key, _ in unread(section)} if isinstance(section, Optim) else set()
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        untouched = value == default and (value in (None, (), {}) or _is_section(value) or field.name in idle)
        if not untouched:
            tree[field.encode_name] = _plain(value)
    return tree


def _is_section(value: object) -> bool:
    return isinstance(value, msgspec.Struct) and not isinstance(value, Duration)


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return _tree(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tag(value: str) -> str:
    """Return the tag of what a plain scalar reads as; where it is not the text's own, the emitter adds quotes."""
    try:
        read = scalars.resolve(value)
    except OverflowError:
        read = 0
    kind = "merge" if value == "<<" else "null" if read is None else type(read).__name__
    return f"tag:yaml.org,2002:{kind}"
