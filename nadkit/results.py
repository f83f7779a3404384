"""Results: what chapters keep and show, and what becomes of it, tables of many runs and records of big ones.

A chapter says with `made_with` what it computes on, `keep`s numbers and `show`s small tables; all of them are
stored in the executed notebook, beside what people see. `collect` reads them back as one row a run, and `record`
makes of one run a file that git keeps, `book/recorded/CHAPTER/RUN.json`, which `show` sets beside later runs.
"""

import base64
import hashlib
import html
import io
import json
import math
import os
import platform
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nadkit import claims, executors, files, fingerprints
from nadkit.chapters import BadInput, cell_source, cell_tags, find_chapters, find_root, load, read_notebook
from nadkit.claims import Claims
from nadkit.parameters import parse_parameters

if TYPE_CHECKING:  # a chapter imports what it needs of these; `nadkit --help` needs none
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from nadkit.data.images import ImageSet
    from nadkit.inputs.basis import Basis

# The key of results in the metadata of the output that shows them.
MIME = "application/vnd.nadkit.results+json"
MOST_CELLS = 5_000
"""So many cells may a table have: people read it in a diff."""
DIGITS = 6
FINISHED = "finished"
STALE = "stale: the chapter's experiment changed since"

Scalar = str | int | float | bool | None
Table = Mapping[str, list]
"""A table as plain data: its `columns`, and its `rows`."""


# ---- in a chapter --------------------------------------------------------------------------------


def checkpoint(name: str) -> Path | None:
    """Return where a long computation of this run may keep its state, so that the run's next try goes on from it.

    None where nobody will look for it: outside `nadkit`.
    """
    folder = os.environ.get("NADKIT_CHECKPOINTS")
    if not folder:
        return None
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


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
    _display(store, "; ".join([f"device: {store['device']}", *map(_data_words, store["data"])]))


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
    recorded: Sequence["Record"] = (),
) -> None:
    """Store a small table and display it, drawn by `draw` if given; in tabs beside it the same of recorded runs.

    `draw` gets every table as it is stored, rounded to six digits. `alt` says in words what there is to see.

    Raises:
        ValueError: the table has over 5,000 cells, or an index or columns without names of their own, or holds
            other things than numbers and words.
    """
    store = _to_plain(name, table)
    frame = to_frame(store)
    panels = [("this run", _drawn(frame, draw, alt))]
    for record in recorded:
        if name in record.tables:
            label = f"recorded: {record.name.replace(',', ', ')}" + (" (stale)" if record.stale else "")
            drawing = _redrawn(to_frame(record.tables[name]), draw, f"{alt} Recorded run: {record.name}.")
            panels.append((label, drawing + _provenance_as_html(record)))
    page = _tabs(panels) if len(panels) > 1 else panels[0][1]
    _display({"tables": {name: store}}, f"{alt}\n{frame.to_string(index=False, max_rows=20)}", page)


def recorded(chapter: str, root: Path | None = None) -> list["Record"]:
    """Return the records of a chapter of the book at `root`, by default the book that the current folder is in.

    A notebook on its own, outside any book, has none.

    Raises:
        BadInput: there is no such chapter, or a record is damaged.
    """
    if root is None:
        try:
            root = find_root()
        except BadInput:
            return []
    found = load(root, chapter)
    paths = sorted((root / "book" / "recorded" / found.name).glob("*.json"))
    experiment = fingerprints.experiment(found) if paths else ""
    return [_read_record(path, experiment) for path in paths]


def _display(store: Mapping[str, Any], text: str, page: str = "") -> None:
    from IPython.display import display

    data = {"text/plain": text} | ({"text/html": page} if page else {})
    # As one more way to show the output, Sphinx would warn that it cannot render the store.
    display(data, metadata={MIME: {"version": 1, **store}}, raw=True)


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
    if table.size > MOST_CELLS:
        raise ValueError(f"table {name!r}: expected at most {MOST_CELLS:,} cells, got {table.size:,}")
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


# ---- provenance ----------------------------------------------------------------------------------


def _device(device: "str | torch.device") -> str:
    import joblib
    import torch

    from nadkit import devices

    device = devices.pick(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"GPU of {_processor()}"
    cores = joblib.cpu_count()
    return f"{_processor()}, {cores} {'core' if cores == 1 else 'cores'}"


def _processor() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*: *(.+)", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()


def _described(name: str, item: "ImageSet | Basis | str") -> dict[str, str | None]:
    from nadkit.data.images import ImageSet
    from nadkit.inputs.basis import Basis

    match item:
        case str():
            return {"name": name, "kind": item, "sha256": None}
        case ImageSet():
            kind, tensors = item.source, (item.train, item.train_labels, item.test, item.test_labels)
        case Basis():
            kind, tensors = item.name, (item.vectors, item.eigenvalues)
        case _:
            raise ValueError(f"data {name}: expected images, directions or words, got {type(item).__name__}")
    return {"name": name, "kind": kind, "sha256": _sha256(tensors)}


def _sha256(tensors: Iterable["torch.Tensor | None"]) -> str:
    checksum = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            checksum.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            checksum.update(tensor.detach().cpu().reshape(-1).numpy())
    return checksum.hexdigest()[:16]


def _data_words(item: Mapping[str, str | None]) -> str:
    checksum = f" (SHA-256 {item['sha256']})" if item["sha256"] else ""
    return f"{item['name']}: {item['kind']}{checksum}"


# ---- pages ---------------------------------------------------------------------------------------

# Panels stand in order behind all labels; without style sheets they just follow one another.
TAB_STYLE = """\
.nadkit-tabs { display: flex; flex-wrap: wrap; position: relative; }
.nadkit-tabs > input { position: absolute; opacity: 0; }
.nadkit-tabs > label { padding: .3em .8em; border-bottom: 3px solid transparent; cursor: pointer; }
.nadkit-tabs > input:checked + label { border-color: currentColor; font-weight: bold; }
.nadkit-tabs > input:focus-visible + label { outline: 2px solid; }
.nadkit-tabs > div { order: 1; width: 100%; padding-top: .5em; overflow-x: auto; }
.nadkit-tabs img { max-width: 100%; }
@media screen { .nadkit-tabs > input:not(:checked) + label + div { display: none; } }"""


def _tabs(panels: Iterable[tuple[str, str]]) -> str:
    """Return labelled panels of which one shows: radio buttons, which need no script and obey the arrow keys."""
    group = f"nadkit-{secrets.token_hex(4)}"
    parts = [
        f'<input type="radio" name="{group}" id="{group}-{i}"{" checked" if i == 0 else ""}>'
        f'<label for="{group}-{i}">{html.escape(label)}</label>\n<div>{content}</div>'
        for i, (label, content) in enumerate(panels)
    ]
    inside = "\n".join(parts)
    attributes = 'class="nadkit-tabs" role="group" aria-label="this run and recorded ones"'
    return f"<style>\n{TAB_STYLE}\n</style>\n<div {attributes}>\n{inside}\n</div>"


def _drawn(frame: "pd.DataFrame", draw: "Callable[[pd.DataFrame], Figure] | None", alt: str) -> str:
    if frame.empty:
        return "<p>Nothing to show here.</p>"
    return _as_table(frame, alt) if draw is None else _as_image(draw(frame), alt)


def _redrawn(frame: "pd.DataFrame", draw: "Callable[[pd.DataFrame], Figure] | None", alt: str) -> str:
    """Draw a recorded table, or show it as it is: no run fails because its chapter draws other columns by now."""
    try:
        return _drawn(frame, draw, alt)
    except Exception as error:
        problem = html.escape(f"It could not be drawn ({type(error).__name__}: {error}).")
        return f"{_as_table(frame, alt)}<p>{problem}</p>"


def _as_image(figure: "Figure", alt: str) -> str:
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)  # or pyplot shows it once more
    image = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{image}" alt="{html.escape(alt)}">'


def _as_table(frame: "pd.DataFrame", caption: str) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in frame.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row) + "</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    return (
        f'<table class="table nadkit-table">\n<caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    )


def _cell(value: Scalar) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _provenance_as_html(record: "Record") -> str:
    mark = f'<br><strong class="nadkit-stale">{html.escape(STALE)}</strong>' if record.stale else ""
    return f'<p class="nadkit-provenance"><small>{html.escape(record.provenance)}</small>{mark}</p>'


# ---- what a run stored ---------------------------------------------------------------------------


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
            _add(tables, {name: _checked(table) for name, table in store.get("tables", {}).items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: the results stored in it cannot be read: {error}") from error
    return Stored(device, data, numbers, tables, _parameters(notebook))


def _parameters(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run in the order in which its chapter declares them; the file has lost it."""
    values = notebook.get("metadata", {}).get("nadkit", {}).get("parameters", {})
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


def _checked(table: Table) -> Table:
    to_frame(table)
    return {"columns": table["columns"], "rows": table["rows"]}


# ---- many runs as one table ----------------------------------------------------------------------


def collect(folder: Path) -> "pd.DataFrame":
    """Return one row for each finished run below `folder`: parameters, numbers kept, claims, provenance.

    A number whose name is taken becomes `result.NAME`, a fact of the run whose name a parameter has, `run.NAME`.

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


def write(table: "pd.DataFrame", path: Path) -> None:
    """Write a table as .csv or .parquet, whole or not at all.

    Raises:
        BadInput: the suffix is another, or a column has values that no one type of .parquet holds.
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
        "data": "; ".join(map(_data_words, kept.data)) or None,
        "file": str(run.path if run.path == folder else run.path.relative_to(folder)),
    }


# ---- records -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What git keeps of a run: its provenance, numbers, small tables and claims.

    `stale` says that the chapter's experiment is another by now: its code, or the library's that it uses.
    """

    path: Path
    chapter: str
    profile: str
    parameters: Mapping[str, Any]
    experiment: str
    commit: str | None
    versions: Mapping[str, str]
    platform: str
    device: str | None
    data: Sequence[Mapping[str, str | None]]
    started: str
    seconds: float
    numbers: Mapping[str, Scalar]
    tables: Mapping[str, Table]
    claims: Claims
    stale: bool
    resumed: bool = False

    @property
    def name(self) -> str:
        """The profile, and the parameters that differ from it."""
        return self.path.stem

    @property
    def provenance(self) -> str:
        """Where the results come from, in one line."""
        return " · ".join(
            [
                f"profile {self.name.replace(',', ', ')}",
                self.device or self.platform,
                *(f"{name} {self.versions[name]}" for name in ("torch", "nadkit") if name in self.versions),
                f"commit {short_commit(self.commit)}",
                *([f"seed {self.parameters['seed']}"] if "seed" in self.parameters else []),
                _duration(self.seconds) + (" (its last try)" if self.resumed else ""),
                self.started[:10],
                *map(_data_words, self.data),
            ]
        )


def short_commit(commit: str | None) -> str:
    """Return the first letters of a commit, and the '+' that says that files differed from it."""
    return re.sub(r"^(\w{8})\w*", r"\1", commit) if commit else "unknown"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def record(notebook: Path, root: Path) -> Path:
    """Make the record of a finished run of a chapter of the book at `root`, and return its file.

    Raises:
        BadInput: it is no finished run of this book's chapters as they are now, or it stored no result.
        DataError: the file cannot be written.
    """
    from nadkit.runner import run_name

    (run,) = claims.read(_an_executed_notebook(notebook))
    about = run.record
    if about.get("status") != FINISHED:
        raise BadInput(f"{notebook} is no finished run; 'nadkit run' makes one")
    if about.get("chapter") not in find_chapters(root):
        raise BadInput(f"{notebook} is a run of {about.get('chapter')!r}, which the book at {root} does not have")
    chapter = load(root, about["chapter"])
    same = about.get("experiment") == fingerprints.experiment(chapter)
    if not same or about["parameters"].keys() != chapter.parameters.keys():
        raise BadInput(f"{notebook}: the experiment of {chapter.name} changed since this run; run it again")
    kept = stored(notebook)
    if not (kept.numbers or kept.tables or run.claims):
        raise BadInput(f"{notebook}: nothing to record; a chapter stores by results.keep, results.show and claims.show")
    content = {
        "version": 1,
        **{name: about[name] for name in ("chapter", "profile")},
        "parameters": kept.parameters,
        **{name: about[name] for name in ("experiment", "commit", "versions", "platform")},
        "device": kept.device,
        "data": kept.data,
        **{name: about[name] for name in ("started", "seconds", "resumed")},
        "numbers": kept.numbers,
        "tables": kept.tables,
        "claims": run.claims.to_json(),
    }
    name = run_name(chapter, about["profile"], about["parameters"]).removesuffix(".ipynb")
    path = root / "book" / "recorded" / f"{name}.json"
    with files.atomic_write(path) as part:
        part.write_text("".join([*_lines(content), "\n"]), encoding="utf-8")
    return path


def _an_executed_notebook(path: Path) -> Path:
    if not path.is_file():
        raise BadInput(f"{path}: expected an executed notebook, found {'a folder' if path.is_dir() else 'nothing'}")
    return path


def _lines(value: object, indent: str = "") -> Iterator[str]:
    """Give pieces of JSON with a line for every entry of a mapping and for every list in a list, for a legible diff."""
    deeper = f"{indent} "
    if isinstance(value, Mapping) and value:
        items = [(f"{json.dumps(key, ensure_ascii=False)}: ", item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, list | Mapping) for item in value):
        items = [("", item) for item in value]
    else:
        yield json.dumps(value, ensure_ascii=False, allow_nan=False)
        return
    start, end = "{}" if isinstance(value, Mapping) else "[]"
    for i, (key, item) in enumerate(items):
        yield f"{',' if i else start}\n{deeper}{key}"
        yield from _lines(item, deeper)
    yield f"\n{indent}{end}"


def _read_record(path: Path, experiment: str) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (version := content.pop("version")) != 1:
            raise ValueError(f"it is of version {version}, which this nadkit does not know")
        content["claims"] = Claims.from_json(content["claims"])
        content["tables"] = {name: _checked(table) for name, table in content["tables"].items()}
        found = Record(path, **content, stale=content["experiment"] != experiment)
        _ = found.provenance  # all that it is made of is there
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is no record that can be read: {error}; 'nadkit record' makes it anew") from error
