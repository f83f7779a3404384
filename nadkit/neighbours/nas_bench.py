"""Tables of trained accuracies of many architectures, such as NAS-Bench-201's, from a plain file.

The tables of NAS-Bench-201 come pickled, and unpickling runs whatever code a file holds. So this module reads CSV or
JSON, to which their API exports in a few lines: the text of each architecture and its accuracy.
"""

import json

import pandas as pd

from nadkit import checks, files
from nadkit.files import DataError
from nadkit.neighbours.cells import operations

COLUMNS = ("cell", "accuracy")


@checks.typed
def read(path: str) -> pd.DataFrame:
    """Return the table in a file: a row per cell, its text (`nadkit.neighbours.cells`) and its accuracy in percent.

    Args:
        path: of a ``.csv`` file, or of a ``.json`` file that holds a list of objects, or an object of lists; other
            columns than ``cell`` and ``accuracy`` are left out. It may be in a data folder.

    Raises:
        DataError: no such file, of another kind, damaged, without these columns or rows, with a text that is not a
            cell, a cell that comes twice, or an accuracy that is not a number from 0 to 100.
    """
    file = next((p for p in (files.expanded(path), files.find(path)) if p is not None and p.is_file()), None)
    if file is None:
        raise DataError(f"bench {path!r}: no such file; {files.describe_search([path])}")
    if file.suffix.lower() not in (".csv", ".json"):
        raise DataError(
            f"bench {path!r}: expected a .csv or .json file with the columns {', '.join(COLUMNS)}; others, pickled "
            "ones above all, are not opened, for that may run code: export what you need"
        )
    try:
        table = pd.read_csv(file) if file.suffix.lower() == ".csv" else pd.DataFrame(json.loads(file.read_text()))
    except (ValueError, TypeError, AttributeError, pd.errors.ParserError) as error:
        raise DataError(f"bench {path!r}: cannot be read: {error}") from error
    if missing := [column for column in COLUMNS if column not in table.columns]:
        came = ", ".join(map(str, table.columns)) or "none"
        raise DataError(
            f"bench {path!r}: expected the columns {', '.join(COLUMNS)}, {missing[0]} is missing; got {came}"
        )
    return _checked(path, table[[*COLUMNS]])


def _checked(path: str, table: pd.DataFrame) -> pd.DataFrame:
    if not len(table):
        raise DataError(f"bench {path!r}: expected a row for each cell, got none")
    accuracy = pd.to_numeric(table.accuracy, errors="coerce")
    for row, (cell, value) in enumerate(zip(table.cell, accuracy, strict=True), start=1):
        try:
            operations(cell)
        except ValueError as error:
            raise DataError(f"bench {path!r}, row {row}: {error}") from error
        if not 0 <= value <= 100:
            given = table.accuracy.iloc[row - 1]
            raise DataError(f"bench {path!r}, row {row}: accuracy: expected 0 to 100 (percent), got {given!r}")
    cells = table.cell.str.strip()
    if cells.duplicated().any():
        raise DataError(f"bench {path!r}: expected each cell once, {cells[cells.duplicated()].iloc[0]} comes twice")
    return pd.DataFrame({"cell": cells, "accuracy": accuracy.astype(float)}).reset_index(drop=True)
