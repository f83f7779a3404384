"""Collect: what finished runs stored, and one table of many of them."""

import base64
import itertools
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nadkit import files
from nadkit.book import claims
from nadkit.book.chapters import BadInput, cell_source, cell_tags, read_notebook
from nadkit.book.claims import Claims
from nadkit.book.parameters import parse_parameters
from nadkit.book.results import FINISHED, MIME, PDF, Scalar, Table, checked, data_words

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Stored:
    """What an executed notebook holds of `made_with`, `keep` and `show`, and its parameters in their order."""

    device: str | None = None
    data: list[Mapping[str, str | None]] = field(default_factory=list)
    numbers: dict[str, Scalar] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)


def stored(path: Path) -> Stored:
    """Return what the executed notebook at `path` stores.

    Raises:
        BadInput: the notebook or its store is damaged, or two results have one name.
    """
    notebook = read_notebook(path)
    device, data, numbers, tables = None, [], {}, {}
    try:
        for store in claims.stores(notebook, MIME):
            device = store.get("device", device)
            data += [{key: item[key] for key in ("name", "kind", "sha256")} for item in store.get("data", [])]
            _add(numbers, store.get("numbers", {}))
            _add(tables, {name: checked(table) for name, table in store.get("tables", {}).items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: the results stored in it cannot be read: {error}") from error
    return Stored(device, data, numbers, tables, _parameters(notebook))


@dataclass(frozen=True)
class Shown:
    """What an executed notebook shows of a table: HTML, and the caption of its picture if the chapter gave one."""

    page: str
    caption: str = ""


def shown(path: Path) -> dict[str, Shown]:
    """Return by name what the executed notebook at `path` shows of its tables."""
    outputs = (output for cell in read_notebook(path)["cells"] for output in cell.get("outputs", []))
    return dict(pair for output in outputs for pair in shown_by(output).items())


def shown_by(output: Mapping[str, Any]) -> dict[str, Shown]:
    """Return by name what an output shows of a table, stored or too large for that; most outputs show none."""
    store = output.get("metadata", {}).get(MIME, {})
    page = "".join(output.get("data", {}).get("text/html", ""))
    captions = dict.fromkeys(store.get("tables", {}), "") | store.get("captions", {})
    return {name: Shown(page, caption) for name, caption in captions.items()}


def keeps_numbers(output: Mapping[str, Any]) -> bool:
    """Return whether an output shows the numbers that `results.keep` stores."""
    return "numbers" in output.get("metadata", {}).get(MIME, {})


@dataclass(frozen=True)
class Drawing:
    """A picture of an executed notebook: its name, a PNG, and a PDF if the run kept one."""

    name: str
    png: bytes
    pdf: bytes | None


def drawings(path: Path) -> list[Drawing]:
    """Return the pictures that the executed notebook at `path` shows, in their order.

    Each is named after the table that it shows or the cell that displays it. Of several in tabs or in one cell, the
    first has that name alone, and the others have a number after it.
    """
    found: list[Drawing] = []
    for cell in read_notebook(path)["cells"]:
        for output in cell.get("outputs", []):
            data, named = output.get("data", {}), list(shown_by(output))
            if "image/png" in data:
                pairs = [("".join(data["image/png"]), "".join(data.get("application/pdf", "")))]
            else:
                images = re.findall(r'<img src="data:image/png;base64,([^"]+)"', "".join(data.get("text/html", "")))
                pairs = list(itertools.zip_longest(images, output.get("metadata", {}).get(PDF, [])[: len(images)]))
            name = named[0] if named else cell.get("id", "figure")
            before = sum(bool(re.fullmatch(rf"{re.escape(name)}(-\d+)?", drawing.name)) for drawing in found)
            for number, (png, pdf) in enumerate(pairs, start=before + 1):
                own = f"{name}-{number}" if number > 1 else name
                found.append(Drawing(own, base64.b64decode(png), base64.b64decode(pdf) if pdf else None))
    return found


def write_drawings(path: Path, folder: Path) -> list[Drawing]:
    """Write the pictures of the executed notebook at `path` as NAME.png and NAME.pdf into `folder`, and return them.

    Raises:
        BadInput: there is no such notebook.
        DataError: a file cannot be written.
    """
    found = drawings(path)
    for drawing in found:
        for suffix, content in (("png", drawing.png), ("pdf", drawing.pdf)):
            if content:
                folder.mkdir(parents=True, exist_ok=True)
                with files.atomic_write(folder / f"{drawing.name}.{suffix}") as part:
                    part.write_bytes(content)
    return found


def _parameters(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run in the order in which its chapter declares them: JSON does not keep it."""
    values = notebook["metadata"].get("nadkit", {}).get("parameters", {})
    declared: list[str] = []
    for cell in notebook["cells"]:
        if "parameters" in cell_tags(cell):
            with suppress(ValueError):
                declared += parse_parameters(cell_source(cell))
    return {name: values[name] for name in [*declared, *values] if name in values}


def _add(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    if twice := known.keys() & more.keys():
        raise ValueError(f"there are two called {min(twice)!r}; give each a name of its own")
    known.update(more)


# ---- many runs as one table ----------------------------------------------------------------------
def collect(folder: Path) -> "pd.DataFrame":
    """Return one row for each finished run below `folder`: parameters, numbers kept, claims, provenance.

    A number whose name is already taken becomes `result.NAME`; a fact of the run that shares its name with a parameter
    becomes `run.NAME`.

    Raises:
        BadInput: there is no finished run, or a notebook is damaged.
    """
    import pandas as pd

    folder = Path(folder)
    runs = [run for run in claims.read(folder) if run.record.get("status") == FINISHED]
    if not runs:
        raise BadInput(f"{folder}: no finished run below this folder; 'nadkit run' and 'nadkit sweep' make some")
    both = sorted(((run, stored(run.path)) for run in runs), key=_natural)
    parameters = [{name: _words(value) for name, value in kept.parameters.items()} for _, kept in both]
    facts = [_facts(run, folder, kept) for run, kept in both]
    asked = {name for row in parameters for name in row}
    taken = asked | {name for row in facts for name in row}
    parts = [
        parameters,
        [_renamed(kept.numbers, "result", taken) for _, kept in both],
        [_claimed(run.claims) for run, _ in both],
        [_renamed(row, "run", asked) for row in facts],
    ]
    return pd.concat([pd.DataFrame(part, index=range(len(runs))) for part in parts], axis=1)


def to_json(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return the rows of a table as plain data, with all digits; what is missing or not finite is None."""
    finite = table.notna() & ~table.isin([math.inf, -math.inf])
    return table.astype(object).where(finite, None).to_dict("records")


def write(table: "pd.DataFrame", path: Path) -> None:
    """Write a table as .csv or .parquet, whole or not at all.

    Raises:
        BadInput: the suffix is neither of the two, or a column has values that no single type of .parquet holds.
        DataError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise BadInput(f"{path}: expected a file called NAME.csv or NAME.parquet")
    with files.atomic_write(path) as part:
        if path.suffix == ".csv":
            table.to_csv(part, index=False)
            return
        try:
            table.to_parquet(part, index=False)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path}: {error}; a .csv file takes any column") from error


def _natural(both: tuple[claims.Run, Stored]) -> tuple:
    """Return the key that sorts runs by chapter and parameters, with 2 before 10 in words as well."""
    run, kept = both
    return run.record["chapter"], [_order(value) for value in kept.parameters.values()], str(run.path)


def _order(value: Scalar | list) -> tuple:
    match value:
        case None:
            return (0,)
        case bool() | int() | float():
            return (1, value)
        case str():
            return (2, [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", value)])
    return (3, [_order(item) for item in value])


def _words(value: Scalar | list) -> Scalar:
    return "+".join(map(str, value)) if isinstance(value, list) else value


def _renamed(row: Mapping[str, Scalar], prefix: str, taken: set[str]) -> dict[str, Scalar]:
    return {f"{prefix}.{name}" if name in taken else name: value for name, value in row.items()}


def _claimed(made: Claims) -> dict[str, Scalar]:
    columns = [
        {f"claim.{claim.id}": claim.measured, f"error.{claim.id}": claim.error, f"verdict.{claim.id}": claim.verdict}
        for claim in made
    ]
    return {name: value for pair in columns for name, value in pair.items()}


def _facts(run: claims.Run, folder: Path, kept: Stored) -> dict[str, Scalar]:
    record = run.record
    versions = record.get("versions", {})
    return {
        **{name: record.get(name) for name in ("chapter", "profile", "started", "seconds", "commit")},
        "experiment": (record.get("experiment") or "")[:8] or None,
        **{name: versions.get(name) for name in ("torch", "nadkit")},
        "platform": record.get("platform"),
        "device": kept.device,
        "data": "; ".join(map(data_words, kept.data)) or None,
        "file": str(run.path if run.path == folder else run.path.relative_to(folder)),
    }
