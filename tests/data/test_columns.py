import subprocess
import sys
from pathlib import Path

import pytest

from hpctrain.config.datasets import TableArgs
from hpctrain.data.columns import count, read
from hpctrain.errors import UsageError

TABLE = "sex,length,note,rings\nM,0.5,x,15\nF,0.25,y,7\nM,1e-1,z,9\n"
ARGS = {"target": "rings", "categories": ("sex",), "leave_out": ("note",)}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(TABLE)
    return path


def test_columns_are_what_the_config_says(file):
    held = read(file, TableArgs(**ARGS))
    assert held.numbers.tolist() == [0.5, 15, 0.25, 7, 0.1, 9]
    assert [codes.tolist() for codes in held.words] == [[0, 1, 0]]
    assert held.vocabularies == ({"M": 0, "F": 1},)
    assert held.lines.tolist() == [2, 3, 4]
    assert count(file, TableArgs(**ARGS)) == 3


def test_names_may_stand_in_the_config(file):
    names = ("sex", "length", "note", "rings")
    file.write_text(TABLE.split("\n", 1)[1])
    assert read(file, TableArgs(**ARGS, columns=names)).lines.tolist() == [1, 2, 3]
    assert count(file, TableArgs(**ARGS, columns=names)) == 3


def test_the_target_of_a_classification_is_a_column_of_words(file):
    held = read(file, TableArgs(target="rings", task="classification", leave_out=("note", "sex")))
    assert held.numbers.tolist() == [0.5, 0.25, 0.1]
    assert held.vocabularies == ({"15": 0, "7": 1, "9": 2},)


@pytest.mark.parametrize("columns", [(), ("sex", "length", "note", "rings")])
@pytest.mark.parametrize("quoted", [False, True])
def test_many_rows_are_counted_without_being_read(file, columns, quoted):
    head, body = TABLE.split("\n", 1)
    body = body.replace("M", '"M"') if quoted else body
    file.write_text(f"{'' if columns else head}\n{body * 500}")
    assert count(file, TableArgs(**ARGS, columns=columns)) == 1500


def said(file, old, new, **changes):
    file.write_text(TABLE.replace(old, new))
    with pytest.raises(UsageError) as caught:
        count(file, TableArgs(**ARGS | changes))
    return str(caught.value).replace(str(file), "t.csv")


WORDS = "  if it holds words: data.args.categories=[length]"
MISSING = "remove such lines, or leave the column out: data.args.leave_out"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (TABLE, "", "t.csv: is empty\n  give a CSV file: data.path=FILE"),
        ("F,0.25,y,7", "F,0.25,7", "t.csv:3: has 3 columns, 4 are expected\n  see data.args.delimiter"),
        ("F,0.25", ",0.25", f"t.csv:3: column 'sex' is empty\n  {MISSING}"),
        ("F,0.25", "F, ", f"t.csv:3: column 'length' is empty\n  {MISSING}"),
        ("F,0.25", "F,NaN", f"t.csv:3: column 'length' is 'NaN', which is not finite\n  {MISSING}"),
        ("F,0.25", "F,1e999", f"t.csv:3: column 'length' is '1e999', which is not finite\n  {MISSING}"),
        (
            "F,0.25",
            "F,?",
            f"t.csv:3: column 'length' is '?', which is no number\n{WORDS}; else {MISSING}",
        ),
        (
            "y,7",
            "y,many" * 12,
            "t.csv:3: column 'rings' is 'manyy,manyy,manyy,manyy,manyy,manyy,m...', which is no number",
        ),
        ("length", "sex", "t.csv:1: the header has 'sex' twice\n  correct it; each column needs a name of its own"),
        (
            "length",
            "",
            "t.csv:1: the header has no name for column 2\n  correct it; each column needs a name of its own",
        ),
        (
            "sex,length,note,rings",
            "1,2,3,4",
            "t.csv:1: the first line holds numbers, not the names of columns\n  name them, in their order: data.args",
        ),
        (
            "rings",
            "Rings",
            "t.csv:1: data.args.target: there is no column 'rings'; did you mean 'Rings'? the columns are: sex,",
        ),
    ],
)
def test_a_wrong_table_is_told_with_its_line_and_column(file, old, new, message):
    if "many" in new:
        new = 'y,"' + "manyy," * 12 + '"'
    assert said(file, old, new).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "ring"}, "t.csv:1: data.args.target: there is no column 'ring'; did you mean 'rings'? the columns"),
        ({"categories": ("sex", "colour")}, "t.csv:1: data.args.categories: there is no column 'colour'; the columns"),
        ({"leave_out": ("note", "length", "sex"), "categories": ()}, "t.csv:1: data.args.leave_out: no column is left"),
        (
            {"columns": ("sex", "length", "note", "rings")},
            "t.csv:1: the first line has the names of the columns\n  remove data.args.columns",
        ),
        (
            {"columns": ("sex", "rings"), "leave_out": ()},
            "t.csv:1: has 4 columns, 2 are expected\n  see data.args.columns and data.args.delimiter",
        ),
        (
            {"target": "sex", "categories": ()},
            "t.csv:2: column 'sex' is 'M', which is no number\n  if it holds the names of classes: data.args.task",
        ),
    ],
)
def test_wrong_roles_are_told_with_the_columns_there_are(file, changes, message):
    assert said(file, "", "", **changes).startswith(message)


def test_a_column_that_names_each_sample_is_no_category(file):
    file.write_text("name,y\n" + "".join(f"n{row},1\n" for row in range(1001)))
    with pytest.raises(UsageError) as caught:
        read(file, TableArgs(target="y", categories=("name",)))
    assert str(caught.value) == (
        f"{file}:1002: column 'name' has more than 1000 different words\n"
        "  leave it out (data.args.leave_out) if it names the sample"
    )


def test_reading_tables_on_the_login_node_needs_neither_torch_nor_numpy():
    code = "import sys, hpctrain.data.columns; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_real_abalones_are_counted(abalone):
    names = ("sex", "length", "diameter", "height", "whole", "shucked", "viscera", "shell", "rings")
    assert count(abalone, TableArgs(columns=names, target="rings", categories=("sex",))) == 4177
