"""Writes docs/config.md and docs/config.schema.json from the schema: `python -m hpctrain.config.reference [--check]`.

For developers: nothing else imports this module. The meaning of a key is the docstring under its field.
"""

import ast
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from hpctrain.config import cluster, datasets, optim, schema
from hpctrain.config.duration import PATTERN, Duration
from hpctrain.config.fields import Field, Spec, fields
from hpctrain.config.values import CHOSEN

_HOMES = (schema, optim, cluster, datasets)

RENEW = "python -m hpctrain.config.reference"

_HEAD = f"""# The config file

Made by `{RENEW}` from the classes of `hpctrain/config/`; change it there.

One YAML file is one run: `hpctrain check CONFIG [key.sub=value ...]` names every mistake in it. It is read by the rules
of YAML 1.2, and each value by the type of its key: `time: 12:00:00` and `name: no` are text, `lr: 1e-3` is a number.
A length is written as `5 epochs`, `1000 steps` or `10 %` (of the training). Duplicate keys, merge keys (`<<`) and tags
are errors.

For completion in an editor, start the file with `# yaml-language-server: $schema=` and the path or address of
[config.schema.json](config.schema.json).
"""

_NUMBERS: dict[type, str] = {int: "integer", float: "number", bool: "boolean"}
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def meanings() -> dict[str, dict[str, str]]:
    """Return the docstring under each field, by class and attribute."""
    trees = [ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8")) for module in _HOMES]
    return {
        node.name: dict(_docstrings(node)) for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)
    }


def _docstrings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, doc in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
            text = doc.value.value if isinstance(doc.value, ast.Constant) else ""
            if isinstance(text, str):
                yield field.target.id, " ".join(text.split())


def meaning(kind: type[Struct], field: Field, docs: dict[str, dict[str, str]]) -> str:
    """Return what a key means; for a section without a docstring of its field, its class says."""
    texts = (docs[home.__name__].get(field.name) for home in kind.__mro__ if home.__name__ in docs)
    return next(filter(None, texts), None) or " ".join((field.spec.base.__doc__ or "").split())


def sections() -> Iterator[tuple[str, type[Struct]]]:
    """Yield the dotted path and class of every section, in the order of the file."""
    yield "", schema.Config
    yield from _inside("", schema.Config)


def _inside(path: str, kind: type[Struct]) -> Iterator[tuple[str, type[Struct]]]:
    for key, field in fields(kind).items():
        if is_section(field.spec):
            yield f"{path}{key}", field.spec.base
            yield from _inside(f"{path}{key}.", field.spec.base)


def is_section(spec: Spec) -> bool:
    """Say whether a value is a section of keys, rather than a single value or a list."""
    return issubclass(spec.base, Struct) and spec.base is not Duration


def markdown() -> str:
    """Return docs/config.md."""
    docs = meanings()
    parts = [_HEAD]
    for path, kind in sections():
        parts.append(_table(f"`{path}`" if path else "Top level", kind, docs))
        if kind in CHOSEN:
            _, classes = CHOSEN[kind]
            parts += [
                _table(f"`{path}.args` of {name}", arguments, docs)
                for name, arguments in classes.items()
                if fields(arguments)
            ]
    return "\n".join(parts)


def _table(title: str, kind: type[Struct], docs: dict[str, dict[str, str]]) -> str:
    lines = [
        f"## {title}",
        "",
        " ".join((kind.__doc__ or "").split()),
        "",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
    ]
    for key, field in fields(kind).items():
        value = "a section" if is_section(field.spec) else field.spec.expect
        row = (f"`{key}`", _cell(value), _cell(_default(field)), _cell(meaning(kind, field, docs)))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(field: Field) -> str:
    if field.required:
        return "**required**"
    if is_section(field.spec) or field.default in (None, ""):
        return ""
    return f"`{json.dumps(_jsonable(field.default), ensure_ascii=False)}`".replace('"', "")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    return [_jsonable(item) for item in value] if isinstance(value, tuple) else value


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema that editors complete and check by."""
    docs = meanings()
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "hpctrain config",
        "$comment": f"Made by {RENEW}; do not edit.",
    }
    return head | _object(schema.Config, docs)


def _object(kind: type[Struct], docs: dict[str, dict[str, str]]) -> dict[str, Any]:
    properties = {}
    for key, field in fields(kind).items():
        entry = {"description": meaning(kind, field, docs)} | _value(field.spec, docs)
        if not field.required and field.default is not None and not is_section(field.spec):
            entry["default"] = _jsonable(field.default)
        properties[key] = entry
    made: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    if required := [key for key, field in fields(kind).items() if field.required]:
        made["required"] = required
    if kind in CHOSEN:
        by, classes = CHOSEN[kind]
        made["allOf"] = [
            {
                "if": {"properties": {by: {"const": name}}, "required": [by]},
                "then": {"properties": {"args": _object(arguments, docs)}},
            }
            for name, arguments in classes.items()
        ]
    return made


def _value(spec: Spec, docs: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return the schema of one value."""
    made: dict[str, Any]
    if is_section(spec):
        made = _object(spec.base, docs)
    elif spec.base is Duration:
        made = {"type": "string", "pattern": f"^(?:{PATTERN})$"}
    elif spec.base is tuple:
        made = _array(spec, docs)
    elif spec.base is str:
        made = _string(spec)
    elif spec.base in _NUMBERS:
        limits = {_LIMITS[name]: limit for name, limit in spec.bounds.items()}
        made = {"type": _NUMBERS[spec.base], **limits}
    else:
        made = {"type": "object"}
    if spec.optional or is_section(spec):
        made["type"] = [made["type"], "null"]
    return made


def _array(spec: Spec, docs: dict[str, dict[str, str]]) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": _value(spec.items[0], docs)}
    if least := spec.bounds.get("min_length", 0 if spec.endless else len(spec.items)):
        made["minItems"] = least
    if not spec.endless:
        made["maxItems"] = len(spec.items)
    return made


def _string(spec: Spec) -> dict[str, Any]:
    """Text; a bare number is text too where hpctrain reads text, but an editor sees a number."""
    made: dict[str, Any] = {}
    if spec.choices:
        made = {"enum": list(spec.choices)}
    if spec.pattern is not None:
        pattern = {"type": "string", "pattern": f"^(?:{spec.pattern})$"}
        return {"anyOf": [made, pattern]} if made else pattern
    return made or {"type": ["string", "number", "boolean"]}


def documents() -> dict[str, str]:
    """Return the files of docs/ that are made here, by name."""
    return {
        "config.md": markdown(),
        "config.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
    }


def main(arguments: list[str], folder: Path) -> int:
    """Write the documents into a folder, or with `--check` say how they differ; return the exit code."""
    stale = False
    for name, text in documents().items():
        path = folder / name
        if arguments != ["--check"]:
            path.write_text(text, encoding="utf-8")
            continue
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        if found != text:
            stale = True
            lines = difflib.unified_diff(
                found.splitlines(keepends=True), text.splitlines(keepends=True), str(path), "as the schema has it"
            )
            sys.stdout.writelines(lines)
    if stale:
        sys.stderr.write(f"docs are stale; renew them with: {RENEW}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parents[2] / "docs"))
