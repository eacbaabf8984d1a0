import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hpctrain.config import reference, schema
from hpctrain.config.duration import PATTERN, Duration
from hpctrain.config.fields import fields, take_apart

DOCS = Path(__file__).parents[2] / "docs"


def classes() -> list[type[msgspec.Struct]]:
    return [
        kind
        for kind in vars(schema).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in {msgspec.Struct, Duration}
    ]


@pytest.mark.parametrize("kind", classes())
def test_every_key_has_a_meaning(kind):
    docs = reference.meanings()
    assert kind.__doc__
    for key, field in fields(kind).items():
        assert reference.is_section(field.spec) or any(
            docs.get(home.__name__, {}).get(field.name) for home in kind.__mro__
        ), f"{kind.__name__}.{key}"
        assert reference.meaning(kind, field, docs).endswith((".", "]."))


def test_the_docs_are_fresh():
    command = [sys.executable, "-m", "hpctrain.config.reference", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=DOCS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stale_docs_are_shown_with_the_command_that_renews_them(tmp_path, capsys):
    assert reference.main([], tmp_path) == 0
    assert reference.main(["--check"], tmp_path) == 0
    path = tmp_path / "config.md"
    path.write_text(path.read_text().replace("Nodes of the job.", "Nodes."))
    assert reference.main(["--check"], tmp_path) == 1
    out, err = capsys.readouterr()
    assert "-| `nodes` | a whole number of at least 1 | `1` | Nodes. |\n+| `nodes`" in out
    assert err == "docs are stale; renew them with: python -m hpctrain.config.reference\n"


def test_every_key_is_in_the_reference():
    text = (DOCS / "config.md").read_text()
    for path, kind in reference.sections():
        table = text.split(f"\n## {f'`{path}`' if path else 'Top level'}\n")[1].split("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(fields(kind))


def test_the_json_schema_confines_as_the_schema_does():
    made = json.loads((DOCS / "config.schema.json").read_text())
    assert made["required"] == ["name"]
    assert made["additionalProperties"] is False
    slurm = made["properties"]["slurm"]
    assert slurm["type"] == ["object", "null"]
    assert slurm["additionalProperties"] is False
    assert slurm["properties"]["nodes"]["minimum"] == 1
    assert slurm["properties"]["mem"]["type"] == ["string", "null"]
    assert slurm["properties"]["mem"]["pattern"] == "^(?:[1-9][0-9]{0,8}[KMGT])$"
    assert made["properties"]["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert made["properties"]["log"]["properties"]["every"]["pattern"] == f"^(?:{PATTERN})$"
    assert made["properties"]["optim"]["properties"]["lr"]["exclusiveMinimum"] == 0
    arguments = made["properties"]["model"]["allOf"]
    assert [entry["if"]["properties"]["name"]["const"] for entry in arguments] == list(schema.MODEL_ARGS)
    assert arguments[0]["then"]["properties"]["args"]["additionalProperties"] is False


def test_choices_that_a_pattern_widens_are_either(load):
    name = json.loads((DOCS / "config.schema.json").read_text())["properties"]["model"]["properties"]["name"]
    assert name["anyOf"][0] == {"enum": list(schema.MODEL_ARGS)}
    assert re.search(name["anyOf"][1]["pattern"], "pkg.mod:fn")


@pytest.mark.parametrize("annotation", [list[int] | str, set[int], int | str, "int"])
def test_a_type_that_configs_are_not_written_in_is_our_bug(annotation):
    with pytest.raises(TypeError, match="a config field cannot be"):
        take_apart(annotation)
