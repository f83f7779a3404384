"""Explorers: the interactive figures of the book, made from the tables that chapters and records store.

A page asks for one by including `_generated/explorers/NAME.md`.
"""

import base64
import functools
import importlib.util
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nadkit import files
from nadkit.book import collect, interactive, records
from nadkit.book.chapters import BadInput
from nadkit.book.interactive import Control, Explorer, finish, key
from nadkit.book.results import MIME, Table, to_frame

if TYPE_CHECKING:
    import altair as alt
    import numpy as np
    import pandas as pd

PAGE = "book/explore.md"
INCLUDED = "book/_generated/explorers"
LIBRARY = "book/_static/explorers/vega.js"
CHOSEN = "red"
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A stored table, and in words the run that it comes from: "recorded: ..." or "this build"."""

    frame: "pd.DataFrame"
    run: str
    parameters: Mapping[str, Any]


Sources = Callable[..., list[Source]]
"""A function of a chapter, the name of one of its tables, and columns; it returns all such tables, the best first."""


def tables(root: Path, executed: Mapping[str, Path]) -> Sources:
    """Return a function that finds tables with the wanted columns: of records that hold, then of this build.

    Raises:
        BadInput: a record or an executed notebook is damaged.
    """

    @functools.cache
    def runs(chapter: str) -> list[tuple[Mapping[str, Table], str, Mapping[str, Any]]]:
        kept = sorted((r for r in records.recorded(chapter, root) if r.counts), key=lambda record: record.rank)
        found = [(record.tables, f"recorded: {record.words}", record.parameters) for record in kept]
        live = collect.stored(executed[chapter])
        return [*found, (live.tables, "this build", live.parameters)]

    def find(chapter: str, name: str, *columns: str) -> list[Source]:
        of_all = runs(chapter) if chapter in executed else []
        found = [Source(to_frame(has[name]), run, values) for has, run, values in of_all if name in has]
        # An older record may have other columns.
        return [source for source in found if {*columns} <= {*source.frame.columns} and len(source.frame)]

    return find


def make(root: Path, executed: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Write the explorers and their library below `folder`; return where each belongs -> its file.

    A note takes the place of an explorer whose chapters never ran. A book need not have the page of explorers.

    Raises:
        BadInput: altair or vl-convert is not installed, or what an explorer is made of is damaged.
    """
    if not (root / PAGE).exists():
        return {}
    if missing := [name for name in ("altair", "vl_convert") if importlib.util.find_spec(name) is None]:
        raise BadInput(f"{PAGE} needs {missing[0]}: pip install -e '.[book]'")
    (folder / "explorers").mkdir(parents=True, exist_ok=True)
    made, sources, cache = {}, tables(root, executed), folder / "explorers"
    for name, build in ALL.items():
        explorer = build(sources)
        text = interactive.page(name, explorer, cache) if explorer else "*The chapters of this figure have not run.*"
        made[f"{INCLUDED}/{name}.md"] = _written(cache / f"{name}.md", f"{text}\n")
    library = cache / f"vega-{interactive.VEGA_LITE}-{version('vl-convert-python')}.js"
    if not library.exists():  # making it takes seconds
        _written(library, interactive.library())
    return made | {LIBRARY: library}


def _written(path: Path, text: str) -> Path:
    with files.atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def link(notebook: Mapping[str, Any], chapter: str, start: str) -> None:
    """Add links from an executed notebook's tables to the explorers that show them.

    `start` is the path from the notebook's page to `html/book/`.
    """
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        for table in output.get("metadata", {}).get(MIME, {}).get("tables", {}):
            if name := SHOWN.get((chapter, table)):
                to = f'<p><a href="{start}explore.html#explorer-{name}">Explore this figure</a></p>'
                output["data"]["text/html"] = "".join(output["data"].get("text/html", "")) + to


def _values(frame: "pd.DataFrame") -> list[Row]:
    """Return rows for a chart; what is missing is left out."""
    return [{k: v for k, v in row.items() if v == v and v is not None} for row in frame.to_dict("records")]


def _colour(label: str) -> "alt.Color":
    """Return the book's colours for an accuracy (%)."""
    import altair as alt

    legend = alt.Legend(title=label, orient="bottom", direction="horizontal")
    return alt.Color("accuracy:Q", legend=legend, scale=alt.Scale(scheme="cividis", domain=[50, 100], clamp=True))


# ---- the Fourier map -----------------------------------------------------------------------------


# What the fields above a figure choose, as Vega-Lite says it.
CELL = "datum.fx == fx && datum.fy == fy"


def fourier_map(sources: Sources) -> Explorer | None:
    """Return the maps of all architectures: a cell shows its wave, each accuracy, and the published one."""
    import altair as alt

    rows, runs = _accuracies(sources)
    if not rows:
        return None
    names = list(dict.fromkeys(row["series"] for row in rows))
    fx, fy = (
        Control(name, f"{label} frequency", sorted({row[name] for row in rows}), _nearest(name, rows), keys)
        for name, label, keys in (("fx", "horizontal", "right"), ("fy", "vertical", "down"))
    )
    below = alt.hconcat(_wave(), _bars(names))
    chart = alt.vconcat(_maps(names, fx.values, fy.values), below, data=alt.Data(values=rows))
    text = "Test accuracy by horizontal and vertical frequency of the wave that carries the signal, a map a network, "
    words = _cell_words(rows, names)
    return Explorer(finish(chart, fx, fy), [fx, fy], words, f"{text}and the published maps.", runs)


def _maps(names: Sequence[str], fx: Sequence[int], fy: Sequence[int]) -> "alt.ConcatChart":
    """Return a map of accuracies for each name, the chosen cell marked."""
    import altair as alt

    axis = alt.Axis(labelAngle=0, values=fx[:: math.ceil(len(fx) / 5)])  # more would overlap
    cell = alt.Chart().encode(
        x=alt.X("fx:O", title="horizontal frequency", scale=alt.Scale(domain=fx), axis=axis),
        y=alt.Y("fy:O", title="vertical frequency", scale=alt.Scale(domain=fy)),
    )
    marked = cell.mark_rect(fill=None, stroke=CHOSEN, strokeWidth=2.5).transform_filter(CELL)
    map_of_one = alt.layer(cell.mark_rect().encode(color=_colour("accuracy (%)")), marked)
    maps = (
        map_of_one.transform_filter(alt.datum.series == name).properties(width=120, height=200, title=name)
        for name in names
    )
    return alt.concat(*maps, columns=5).resolve_scale(color="shared")


def _bars(names: Sequence[str]) -> "alt.LayerChart":
    """Return the accuracies at the chosen cell as bars with their numbers."""
    import altair as alt

    base = alt.Chart().transform_filter(CELL)
    base = base.encode(
        y=alt.Y("series:N", title=None, scale=alt.Scale(domain=names)),
        x=alt.X("accuracy:Q", title=None, scale=alt.Scale(domain=[0, 100])),
    )
    words = alt.Text("accuracy:Q", format=".1f")
    bars = base.mark_bar(color="#56b4e9") + base.mark_text(align="left", dx=3).encode(text=words)
    return bars.properties(width=380, height=26 * len(names), title="accuracy at this cell (%)")


def _cell_words(rows: Sequence[Row], names: Sequence[str]) -> dict[str, str]:
    """Return what is said of each cell that was measured."""
    by_cell: dict[tuple[int, int], dict[str, str]] = {}
    for row in rows:
        by_cell.setdefault((row["fx"], row["fy"]), {})[row["series"]] = f"{row['accuracy']:.1f} %"
    return {
        key(x, y): f"Cell ({x}, {y}): " + ", ".join(f"{name} {of.get(name, 'not measured')}" for name in names) + "."
        for (x, y), of in sorted(by_cell.items())
    }


def _accuracies(sources: Sources) -> tuple[list[Row], list[str]]:
    """Return accuracies by cell and series, here and published, and the runs that they are of."""
    from nadkit.data import published

    found: dict[str, tuple[pd.DataFrame, str]] = {}
    settings = None
    for chapter in ("inputs/directional-bias", "inputs/pooling"):
        for source in sources(chapter, "map", "network", "fx", "fy", "accuracy"):
            same = source.parameters.get("sigma"), source.parameters.get("epsilon")
            settings = settings or same
            for network, table in source.frame.groupby("network", sort=False):
                if same == settings:  # only of the same task
                    found.setdefault(network, (table, source.run))
    rows = []
    for network, (table, _) in found.items():
        of_run = [*zip(table.fx.astype(int), table.fy.astype(int), table.accuracy, strict=True)]
        rows += [{"series": network, "fx": fx, "fy": fy, "accuracy": accuracy} for fx, fy, accuracy in of_run]
        if network in ("logreg", "lenet"):
            full = published.published_fourier_map(network)
            theirs = [(fx, fy, full[(fy // 2 + 8) % 16, (fx // 2 + 8) % 16]) for fx, fy, _ in of_run]
            name = f"{network}, published"
            rows += [{"series": name, "fx": fx, "fy": fy, "accuracy": 100 * a.item()} for fx, fy, a in theirs]
    return rows, [f"{network}, {run}" for network, (_, run) in found.items()]


def _nearest(name: str, rows: Sequence[Row]) -> int:
    """Return the value that is closest to 4 cycles, where the maps tell networks apart."""
    return min({row[name] for row in rows}, key=lambda value: (abs(value - 4), value))


def _wave() -> "alt.Chart":
    """Return the wave of the chosen cell as an image, computed where it is drawn."""
    import altair as alt

    return (
        alt.Chart(alt.sequence(1024, as_="pixel"))
        .transform_calculate(column="datum.pixel % 32", row="floor(datum.pixel / 32)")
        .transform_calculate(
            value="cos(2 * PI * (fx * datum.column + fy * datum.row) / 32)",
            right="datum.column + 1",
            below="datum.row + 1",
        )
        .mark_rect()
        .encode(
            x=alt.X("column:Q", axis=None, scale=alt.Scale(domain=[0, 32], nice=False)),
            x2="right:Q",
            y=alt.Y("row:Q", axis=None, scale=alt.Scale(domain=[32, 0], nice=False)),
            y2="below:Q",
            color=alt.Color(
                "value:Q", legend=None, scale=alt.Scale(scheme="redblue", reverse=True, domain=[-1, 1], clamp=True)
            ),
        )
        .properties(width=190, height=190, title="the wave of this cell")
    )


# ---- the directions ------------------------------------------------------------------------------


def nad_browser(sources: Sources) -> Explorer | None:
    """Return the leading NADs one by one: as pixels, as spectrum, with eigenvalue and accuracy where known."""
    import altair as alt

    rows, spectra, accuracies, runs = _of_nads(sources)
    if not rows:
        return None
    networks, indices = list(dict.fromkeys(row["network"] for row in rows)), sorted({row["index"] for row in rows})
    network = Control("network", "network", networks, networks[0], "down")
    index = Control("index", "index of the NAD", indices, indices[0], "right")
    chosen = "datum.network == network && datum.index == index"
    strip = (
        alt.Chart()
        .transform_filter("datum.network == network")
        .encode(x=alt.X("index:O", title="index of the NAD", axis=alt.Axis(labelAngle=0)), y=alt.value(22))
    )
    mark = strip.mark_rect(fill=None, stroke=CHOSEN, strokeWidth=2.5).transform_filter(chosen)
    mark = mark.encode(y=alt.value(0), y2=alt.value(44))
    strip = strip.mark_image(width=40, height=40, smooth=False).encode(url="pixels:N") + mark
    size = 190
    large = [
        alt.Chart()
        .transform_filter(chosen)
        .mark_image(width=size, height=size, smooth=False)
        .encode(url=f"{name}:N", x=alt.value(size / 2), y=alt.value(size / 2))
        .properties(width=size, height=size, title=title)
        for name, title in (("pixels", "pixels"), ("spectrum", "magnitude of its Fourier transform"))
    ]
    # Domains are given: a choice for which nothing was measured has no values, and that would be a warning.
    heights = [row["eigenvalue"] for row in spectra]
    height = alt.Scale(type="log", domain=[min(heights, default=1), max(heights, default=1)])
    curves = [
        *([_curve(spectra, "eigenvalue", "eigenvalue / mean", height)] if spectra else []),
        *([_curve(accuracies, "accuracy", "accuracy (%)", alt.Scale(domain=[50, 100]))] if accuracies else []),
    ]
    strip = strip.properties(width=42 * len(indices), height=44)
    chart = alt.vconcat(strip, alt.hconcat(*large, *curves), data=alt.Data(values=rows))
    known: dict[tuple[str, int], Row] = {}
    for row in [*accuracies, *spectra]:
        known.setdefault((row["network"], row["index"]), {}).update(row)
    said = {key(*state): _nad_words(*state, known.get(state, {})) for row in rows if (state := _state(row))}
    text = "The leading neural anisotropy directions as images, one of them large beside its Fourier transform."
    return Explorer(finish(chart, network, index), [network, index], said, text, runs)


def _state(row: Row) -> tuple[str, int]:
    return row["network"], row["index"]


def _of_nads(sources: Sources) -> tuple[list[Row], list[Row], list[Row], list[str]]:
    """Return images, eigenvalues and accuracies by network and index, and the runs that they are of."""
    rows, spectra, accuracies, runs = [], [], [], []
    for network in ("lenet", "logreg"):
        for source in sources("inputs/nads", f"first-{network}", "index", "image")[:1]:
            images = zip(source.frame["index"], source.frame["image"], strict=True)
            rows += [{"network": network, **_pictures(i, word)} for i, word in images]
            runs.append(f"NADs of {network}, {source.run}")
            curves = sources("inputs/nads", "eigenvalues", "curve", "index", "eigenvalue / mean")
            spectra += [row for s in curves if s.run == source.run for row in _eigenvalues(network, s.frame)]
        columns = ("series", "index", "accuracy", "published")
        for source in sources("inputs/accuracy-by-index", f"accuracy-{network}", *columns)[:1]:
            of_nads = source.frame[source.frame.series == "NAD"]
            accuracies += _values(of_nads[[*columns[1:]]].assign(network=network))
            runs.append(f"accuracy of {network}, {source.run}")
    return rows, spectra, accuracies, runs


def _curve(rows: Sequence[Row], y: str, title: str, scale: "alt.Scale") -> "alt.LayerChart":
    """Return a quantity against the index from 1 on, and a line at the chosen one."""
    import altair as alt

    x = alt.X("place:Q", title="index + 1", scale=alt.Scale(type="log", domain=[1, 1024]))
    base = alt.Chart(alt.Data(values=[*rows])).transform_filter("datum.network == network")
    line = base.transform_calculate(place="datum.index + 1").mark_line(point=True, color="#0173b2")
    line = line.encode(x=x, y=alt.Y(f"{y}:Q", title=title, scale=scale))
    rule = alt.Chart(alt.Data(values=[{}])).transform_calculate(place="index + 1").mark_rule(color=CHOSEN)
    return (line + rule.encode(x=x)).properties(width=160, height=170)


def _eigenvalues(network: str, curves: "pd.DataFrame") -> list[Row]:
    own = curves[curves.curve.str.match(rf"{network}, \d+ networks")]
    pairs = zip(own["index"], own["eigenvalue / mean"], strict=True)
    return [{"network": network, "index": int(i) - 1, "eigenvalue": value} for i, value in pairs]


def _pictures(index: int, word: str) -> Row:
    """Return a packed direction as two images in colours, its pixels and its spectrum."""
    from nadkit import plots
    from nadkit.book import pages

    image = pages.unpacked([word])[0].numpy()
    spectrum = abs(_centred(image))
    pixels = _coloured((image + 1) / 2, plots.DIVERGING)
    return {"index": int(index), "pixels": pixels, "spectrum": _coloured(spectrum / spectrum.max(), plots.SEQUENTIAL)}


def _centred(image: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return np.fft.fftshift(np.fft.fft2(image))


def _coloured(image: "np.ndarray", colours: str) -> str:
    """Return an image with entries in [0, 1] as a PNG in its address."""
    from matplotlib import colormaps
    from PIL import Image

    picture = Image.fromarray((255 * image).round().astype("uint8"), mode="P")
    picture.putpalette((255 * colormaps[colours](range(256))[:, :3]).round().astype("uint8").tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _nad_words(network: str, index: int, known: Row) -> str:
    published = f" (published {known['published']:.1f} %)" if "published" in known else ""
    along = "accuracy along the NAD of this index"
    facts = {
        "eigenvalue": ("eigenvalue", "{:.3g} times the mean"),
        "accuracy": (along, "{:.1f} %" + published),
    }
    said = [f"{words} {form.format(known[name])}" for name, (words, form) in facts.items() if name in known]
    absent = [words for name, (words, _) in facts.items() if name not in known]
    said += [f"not stored: {', '.join(absent)}"] if absent else []
    return f"NAD {index} of {network}: {', '.join(said)}."


# ---- ablation ------------------------------------------------------------------------------------

MEMORISATION = "activations/memorisation"
LAYERS, ZERO = "all", "zero"
LINES = ["#0173b2", "#de8f05", "#029e73"]
AREAS = {
    "AUC, clamped to zero": "units, to zero",
    "AUC, clamped to the mean": "units, to their means",
}


LEVEL = "datum.corruption == corruption"


def ablation(sources: Sources) -> Explorer | None:
    """Return ablation curves by corruption, layer and clamp, the paper's, and the areas under them."""
    import altair as alt

    rows, areas = _ablated(sources), _areas(sources)
    if not rows:
        return None

    def control(name: str, label: str, keys: str = "") -> Control:
        values = list(dict.fromkeys(row[name] for row in rows))
        return Control(name, label, values, values[0], keys)

    # What was measured depends on the choices before: an older record has only all layers and zero.
    controls = [
        control("network", "network"),
        control("layer", "layers ablated"),
        control("clamp", "clamped to", "down"),
        control("run", "run"),
        control("corruption", "corruption of the labels", "right"),
    ]
    *_, run, corruption = controls
    chart = alt.hconcat(_curves(corruption.values), _area_lines(areas), data=alt.Data(values=rows))
    said = {
        key(*state): _curve_words(*state, list(of_state))
        for state, of_state in itertools.groupby(rows, key=lambda row: tuple(row[c.name] for c in controls))
    }
    text = "Training accuracy against the fraction of units ablated, a line a level of corruption; areas under them."
    return Explorer(finish(chart, *controls), controls, said, text, [*run.values, "dashed: the paper, read off"])


def _curves(levels: Sequence[str]) -> "alt.LayerChart":
    """Return the curves of the chosen run, network, layer and clamp, the chosen level strong, and the paper's."""
    import altair as alt

    legend = alt.Legend(title="corruption", symbolOpacity=1)
    colour = alt.Color("corruption:O", legend=legend, scale=alt.Scale(scheme="viridis", domain=levels))
    base = alt.Chart().encode(
        x=alt.X("fraction:Q", title="fraction of units ablated", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("accuracy:Q", title="training accuracy", scale=alt.Scale(domain=[0, 1])),
    )
    chosen = " && ".join(f"datum.{name} == {name}" for name in ("run", "network", "layer", "clamp"))
    ours = base.transform_filter(chosen).encode(color=colour)
    lines = ours.mark_line(opacity=0.35, strokeWidth=2)
    strong = ours.transform_filter(LEVEL).mark_line(point=True, strokeWidth=3.5)
    as_in_the_paper = f"layer == '{LAYERS}' && clamp == '{ZERO}'"
    theirs = alt.Chart(alt.Data(values=_read_off())).transform_filter(
        f"datum.network == network && {LEVEL} && {as_in_the_paper}"
    )
    theirs = theirs.mark_line(strokeDash=[5, 4], color="black").encode(x=base.encoding.x, y=base.encoding.y)
    title = alt.Title(alt.expr(f"{as_in_the_paper} ? 'dashed: the paper, all layers to zero' : ''"))
    return (lines + strong + theirs).properties(width=360, height=260, title=title)


def _area_lines(areas: Sequence[Row]) -> "alt.LayerChart":
    """Return the areas under curves by corruption, a line for each kind of what was ablated."""
    import altair as alt

    kinds = list(dict.fromkeys(row["ablated"] for row in areas))
    legend = alt.Legend(title="ablated", orient="bottom", columns=1)
    of_areas = alt.Chart(alt.Data(values=areas)).transform_filter("datum.run == run && datum.network == network")
    dots = of_areas.mark_line(point=True).encode(
        x=alt.X("corruption:O", title="corruption of the labels", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("area:Q", title="area under the curve", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("ablated:N", legend=legend, scale=alt.Scale(domain=kinds, range=LINES)),
    )
    here = dots.transform_filter(LEVEL).mark_rule(color=CHOSEN).encode(y=alt.value(0), y2=alt.value(260))
    lines = dots + here.encode(color=alt.value(CHOSEN))
    return lines.properties(width=240, height=260, title="all layers")


def _ablated(sources: Sources) -> list[Row]:
    """Return points of curves by run, network, layer, clamp and corruption, those of a curve one after the other."""
    x, rows = "fraction of units ablated", []
    columns = ("network", "corruption", x, "training accuracy")
    for source in sources(MEMORISATION, "ablation", *columns):
        rows += _points(source, source.frame[[*columns]].assign(layer=LAYERS, clamp=ZERO))
    for source in sources(MEMORISATION, "layers", *columns, "layer", "clamp"):
        # For all layers clamped to zero, the first table has a finer curve.
        repeated = (source.frame.layer == LAYERS) & (source.frame.clamp == ZERO)
        rows += _points(source, source.frame.loc[~repeated, [*columns, "layer", "clamp"]])
    return rows


def _points(source: Source, frame: "pd.DataFrame") -> list[Row]:
    names = {"fraction of units ablated": "fraction", "training accuracy": "accuracy"}
    frame = frame.rename(columns=names).assign(run=source.run, corruption=_levels(frame.corruption))
    return _values(frame)


def _levels(corruption: "pd.Series") -> "pd.Series":
    return corruption.astype(float).map("{:g}".format)


def _read_off() -> list[Row]:
    from nadkit.data import digitised

    rows = []
    for network, panel in (("MLP", "1a"), ("ConvNet", "1b")):
        frame = digitised.figure(panel)[["corruption", "fraction", "accuracy"]]
        rows += _values(frame.assign(network=network, corruption=_levels(frame.corruption)))
    return rows


def _areas(sources: Sources) -> list[Row]:
    """Return areas under curves by run, network, corruption, and what was ablated."""
    rows = []
    for source in sources(MEMORISATION, "means", "network", "corruption", *AREAS):
        for column, ablated in AREAS.items():
            frame = source.frame[["network"]].assign(area=source.frame[column], ablated=ablated, run=source.run)
            rows += _values(frame.assign(corruption=_levels(source.frame.corruption)))
    for source in sources(MEMORISATION, "axes", "network", "corruption", "ablated", "AUC"):
        mixed = source.frame[source.frame.ablated != "units"]
        means = mixed.groupby(["network", "corruption", "ablated"], sort=False, as_index=False).AUC.mean()
        frame = means[["network"]].assign(area=means.AUC, ablated=means.ablated + ", to zero", run=source.run)
        rows += _values(frame.assign(corruption=_levels(means.corruption)))
    return rows


def _curve_words(network: str, layer: str, clamp: str, _run: str, corruption: str, rows: Sequence[Row]) -> str:
    points = [(row["fraction"], row["accuracy"]) for row in rows]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    fraction, accuracy = min(points, key=lambda point: abs(point[0] - 0.5))
    which = f"{network}, corruption {corruption}, {_clamped(layer, clamp)}"
    return (
        f"{which}: accuracy {accuracy:.2f} with {fraction:.0%} of the units ablated; area under the curve {area:.3f}."
    )


def _clamped(layer: str, clamp: str) -> str:
    which = "all layers" if layer == LAYERS else f"layer {layer} alone"
    return f"{which} clamped to {clamp if clamp == ZERO else f'the {clamp}'}"


ALL: Mapping[str, Callable[[Sources], Explorer | None]] = {
    "fourier-map": fourier_map,
    "nads": nad_browser,
    "ablation": ablation,
}
"""The explorers by the names under which pages include them."""

SHOWN = {
    ("inputs/directional-bias", "map"): "fourier-map",
    ("inputs/pooling", "map"): "fourier-map",
    ("inputs/nads", "first-lenet"): "nads",
    ("inputs/nads", "first-logreg"): "nads",
    ("inputs/accuracy-by-index", "accuracy-lenet"): "nads",
    (MEMORISATION, "ablation"): "ablation",
    (MEMORISATION, "layers"): "ablation",
}
"""Which explorer shows a chapter's table."""
