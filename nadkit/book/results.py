"""Results: what chapters keep and show.

A chapter says with `made_with` what it computes on, `keep`s numbers and `show`s small tables; all of them are
stored in the executed notebook, beside what people see. `nadkit.book.collect` reads them back.
`show` also displays the recorded results of big runs (`nadkit.book.records`) beside those of this run.
"""

import html
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nadkit.book import executors, pages, prints
from nadkit.names import with_error

if TYPE_CHECKING:  # a chapter imports what it needs of these; `nadkit --help` needs none
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from nadkit.book.records import Record
    from nadkit.data.images import ImageSet
    from nadkit.inputs.basis import Basis

# The key of results in the metadata of the output that shows them.
MIME = "application/vnd.nadkit.results+json"
# That of its pictures as PDF, in the order of the tabs, for slides.
PDF = "application/vnd.nadkit.pdf"
ANSWERS = "found"
"""The table of a chapter's answers (see `nadkit.book.answers`)."""
UNSEEN = "NADKIT_UNSEEN"
"""The variable that says that nobody looks at a run: its numbers are compared, and nothing is drawn."""
MOST_CELLS = 5_000
"""Maximum cells of a table that is stored: people read it in a diff."""
DIGITS = 6
# A table with more columns than the first and no more rows than the second is transposed.
WIDE, LOW = 8, 3
FINISHED = "finished"
# Today's code gives other numbers than a record.
DIFFERS = "differs"
NOT_DRAWN = "It could not be drawn"

Scalar = str | int | float | bool | None
Table = Mapping[str, list]
"""A table as plain data: its `columns`, and its `rows`."""
Panel = tuple[str, str, str]
"""The label of a tab, what it shows as HTML, and of a drawing the PDF."""


# ---- in a chapter --------------------------------------------------------------------------------


def checkpoint(name: str) -> Path | None:
    """Return where a long computation of this run may keep its state, so that the run's next try goes on from it.

    None outside `nadkit`, where nothing would look for it.
    """
    folder = os.environ.get("NADKIT_CHECKPOINTS")
    if not folder:
        return None
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def resumable(name: str, device: "str | torch.device") -> dict[str, Any]:
    """Return the options of a chapter's long computation, so that a run can be watched, distributed and resumed.

    They are the device, the run's executor (`executors.given`), where to keep its state (`checkpoint`), and a progress
    bar: `training.fit_networks(..., **results.resumable("networks", device))`.
    """
    return {"device": device, "executor": executors.given(), "checkpoint": checkpoint(name), "progress": True}


def made_with(device: "str | torch.device", /, **data: "ImageSet | Basis | str") -> None:
    """Store and display what a run computes on: its device, and its data sets with their checksums.

    A data set is given under the name that readers know it by: images, directions, or words.

    Raises:
        ValueError: there is no such device, or something else is given as data.
    """
    # On workers, where the run has some: they do the computing.
    executor = executors.given()
    name = executor.submit(_device, str(device)).result() if executor else _device(device)
    store = {"device": name, "data": [_described(name, item) for name, item in data.items()]}
    _display(store, "; ".join([f"device: {store['device']}", *map(data_words, store["data"])]))


def keep(**numbers: object) -> None:
    """Store and display numbers, words, True, False or None, which become columns of `nadkit collect`.

    They are rounded to six digits; what is not a finite number becomes None.

    Raises:
        ValueError: something else is given.
    """
    plain = {name: _plain(name, value) for name, value in numbers.items()}
    _display({"numbers": plain}, "\n".join(f"{name} = {value}" for name, value in plain.items()))


def show(
    name: str,
    table: "pd.DataFrame",
    draw: "Callable[[pd.DataFrame], Figure] | None" = None,
    *,
    alt: str,
    caption: str = "",
    recorded: Sequence["Record"] = (),
) -> None:
    """Store a small table and display it, drawn by `draw` if given; in tabs beside it the same of recorded runs.

    Recorded runs that hold come first, because they are the better evidence; those that count most are in front. `draw`
    gets every table as it is stored, rounded to six digits. `alt` says in words what there is to see. `caption` stands
    below it on the page; by default it is the first sentence of `alt`. A table of over 5,000 cells is drawn, or its
    first rows are shown, but it is not stored, and a message says so: a long run should not fail at its end.

    Raises:
        ValueError: the table has an index or columns without names of their own, or holds anything but numbers and
            words.
    """
    store = _to_plain(name, table)
    frame = to_frame(store)
    too_large = frame.size > MOST_CELLS
    rows = max(1, MOST_CELLS // len(frame.columns)) if too_large and draw is None else len(frame)
    panels = [] if UNSEEN in os.environ else _panels(name, frame.head(rows), draw, alt, recorded)
    shown = [(label, content) for label, content, _ in panels]
    page = pages.tabs(shown) if len(shown) > 1 else "".join(content for _, content in shown)
    kept = {} if too_large else {"tables": {name: store}}
    kept |= {"captions": {name: caption}} if caption or too_large else {}
    pdfs = [pdf for _, _, pdf in panels if pdf]
    text = f"{alt}\n{frame.to_string(index=False, max_rows=20)}"
    if too_large:
        note = f"Table {name!r} has {frame.size:,} cells. It is not stored: a run keeps tables of up to {MOST_CELLS:,}."
        note += f" Its first {rows:,} rows of {len(frame):,} are shown." if rows < len(frame) else ""
        text, page = f"{text}\n{note}", f"{page}<p>{html.escape(note)}</p>"
    _display(kept, text, page, pdfs)


def show_recorded(
    name: str,
    draw: "Callable[[pd.DataFrame], Figure] | None" = None,
    *,
    alt: str,
    caption: str = "",
    recorded: Sequence["Record"],
) -> None:
    """Display a table that recorded runs have and this one does not, as `show` displays those of recorded runs.

    Nothing is stored. Where no recorded run has the table, nothing is displayed.
    """
    if any(name in record.tables for record in recorded):
        panels = [] if UNSEEN in os.environ else [*itertools.chain(*_of_records(name, draw, alt, recorded))]
        page = pages.tabs([(label, content) for label, content, _ in panels]) if panels else ""
        _display({"captions": {name: caption}}, alt, page, [pdf for _, _, pdf in panels if pdf])


def _panels(
    name: str,
    frame: "pd.DataFrame",
    draw: "Callable[[pd.DataFrame], Figure] | None",
    alt: str,
    recorded: Sequence["Record"],
) -> list[Panel]:
    """Return this run's panel, after the recorded ones that hold and before those that do not."""
    hold, differ = _of_records(name, draw, alt, recorded)
    return [*hold, ("this run", *_drawn(frame, draw, alt)), *differ]


def _of_records(
    name: str, draw: "Callable[[pd.DataFrame], Figure] | None", alt: str, recorded: Sequence["Record"]
) -> tuple[list[Panel], list[Panel]]:
    """Return the panels of the recorded runs that hold, those that count most in front, and of the others."""
    own = sorted((record for record in recorded if name in record.tables), key=lambda record: record.rank)
    hold = [(f"recorded: {r.words}", *_of_record(r, name, draw, alt)) for r in own if r.counts]
    return hold, [(f"recorded: {r.words} ({DIFFERS})", *_of_record(r, name, draw, alt)) for r in own if not r.counts]


def recorded(chapter: str) -> list["Record"]:
    """Return the records of a chapter of the book that the current folder is in (`records.recorded`)."""
    from nadkit.book import records

    return records.recorded(chapter)


def _display(store: Mapping[str, Any], text: str, page: str = "", pdfs: Sequence[str] = ()) -> None:
    from IPython.display import display

    data = {"text/plain": text} | ({"text/html": page} if page else {})
    # In the metadata: if it were one more format of the output, Sphinx would warn that it cannot render the store.
    more = {PDF: list(pdfs)} if pdfs else {}
    display(data, metadata={MIME: {"version": 1, **store}, **more}, raw=True)


# ---- plain data ----------------------------------------------------------------------------------


def _plain(what: str, value: object) -> Scalar:
    with suppress(AttributeError, RuntimeError, ValueError):
        value = value.item()  # numpy's and torch's scalars become Python's
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    raise ValueError(f"{what}: expected a number, a string, True, False or None, got {value!r:.60}")


def _to_plain(name: str, table: "pd.DataFrame") -> dict[str, list]:
    if list(table.index) != list(range(len(table))):
        raise ValueError(f"table {name!r}: expected rows numbered from 0; reset_index() makes columns of the index")
    columns = list(table.columns)
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) < len(columns):
        raise ValueError(f"table {name!r}: expected a name of its own for each column, got {columns!r:.60}")
    values = table.astype(object).where(table.notna(), None).to_numpy().tolist()
    return {
        "columns": columns,
        "rows": [
            [_plain(f"table {name!r}, column {c!r}", v) for c, v in zip(columns, row, strict=True)] for row in values
        ],
    }


def to_frame(table: Table) -> "pd.DataFrame":
    """Return a stored table as a frame; a missing number is NaN."""
    import pandas as pd

    columns = zip(*table["rows"], strict=True) if table["rows"] else [[] for _ in table["columns"]]
    return pd.DataFrame({name: _column(values) for name, values in zip(table["columns"], columns, strict=True)})


def _column(values: Sequence[Scalar]) -> list[Scalar]:
    if any(isinstance(value, bool | str) for value in values):
        return list(values)
    return [math.nan if value is None else value for value in values]


def checked(table: Table) -> Table:
    """Return a stored table, or raise ValueError if the length of a row is not the number of columns."""
    to_frame(table)
    return {"columns": table["columns"], "rows": table["rows"]}


# ---- provenance ----------------------------------------------------------------------------------


def _device(device: "str | torch.device") -> str:
    import joblib
    import torch

    from nadkit import devices

    device = devices.pick(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"GPU of {prints.processor_name()}"
    cores = joblib.cpu_count()
    return f"{prints.processor_name()}, {cores} {'core' if cores == 1 else 'cores'}"


def _described(name: str, item: "ImageSet | Basis | str") -> dict[str, str | None]:
    from nadkit.data.images import ImageSet
    from nadkit.inputs.basis import Basis
    from nadkit.storage import described, digest

    match item:
        case str():
            return {"name": name, "kind": item, "sha256": None}
        case ImageSet():
            kind, tensors = item.source, (item.train, item.train_labels, item.test, item.test_labels)
        case Basis():
            kind, tensors = item.name, (item.vectors, item.eigenvalues)
        case _:
            raise ValueError(f"data {name}: expected images, directions or words, got {type(item).__name__}")
    found = [values for values in tensors if values is not None]
    return {"name": name, "kind": kind, "sha256": digest(*described(found, " "), digits=16)}


def data_words(item: Mapping[str, str | None]) -> str:
    """Return what `made_with` stored of a data set, for people."""
    checksum = f" (SHA-256 {item['sha256']})" if item["sha256"] else ""
    return f"{item['name']}: {item['kind']}{checksum}"


# ---- pages ---------------------------------------------------------------------------------------


def _drawn(frame: "pd.DataFrame", draw: "Callable[[pd.DataFrame], Figure] | None", alt: str) -> tuple[str, str]:
    """Return a table or its drawing as HTML, and of a drawing the PDF."""
    if frame.empty:
        return "<p>Nothing to show here.</p>", ""
    return (_as_table(frame, alt), "") if draw is None else pages.drawn(draw(frame), alt)


def _redrawn(frame: "pd.DataFrame", draw: "Callable[[pd.DataFrame], Figure] | None", alt: str) -> tuple[str, str]:
    """Draw a recorded table, or show it as it is: a run does not fail because its chapter draws other columns today."""
    try:
        return _drawn(frame, draw, alt)
    except Exception as error:
        problem = html.escape(f"{NOT_DRAWN} ({type(error).__name__}: {error}).")
        return f"{_as_table(frame, alt)}<p>{problem}</p>", ""


def _of_record(
    record: "Record", name: str, draw: "Callable[[pd.DataFrame], Figure] | None", alt: str
) -> tuple[str, str]:
    drawing, pdf = _redrawn(to_frame(record.tables[name]), draw, f"{alt} Recorded run: {record.name}.")
    return drawing + _provenance_as_html(record), pdf


def _as_table(frame: "pd.DataFrame", caption: str) -> str:
    """Return a table as HTML, each number with its error; one that is wide and low is turned, to fit the page."""
    columns = list(frame.columns)
    errors = _errors(columns)
    head = [column for column in columns if column not in errors.values()]
    rows = []
    for values in frame.itertuples(index=False, name=None):
        row = dict(zip(columns, values, strict=True))
        rows.append([_cell(row[column], row.get(errors.get(column))) for column in head])
    if turned := len(head) > WIDE and len(rows) <= LOW:
        head, *rows = zip(head, *rows, strict=True)
    made = []
    for row in rows:
        first, *others = map(html.escape, row)
        made.append(pages.row(others, head=first) if turned else pages.row([first, *others]))
    return pages.table(head, made, caption=caption, css="nadkit-table")


def _errors(columns: Sequence[str]) -> dict[str, str]:
    """Return for each column the one after it that holds its error: "error", "±", "error, X", "X, error" or "± X".

    X is the name of the column, or its end.
    """
    found = {}
    for column, after in itertools.pairwise(columns):
        name = after.removeprefix("error, ").removesuffix(", error").removeprefix("± ")
        if after in ("error", "±") or (name != after and column.endswith(name)):
            found[column] = after
    return found


def _cell(value: Scalar, error: float | None = None) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(error, float) and 0 < error < math.inf and not isinstance(value, str):
        return with_error(value, error)
    return pages.number(value) if isinstance(value, float) else str(value)


def _provenance_as_html(record: "Record") -> str:
    emphasis = "small" if record.counts else "strong"
    mark = f'<br><{emphasis} class="nadkit-mark">{html.escape(record.mark)}</{emphasis}>' if record.mark else ""
    return f'<p class="nadkit-provenance"><small>{html.escape(record.provenance)}</small>{mark}</p>'
