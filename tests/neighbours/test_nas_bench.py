"""Tables of trained accuracies: CSV and JSON, and nothing that could run code."""

import json
import pickle

import pytest

from nadkit.files import DataError
from nadkit.neighbours import nas_bench
from nadkit.neighbours.cells import random_cells

CELLS = random_cells(3)
ROWS = [{"cell": cell, "accuracy": 80.5 + i, "seed": 777} for i, cell in enumerate(CELLS)]


def csv_of(rows, columns=("cell", "accuracy", "seed")):
    return "\n".join([",".join(columns), *(",".join(str(row[name]) for name in columns) for row in rows)])


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def test_csv_and_json_give_the_same_table(tmp_path, monkeypatch):
    lists = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    texts = {"a.csv": csv_of(ROWS), "b.json": json.dumps(ROWS), "c.json": json.dumps(lists)}
    for name, text in texts.items():
        table = nas_bench.read(write(tmp_path, name, text))
        assert [*table.columns] == ["cell", "accuracy"]
        assert table.cell.tolist() == CELLS
        assert table.accuracy.tolist() == [80.5, 81.5, 82.5]
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path))
    assert nas_bench.read("a.csv").cell.tolist() == CELLS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            csv_of(ROWS, ("cell", "seed")),
            "expected the columns cell, accuracy, accuracy is missing; got cell, s",
        ),
        ("a.csv", "arch,acc\nx,1", "expected the columns cell, accuracy, cell is missing; got arch, acc"),
        ("a.json", '{"a": 1}', "cannot be read"),
        ("a.json", "[1, 2]", "cell is missing"),
        ("a.json", "[]", "cell is missing; got none"),
        ("a.json", "{", "cannot be read"),
        ("a.csv", "", "cannot be read"),
        ("a.csv", "cell,accuracy\n", "expected a row for each cell, got none"),
        ("a.csv", csv_of([ROWS[0], ROWS[0]]), "expected each cell once"),
        (
            "a.csv",
            csv_of([{**ROWS[0], "accuracy": "good"}]),
            "row 1: accuracy: expected 0 to 100 .percent., got 'good'",
        ),
        ("a.csv", csv_of([ROWS[0], {**ROWS[1], "accuracy": 101}]), "row 2: accuracy: expected 0 to 100"),
        ("a.csv", csv_of([{**ROWS[0], "cell": "|none~0|"}]), "row 1: cell: expected six operations"),
        ("a.csv", csv_of([{**ROWS[0], "cell": ""}]), "row 1: cell: expected"),
        ("a.txt", csv_of(ROWS), "expected a .csv or .json file"),
    ],
)
def test_other_tables_are_refused(tmp_path, name, text, message):
    with pytest.raises(DataError, match=f"bench .*{name}.*{message}"):
        nas_bench.read(write(tmp_path, name, text))


class Bomb:
    """Unpickling this would raise."""

    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


@pytest.mark.parametrize("name", ["bench.pth", "bench.pkl", "bench.csv", "bench.json"])
def test_nothing_is_unpickled(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        nas_bench.read(str(tmp_path / name))


def test_a_missing_file_is_looked_for_in_the_data_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"bench 'gone.csv': no such file; looked for gone.csv in {tmp_path}"):
        nas_bench.read("gone.csv")
