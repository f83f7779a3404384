"""Figures of the book: results in, a figure (or inline HTML) out, in colours safe for colour-blind readers."""

import html
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator
from torch import Tensor

if TYPE_CHECKING:
    from nadkit.activations.ablation import Curve
    from nadkit.inputs.basis import Basis

SEQUENTIAL = "cividis"
DIVERGING = "RdBu_r"
READ_OFF = "the paper, read off"
"""The name of the numbers that `beside` draws."""
PUBLISHED = "the paper, published"
"""The name of images that a paper's authors published."""
GREY = "0.4"
ANNOTATED = 64
"""A heat map of up to this many cells shows its numbers."""

LEGEND_BESIDE = MappingProxyType({"frameon": False, "bbox_to_anchor": (1, 1), "loc": "upper left"})
"""How a legend stands to the right of its panel."""
LOG_SCALE = "\n(log scale)"
"""What follows the name of a panel's logarithmic axis."""

WIDEST = 11.0
"""Maximum width of a figure in inches: in the book's column of 790 pixels, its 10-point type is then 10 pixels high."""

ROOM = 64
"""Characters that fit below a panel; names of groups that are longer together are turned upright."""


def style() -> None:
    """Set the book's style for all figures that follow: sharp in a notebook, with a PDF beside each picture."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    # Plain numbers on logarithmic axes too, up to 10^5.
    numbers = {"axes.formatter.min_exponent": 5, "axes.formatter.useoffset": False}
    plt.rcParams.update({"figure.dpi": 110, **spines, **numbers})
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina", "pdf")


def ordered_palette(values: Iterable[object]) -> dict[object, tuple[float, float, float]]:
    """Return a colour for each of some values that have an order, dark to light: numbers by size, others as given."""
    values = list(dict.fromkeys(values))
    if all(map(_is_number, values)):
        values.sort(key=float)
    # neighbours differ more than in cividis, and without its bright end, which is hard to see on white
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.8, len(values)))
    return dict(zip(values, map(tuple, colours[:, :3].tolist()), strict=True))


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _colours(values: Iterable[object]) -> dict[object, tuple[float, float, float]]:
    """Return a colour for each value: in order for numbers, else as far apart as can be."""
    values = list(dict.fromkeys(values))
    if len(values) > 1 and all(map(_is_number, values)):
        return ordered_palette(values)
    return dict(zip(values, sns.color_palette("colorblind", len(values)), strict=True))


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure (inches) that pyplot has forgotten, so that a notebook shows it just once."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure


def _panels(
    count: int, width: float, height: float, *, extra: float = 0.2, **shared: bool
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels (inches each), with `extra` inches beside them.

    Panels are narrower, by up to a quarter, where they then fit in one row; else they stand in several.
    """
    room = WIDEST - extra
    rows = math.ceil(count / max(1, int(room / (0.75 * width))))
    columns = math.ceil(count / rows)
    figure = _figure(min(width, room / columns) * columns + extra, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False, **shared).flatten()
    for axis in axes[count:]:
        axis.remove()
    for axis in _lowest(axes := list(axes[:count])):
        axis.tick_params(labelbottom=True)  # of shared axes, also above a gap in the last row
    return figure, axes


def _first(axis: Axes) -> bool:
    return axis.get_subplotspec().is_first_col()


def _lowest(axes: Sequence[Axes]) -> Sequence[Axes]:
    """Return the panels that have no other below them."""
    return axes[-axes[0].get_gridspec().ncols :]


def _corner(axes: Sequence[Axes]) -> Axes:
    """Return the panel at the upper right, beside which there is room for a legend."""
    return [axis for axis in axes if axis.get_subplotspec().is_first_row()][-1]


def _by_frequency(axis: Axes, title: str = "", *, first: bool = True) -> None:
    """Label a map of the Fourier plane; of several side by side, the first alone names the vertical axis."""
    axis.set(title=title, xlabel="horizontal frequency", ylabel="vertical frequency" if first else "")
    axis.tick_params(axis="y", rotation=0)


def wave_map(waves: Iterable[tuple[int, int]], values: Sequence[float]) -> pd.DataFrame:
    """Return one value for each wave (fx, fy), in their order, by vertical (rows) and horizontal frequency."""
    table = pd.DataFrame(list(waves), columns=["fx", "fy"])
    table = table.assign(value=np.asarray(values))  # a series would be matched by its index
    return table.pivot(index="fy", columns="fx", values="value")


def wave_maps(table: pd.DataFrame, values: str) -> dict[str, pd.DataFrame]:
    """Return a map for each network, by vertical (rows) and horizontal frequency.

    The table has the columns network, fx and fy, and the one named by ``values``.
    """
    networks = table.groupby("network", sort=False)
    return {name: rows.pivot(index="fy", columns="fx", values=values) for name, rows in networks}


def accuracy_maps(maps: Mapping[str, pd.DataFrame], *, low: float = 50.0, high: float = 100.0) -> Figure:
    """Return heat maps side by side, one colour scale: accuracy (%) by vertical (rows) and horizontal frequency."""
    figure, axes = _panels(len(maps), 4.2, 4.2, extra=0.6)
    for axis, (title, table) in zip(axes, maps.items(), strict=True):
        last = axis is _corner(axes)
        sns.heatmap(
            table,
            ax=axis,
            vmin=low,
            vmax=high,
            cmap=SEQUENTIAL,
            annot=table.size <= ANNOTATED,
            fmt=".0f",
            cbar=last,
            cbar_kws={"label": "test accuracy (%)"} if last else None,
        )
        _by_frequency(axis, title, first=_first(axis))
    return figure


def log_map(table: pd.DataFrame, *, label: str) -> Figure:
    """Return one heat map of positive numbers on a logarithmic colour scale, by vertical and horizontal frequency."""
    figure = _figure(5, 4.2)
    axis = figure.subplots()
    sns.heatmap(table, ax=axis, norm=LogNorm(), cmap=SEQUENTIAL, cbar_kws={"label": label, "format": "%g"})
    _by_frequency(axis)
    return figure


def hover_map(table: pd.DataFrame, *, label: str, low: float = 50.0, high: float = 100.0) -> str:
    """Return an inline SVG of a heat map (%) whose cells tell their frequency and value when pointed at.

    It needs no script and no network: the text is each cell's SVG title.
    """
    colours = plt.get_cmap(SEQUENTIAL)
    side, margin = 24, 4
    cells = []
    for row, (fy, values) in enumerate(table.iterrows()):
        for column, (fx, value) in enumerate(values.items()):
            if pd.isna(value):
                continue
            colour = to_hex(colours((value - low) / (high - low)))
            text = html.escape(f"{label}: frequency ({fx}, {fy}), {value:.1f} %")
            cells.append(
                f'<rect x="{margin + side * column}" y="{margin + side * row}" width="{side - 1}" '
                f'height="{side - 1}" fill="{colour}"><title>{text}</title></rect>'
            )
    width, height = (2 * margin + side * n for n in reversed(table.shape))
    name = html.escape(f"{label}: test accuracy by frequency; point at a cell to read it")
    return (
        f'<svg role="img" aria-label="{name}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(cells)}</svg>'
    )


def images_and_spectra(images: Tensor, titles: Sequence[str], *, theirs: Tensor | None = None) -> Figure:
    """Return one-channel images (K, H, W) above the magnitudes of their Fourier transforms, zero frequency centred.

    A paper's own counterparts of the first ones, ``theirs`` (M, H, W) with M up to K, stand below them.
    """
    groups = [images] if theirs is None else [images, theirs]
    figure = _figure(min(1.6 * len(images) + 0.4, WIDEST), 3.7 * len(groups) - 0.1)
    axes = figure.subplots(2 * len(groups), len(images), squeeze=False)
    for i, group in enumerate(groups):
        above, below = axes[2 * i : 2 * i + 2]
        _draw_with_spectra(group.double().cpu(), above, below)
        above[0].set_ylabel("pixels")
        below[0].set(ylabel="spectrum", xlabel="cycles")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    if theirs is not None:
        axes[2, 0].set_title(PUBLISHED, loc="left")
    return figure


def _draw_with_spectra(images: Tensor, above: Sequence[Axes], below: Sequence[Axes]) -> None:
    height, width = images.shape[1:]
    left, top = -(width // 2), -(height // 2)  # the lowest frequencies, of odd sizes, too
    extent = (left - 0.5, left + width - 0.5, top + height - 0.5, top - 0.5)
    spectra = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1)).abs()
    for axis, image in zip(above, images, strict=False):
        limit = image.abs().max().item()
        axis.imshow(image.numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit)
        axis.set(xticks=[], yticks=[])
    for axis, spectrum in zip(below, spectra, strict=False):
        axis.imshow(spectrum.numpy(), cmap=SEQUENTIAL, extent=extent)
        axis.set(xticks=[left, 0], yticks=[top, 0] if axis is below[0] else [])
    for axis in (*above[len(images) :], *below[len(images) :]):
        axis.axis("off")


def directions(basis: "Basis", k: int = 10) -> Figure:
    """Return the first k directions of a basis as images, zero in the middle of the colours, each on its own scale.

    A title is a direction's index, with its eigenvalue where it has one.

    Raises:
        ValueError: k is not from 1 to K; images of neither one nor three channels.
    """
    basis = basis.leading(k)
    if (channels := basis.shape[0]) not in (1, 3):
        raise ValueError(f"{basis.name}: expected images of one channel or three, got {channels}; plot its .images")
    columns = min(k, 5)
    rows = math.ceil(k / columns)
    figure = _figure(1.6 * columns + 0.4, 1.9 * rows + 0.2)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for i, (axis, image) in enumerate(zip(axes, basis.images.cpu(), strict=False)):
        image = image / image.abs().max()
        image = image[0] if channels == 1 else (0.5 + image / 2).permute(1, 2, 0)
        axis.imshow(image.numpy(), cmap=DIVERGING, vmin=-1, vmax=1)
        axis.set(
            title=f"{i}" if basis.eigenvalues is None else f"{i}: {basis.eigenvalues[i]:.2g}", xticks=[], yticks=[]
        )
    for axis in axes[k:]:
        axis.remove()
    return figure


def pictures(rows: Mapping[str, Tensor], titles: Sequence[str]) -> Figure:
    """Return colour images (K, 3, H, W) from 0 to 1, a row of K for each name; values beyond 0 and 1 are clipped."""
    figure = _figure(1.15 * len(titles) + 0.4, 1.3 * len(rows) + 0.2)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images.detach().cpu().clamp(0, 1), strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return figure


def lines(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str | None = None,
    log_x: bool = False,
    legend_beside: bool = False,
    dashed: Mapping[str, str] | None = None,
) -> Figure:
    """Return column ``y`` against column ``x`` as a marked line, one for each value of ``hue``.

    Where rows share an ``x``, the line is their mean, in a band of two standard errors. ``legend_beside`` puts the
    names of the lines beside the panel, where many or long ones have room. Lines named in ``dashed`` are dashed and on
    top; each has the colour of the line that it is mapped to, which may be itself.
    """
    figure = _figure(9.5 if legend_beside else 6.4, 4)
    axis = figure.subplots()
    if dashed:
        frame = frame.sort_values(hue, key=lambda names: names.isin(list(dashed)), kind="stable")
    sns.lineplot(frame, x=x, y=y, ax=axis, errorbar=("se", 2), **_line_marks(frame, hue, dashed or {}))
    if log_x:
        axis.set_xscale("log")
    if hue is not None:
        axis.legend(**(LEGEND_BESIDE if legend_beside else {"frameon": False}))
    return figure


def _line_marks(
    frame: pd.DataFrame, hue: str | None, dashed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, object]:
    """Return how seaborn is to tell lines apart: by colour and by mark, and some by dashes."""
    if hue is None:
        return {"marker": "o"}
    palette = _colours(name for name in frame[hue] if dashed.get(name, name) == name)
    palette |= {name: palette[other] for name, other in dashed.items()}
    dashes = {name: (3, 2) if name in dashed else "" for name in palette} if dashed else False
    return {"hue": hue, "palette": palette, "style": hue, "markers": True, "dashes": dashes}


def by_group(frame: pd.DataFrame, *, x: str, y: str | Mapping[str, str], label: str, hue: str | None = None) -> Figure:
    """Return column ``y`` of every row by its group ``x``, with means and intervals of two standard errors.

    With ``hue``, the rows of a group are told apart by that column, side by side. Several columns ``y``, each with its
    title, have a panel each, on one scale; groups without a number in a column are left out of its panel.
    """
    columns = {y: ""} if isinstance(y, str) else y
    figure, axes = _panels(len(columns), 6.4, 4, extra=0, sharey=True)
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        rows = frame.dropna(subset=column) if len(columns) > 1 else frame
        _groups(axis, rows, x=x, y=column, hue=hue, room=ROOM / len(columns))
        axis.set(title=title, ylabel=label if _first(axis) else "")
        if axis is not _corner(axes) and axis.get_legend():
            axis.get_legend().remove()
    return figure


def _groups(axis: Axes, frame: pd.DataFrame, *, x: str, y: str, hue: str | None, room: float) -> None:
    """Draw `by_group` on one panel, below which there is room for so many characters."""
    kinds = 1 if hue is None else frame[hue].nunique()
    # seaborn spreads dots over 0.8 of a group: the means stand among their own
    colours = {"hue": hue, "palette": _colours(frame[hue])} if kinds > 1 else {}
    beside = {**colours, "dodge": 0.8 - 0.8 / kinds} if kinds > 1 else {}
    pale = {**colours, "dodge": True, "alpha": 0.4, "legend": False} if kinds > 1 else {"color": "0.6"}
    marks = {"markers": list(itertools.islice(itertools.cycle("os^DvP"), kinds))} if kinds > 1 else {}
    with _spread_alike():
        sns.stripplot(frame, x=x, y=y, ax=axis, jitter=0.1, zorder=1, **pale)
    options = {"errorbar": ("se", 2), "linestyle": "none", "capsize": 0.1, "zorder": 2}
    sns.pointplot(frame, x=x, y=y, ax=axis, **options, **beside, **marks)
    axis.set(xlabel="")
    if sum(max(map(len, str(name).splitlines()), default=0) for name in frame[x].unique()) > room:
        axis.tick_params(axis="x", rotation=90)
    if kinds > 1:
        axis.legend(frameon=False)


def accuracy_by_index(table: pd.DataFrame) -> Figure:
    """Return accuracy (%) and eigenvalue against the index of a direction, and accuracy against eigenvalue.

    Args:
        table: a row per direction: its ``series`` ("NAD", "NAD again", "random" or "logistic regression"), ``index``,
            ``eigenvalue`` (divided by the mean), ``accuracy`` and, where there is one, ``published`` accuracy.
    """
    figure = _figure(10.5, 5.2)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.7, 1))
    top, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[:, 1])
    bottom = figure.add_subplot(grid[1, 0], sharex=top)
    _accuracies(top, right, table)
    nads = table[table.series == "NAD"]
    bottom.plot(nads["index"] + 1, nads.eigenvalue, color=sns.color_palette("colorblind")[0], marker="o", markersize=4)
    limits = (min(45, table.accuracy.min() - 2), 102)
    top.set(xscale="log", ylabel="test accuracy (%)", ylim=limits)
    top.tick_params(labelbottom=False)
    bottom.set(yscale="log", xlabel="index of the direction, from 1", ylabel="eigenvalue / mean")
    right.set(
        xscale="log", xlabel="eigenvalue / mean, or variance / mean variance", ylabel="test accuracy (%)", ylim=limits
    )
    for axis in (bottom.xaxis, bottom.yaxis, right.xaxis):
        axis.set_major_formatter("{x:g}")
    top.legend(frameon=False, fontsize="small")
    return figure


def _accuracies(by_index: Axes, by_eigenvalue: Axes, table: pd.DataFrame) -> None:
    """Draw the accuracies of `accuracy_by_index`; those along random directions are a band by index, and triangles."""
    blue, orange, green = sns.color_palette("colorblind", 3)
    rows = {series: table[table.series == series] for series in ("NAD", "NAD again", "random", "logistic regression")}
    marks = {
        "NAD": {"color": blue, "marker": "o"},
        "NAD again": {"color": blue, "marker": "o", "markerfacecolor": "none"},
        "logistic regression": {"color": green, "marker": "x"},
    }
    for series, mark in marks.items():
        if len(found := rows[series]):
            look = {"linestyle": "none", "markersize": 4, "label": series, **mark}
            by_index.plot(found["index"] + 1, found.accuracy, **look)
            by_eigenvalue.plot(found.eigenvalue, found.accuracy, **look)
    if len(known := rows["NAD"].dropna(subset="published")):
        by_index.plot(known["index"] + 1, known.published, color="black", marker=".", linewidth=0.8, label="published")
    if len(random := rows["random"].accuracy):
        by_index.axhspan(random.min(), random.max(), color=orange, alpha=0.3, linewidth=0, label="random")
        triangles = {"linestyle": "none", "marker": "^", "color": orange}
        drawn = by_eigenvalue.plot(rows["random"].eigenvalue, random, label="random", **triangles)
        by_eigenvalue.legend(handles=drawn, frameon=False, fontsize="small")


@contextmanager
def _spread_alike() -> Iterator[None]:
    """Let seaborn spread dots by the same draws each time: one table has one picture."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def dots(table: pd.DataFrame, *, y: str, x: Sequence[str], hue: str, band: str) -> Figure:
    """Return columns ``x`` of every row as dots, a panel each, in rows by ``y``; all panels share them.

    The rows named ``band`` are what the others are compared with: a grey band, two of their standard deviations to each
    side of their mean, runs through every panel.
    """
    figure = _figure(min(3.2 * len(x) + 2, WIDEST), 0.24 * table[y].nunique() + 1.2)
    axes = figure.subplots(1, len(x), squeeze=False, sharey=True)[0]
    for axis, column in zip(axes, x, strict=True):
        of_band = table.loc[table[y] == band, column]
        axis.axvspan(of_band.mean() - 2 * of_band.std(), of_band.mean() + 2 * of_band.std(), color="0.88", zorder=0)
        sns.stripplot(table, x=column, y=y, hue=hue, ax=axis, jitter=False, size=7, legend=False)
        axis.grid(axis="y", color="0.9")
        axis.set(ylabel="")
    return figure


def colour_images(images: Tensor, titles: Sequence[str]) -> Figure:
    """Return three-channel images (K, 3, H, W) side by side, zero as mid-grey, each scaled by its largest entry."""
    figure, axes = _panels(len(images), 1.6, 2, extra=0.4)
    for axis, image, title in zip(axes, images, titles, strict=True):
        image = image.double().cpu()
        axis.imshow((0.5 + image / (2 * image.abs().max())).permute(1, 2, 0).numpy())
        axis.set(title=title, xticks=[], yticks=[])
    return figure


def log_maps(maps: Mapping[str, pd.DataFrame], *, label: str) -> Figure:
    """Return heat maps of positive numbers by vertical and horizontal frequency, on one logarithmic scale."""
    figure, axes = _panels(len(maps), 3.4, 3.4, extra=1)
    norm = LogNorm(*(pd.concat(maps).stack().agg(["min", "max"])))
    for axis, (title, table) in zip(axes, maps.items(), strict=True):
        sns.heatmap(table, ax=axis, norm=norm, cmap=SEQUENTIAL, cbar=False, xticklabels=8, yticklabels=8)
        _by_frequency(axis, title, first=_first(axis))
    figure.colorbar(axes[-1].collections[0], ax=axes, label=label)
    return figure


def scatter(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    panel: str,
    style: str,
    log_x: bool = True,
    share: bool | str = True,
    empty: str = "",
) -> Figure:
    """Return column ``y`` against column ``x``, a panel for each ``panel``, a mark for each ``style``.

    With ``share`` the panels have the same axes; if it is "y", they have only the y axis in common. ``empty`` is the
    title of one more panel, without marks: `beside` can draw there.
    """
    groups = [*frame.groupby(panel, sort=False), *([(empty, frame[:0])] if empty else [])]
    figure, axes = _panels(len(groups), 3.2, 3.4, extra=1.4, sharex=share is True, sharey=bool(share))
    palette = _colours(frame[style])
    order = {"hue_order": list(palette), "style_order": list(palette), "palette": palette}
    for axis, (name, rows) in zip(axes, groups, strict=True):
        if len(rows):
            legend = "auto" if axis is axes[0] else False
            sns.scatterplot(rows, x=x, y=y, hue=style, style=style, ax=axis, legend=legend, **order)
        axis.set(xscale="log" if log_x else "linear", title=name, xlabel="", ylabel=y if _first(axis) else "")
    figure.supxlabel(x, fontsize="medium")
    marks = axes[0].get_legend_handles_labels()
    axes[0].get_legend().remove()
    _corner(axes).legend(*marks, title=style, **LEGEND_BESIDE)
    return figure


def step_maps(maps: Mapping[str, pd.DataFrame], *, most: int) -> Figure:
    """Return heat maps of numbers of steps side by side, one logarithmic scale up to ``most``; NaN (never) is grey."""
    figure, axes = _panels(len(maps), 3.6, 3.6, extra=1)
    reached = pd.concat([table.stack() for table in maps.values()])
    fewest = min(reached.min(), most - 1) if reached.notna().any() else 1
    for axis, (title, table) in zip(axes, maps.items(), strict=True):
        sns.heatmap(
            table,
            ax=axis,
            norm=LogNorm(fewest, most),
            vmin=fewest,  # otherwise seaborn looks for it, in vain where nothing was reached
            vmax=most,
            cmap=SEQUENTIAL,
            annot=table.size <= ANNOTATED,
            fmt=".0f",
            cbar=False,
        )
        axis.set_facecolor("0.85")
        _by_frequency(axis, title, first=_first(axis))
    bar = figure.colorbar(axes[-1].collections[0], ax=axes, label=f"steps (grey: not within {most})", format="%.0f")
    bar.set_ticks(LogLocator(subs=(1, 2, 5)))
    bar.minorticks_off()
    return figure


def sampled_waves(waves: Mapping[str, Tensor], *, stride: int, fine: int) -> Figure:
    """Return signals, drawn at ``fine`` points a position, with a dot at every ``stride``-th position."""
    figure = _figure(6.4, 2.8)
    axis = figure.subplots()
    for (label, wave), mark in zip(waves.items(), itertools.cycle("oxs^")):
        position = torch.arange(len(wave)) / fine
        (line,) = axis.plot(position, wave, linewidth=1)
        kept = slice(None, None, stride * fine)
        style = {"color": line.get_color(), "markersize": 9 if mark == "o" else 6, "fillstyle": "none"}
        axis.plot(position[kept], wave[kept], linestyle="none", marker=mark, label=label, **style)
    axis.set(xlabel="position")
    axis.legend(**LEGEND_BESIDE)
    return figure


def thinned(frame: pd.DataFrame, most: int = 400) -> pd.DataFrame:
    """Return at most ``most`` rows of a table, evenly spread, for a figure in which more marks would not show more."""
    return frame.iloc[:: max(1, math.ceil(len(frame) / most))]


def by_layer(
    frame: pd.DataFrame, *, x: str, y: str, panel: str, symlog: bool = False, log_y: bool = False, empty: str = ""
) -> Figure:
    """Return column ``y`` against column ``x``, a colour and a mark for each ``layer``, a panel for each ``panel``.

    With ``log_y`` the y axis is logarithmic; with ``symlog`` it is linear up to a power of ten, the next above the
    median size of ``y`` where that is not zero, and logarithmic beyond. ``empty`` is the title of one more panel, with
    linear axes and without dots: `beside` can draw there.

    Raises:
        ValueError: both are asked for.
    """
    if symlog and log_y:
        raise ValueError("expected symlog or log_y, got both")
    groups = frame.groupby(panel, sort=False)
    figure, axes = _panels(len(groups) + bool(empty), 4.6, 3.8, extra=0.4)
    if empty:
        axes.pop().set_title(empty)
    for axis, (name, rows) in zip(axes, groups, strict=True):
        size = rows[y].abs()
        if symlog and (size > 0).any():
            axis.set_yscale("symlog", linthresh=10 ** math.ceil(math.log10(size[size > 0].median())))
            axis.axhline(0, color="0.8", linewidth=1, zorder=0)
        if log_y:
            axis.set_yscale("log")
        colours = ordered_palette(rows.layer)
        of_layer = {"hue": "layer", "palette": colours, "style": "layer", "style_order": list(colours)}
        of_layer["markers"] = list(itertools.islice(itertools.cycle("os^DvP"), len(colours)))
        sns.scatterplot(rows, x=x, y=y, ax=axis, linewidth=0, alpha=0.7, legend="full", **of_layer)
        axis.set(title=name, xlabel="")
        axis.legend(title="layer", fontsize="small", **LEGEND_BESIDE)
    for axis in axes[1:]:
        axis.set_ylabel("")
    if len({tuple(rows.layer.unique()) for _, rows in groups}) == 1:
        for axis in axes[:-1]:
            axis.get_legend().remove()
    figure.supxlabel(x, fontsize="medium")
    return figure


def curves(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    error: str,
    hue: str,
    panel: str,
    marks: Mapping[str, float] | None = None,
    log_x: bool = False,
    share_x: bool = True,
) -> Figure:
    """Return column ``y`` over column ``x`` as lines in bands of +- ``error``, one for each ``hue``, by ``panel``.

    Dashed upright lines stand at the ``marks``, each in the colour of its ``hue``. With ``share_x`` the panels have the
    same x axis.
    """
    groups, colours = frame.groupby(panel, sort=False), _colours(frame[hue])
    figure, axes = _panels(len(groups), 4, 3.6, extra=1.8, sharex=share_x, sharey=True)
    shapes = dict(zip(colours, itertools.cycle("os^DvP"), strict=False))
    for axis, (title, rows) in zip(axes, groups, strict=True):
        for name, line in rows.groupby(hue, sort=False):
            axis.plot(line[x], line[y], color=colours[name], marker=shapes[name], markersize=4, label=name)
            axis.fill_between(line[x], line[y] - line[error], line[y] + line[error], color=colours[name], alpha=0.2)
        for name, at in (marks or {}).items():
            axis.axvline(at, color=colours[name], linestyle="--", linewidth=1)
        below = x if axis in _lowest(axes) else ""
        axis.set(title=title, xlabel=below, ylabel=y if _first(axis) else "", xscale="log" if log_x else "linear")
    lines = {line.get_label(): line for axis in axes for line in axis.get_legend_handles_labels()[0]}
    _corner(axes).legend(lines.values(), lines, title=hue, **LEGEND_BESIDE)
    return figure


def ablation(ablated: Mapping[str, "Curve"]) -> Figure:
    """Return accuracy over the fraction of units ablated, a line for each name, as `layer_curves` gives them.

    Bands are two standard errors over the orderings.
    """
    rows = [
        pd.DataFrame({"fraction of units ablated": curve.fraction, "accuracy": scores, "layer": name})
        for name, curve in ablated.items()
        for scores in curve.accuracy.cpu()
    ]
    return side_by_side(pd.concat(rows), x="fraction of units ablated", y=["accuracy"], hue="layer")


def tap_graphs(table: pd.DataFrame, *, panel: str) -> Figure:
    """Return matrices over the taps of a window as graphs: those of the filter above, those of the window below.

    A line joins tap i of the filter and tap j of the window, its width the root of the entry (i, j): blue where that is
    positive, orange where it is negative. Columns: ``panel``, filter tap, window tap, entry; within a panel the largest
    entry has the widest line.
    """
    groups = table.groupby(panel, sort=False)
    figure, axes = _panels(len(groups), 2.6, 2.3)
    colours = sns.color_palette("colorblind")
    for axis, (name, rows) in zip(axes, groups, strict=True):
        largest = rows.entry.abs().max() or 1.0
        for i, j, entry in rows[["filter tap", "window tap", "entry"]].itertuples(index=False):
            share = math.sqrt(abs(entry) / largest)
            axis.plot([i, j], [1, 0], color=colours[0 if entry > 0 else 1], linewidth=3 * share, alpha=share)
        taps = sorted(rows["filter tap"].unique())
        axis.scatter([*taps, *taps], [1] * len(taps) + [0] * len(taps), color=GREY, s=25, zorder=3)
        axis.set(title=name, xticks=taps, yticks=[0, 1], yticklabels=["window", "filter"], xlabel="tap")
        axis.spines[["left", "bottom"]].set_visible(False)
    return figure


def matrices(table: pd.DataFrame, *, panel: str, label: str = "entry") -> Figure:
    """Return matrices over the taps of a window as heat maps side by side, on one scale with zero in its middle.

    Columns: ``panel``, filter tap (rows), window tap (columns), entry.
    """
    groups = table.groupby(panel, sort=False)
    figure, axes = _panels(len(groups), 2.6, 2.8, extra=0.8)
    largest = table.entry.abs().max()
    for axis, (name, rows) in zip(axes, groups, strict=True):
        matrix = rows.pivot(index="filter tap", columns="window tap", values="entry")
        drawn = axis.imshow(matrix.to_numpy(), cmap=DIVERGING, vmin=-largest, vmax=largest)
        ticks = range(0, len(matrix), 2)
        axis.set(
            title=name, xlabel="window tap", ylabel="filter tap" if _first(axis) else "", xticks=ticks, yticks=ticks
        )
    figure.colorbar(drawn, ax=axes, shrink=0.8, label=label)
    return figure


def kernels(table: pd.DataFrame, *, panel: str, label: str) -> Figure:
    """Return similarities of images as heat maps side by side, on one scale that ignores the diagonal.

    Columns: ``panel``; ``image``, the number of a row; and ``"0"``, ``"1"``, ... for the columns of the matrix.
    """
    groups = {name: rows.drop(columns=[panel, "image"]).to_numpy() for name, rows in table.groupby(panel, sort=False)}
    figure, axes = _panels(len(groups), 2.3, 2.6, extra=0.9)
    others = pd.concat([pd.Series(k[~np.eye(len(k), dtype=bool)]) for k in groups.values()])
    for axis, (name, kernel) in zip(axes, groups.items(), strict=True):
        drawn = axis.imshow(kernel, cmap=SEQUENTIAL, vmin=others.min(), vmax=others.max())
        axis.set(title=name, xticks=[], yticks=[], xlabel="images", ylabel="images" if _first(axis) else "")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label=label)
    return figure


def strips(frame: pd.DataFrame, *, x: str, y: str, panel: str) -> Figure:
    """Return column ``y`` of every row as a dot at its ``x``, a panel with a scale of its own for each ``panel``.

    Of more than eight places, every second has its name below it.
    """
    groups = frame.groupby(panel, sort=False)
    figure, axes = _panels(len(groups), 3.2, 3.2, extra=0.4)
    for axis, (name, rows) in zip(axes, groups, strict=True):
        with _spread_alike():
            sns.stripplot(rows, x=x, y=y, ax=axis, jitter=0.15, alpha=0.7)
        axis.set(title=name, ylabel=y if _first(axis) else "")
        if len(axis.get_xticks()) > 8:  # more labels would run together
            axis.set_xticks(axis.get_xticks()[::2], [text.get_text() for text in axis.get_xticklabels()[::2]])
    return figure


def intervals(table: pd.DataFrame, *, x: str, y: str, error: str) -> Figure:
    """Return column ``x`` with bars of +- ``error``, a row for each ``y``, the first on top; a line marks zero."""
    figure = _figure(6.4, 0.36 * len(table) + 1)
    axis = figure.subplots()
    axis.axvline(0, color="0.8", linewidth=1, zorder=0)
    axis.errorbar(table[x], range(len(table)), xerr=table[error], fmt="o", capsize=3)
    axis.set(xlabel=x, yticks=range(len(table)), yticklabels=table[y])
    axis.invert_yaxis()
    return figure


def stacked(
    frame: pd.DataFrame, *, x: str, y: Sequence[str], marks: Mapping[str, float], log: Sequence[str] = ()
) -> Figure:
    """Return columns ``y`` over column ``x``, one panel below the other, and dashed lines at the ``marks``.

    Where rows share an ``x``, a line is their mean, in a band of two standard errors. The columns in ``log`` have
    logarithmic axes.
    """
    figure = _figure(6.4, 2 * len(y) + 0.6)
    axes = figure.subplots(len(y), 1, squeeze=False, sharex=True)[:, 0]
    colours = sns.color_palette("colorblind")[1:]
    for axis, column in zip(axes, y, strict=True):
        sns.lineplot(frame, x=x, y=column, ax=axis, errorbar=("se", 2), marker="o", markersize=5)
        for (name, at), colour, dash in zip(marks.items(), colours, itertools.cycle(["--", ":", "-."]), strict=False):
            axis.axvline(at, color=colour, linestyle=dash, label=name)
        if x in log:
            axis.set_xscale("log")
        if column in log:
            log_scale(axis)
            axis.set_ylabel(column + LOG_SCALE)
    axes[0].legend(**LEGEND_BESIDE)
    return figure


def side_by_side(frame: pd.DataFrame, *, x: str, y: Sequence[str], hue: str | None = None) -> Figure:
    """Return each column of ``y`` against column ``x`` in its own panel and on its own scale, a line per ``hue``.

    Lines are means over rows that share an ``x``, in bands of two standard errors. Words in ``x`` stand equally far
    apart, in the order of the table.
    """
    figure, axes = _panels(len(y), 3.8, 3.4, extra=1.6 if hue else 0.2, sharex=True)
    for axis, column in zip(axes, y, strict=True):
        shown = {} if hue is None else {"legend": "full" if axis is _corner(axes) else False}
        sns.lineplot(frame, x=x, y=column, ax=axis, errorbar=("se", 2), **_line_marks(frame, hue), **shown)
    if hue is not None:
        _corner(axes).legend(**LEGEND_BESIDE)
    return figure


def by_level(frame: pd.DataFrame, *, x: str, y: str, hue: str) -> Figure:
    """Return `by_group` with the name of the groups, ``x``, below them."""
    figure = by_group(frame, x=x, y=y, label=y, hue=hue)
    figure.axes[0].set_xlabel(x)
    return figure


def beside(
    figure: Figure,
    theirs: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str | None = None,
    panel: str | None = None,
    dots: bool = False,
) -> Figure:
    """Draw a paper's own numbers on a figure of ours, and return the figure: dashed lines, or hollow grey dots.

    ``theirs`` has the columns of the table that our figure shows. A row goes to the panel that has its ``panel`` as
    title; without ``panel`` it goes to the first panel with ``y`` upwards. A line takes the colour of our line of
    the same ``hue``; without ``hue`` it is grey. Rows without such a panel or line of ours are left out.
    """
    by_title = {axis.get_title(): axis for axis in figure.axes}
    first = next(axis for axis in figure.axes if axis.get_ylabel().removesuffix(LOG_SCALE) == y)
    handles = itertools.chain(*(zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes))
    colours = {label: handle.get_color() for handle, label in handles if isinstance(handle, Line2D)}
    of_lines, of_dots = {"linestyle": "--"}, {"linestyle": "none", "marker": "o", "fillstyle": "none", "markersize": 4}
    look = (of_dots if dots else of_lines) | {"linewidth": 1.2, "zorder": 1.5}
    keys = [theirs[key] if key else pd.Series("", index=theirs.index) for key in (panel, hue)]
    drawn = []
    for (title, name), rows in theirs.groupby(keys, sort=False):
        axis, colour = by_title.get(title) if panel else first, colours.get(name) if hue else GREY
        if axis is not None and colour is not None:
            drawn += axis.plot(rows[x], rows[y], color=colour, **look)
    if drawn and not figure.legends:
        key = Line2D([], [], color=GREY, label=READ_OFF, **look)
        figure.legend(handles=[key], frameon=False, loc="outside upper right")
    return figure


class _FewDecades(LogLocator):
    """Ticks at powers of ten; also at 2 and 5 within two decades, and at 2, 3, 4 and 6 within one."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        """Return where the ticks of a view stand."""
        within = vmax / vmin if vmin > 0 else math.inf
        self.set_params(subs=(1, 2, 3, 4, 6) if within < 10 else (1, 2, 5) if within < 100 else (1,))
        return super().tick_values(vmin, vmax)


def log_scale(axis: Axes) -> None:
    """Give a panel a logarithmic y axis with plain numbers, the more of them the fewer decades it spans."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(_FewDecades())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", left=False, labelleft=False)


def second_scale(axis: Axes, *, x: str | None = None, y: str | None = None, factor: float) -> None:
    """Draw a second scale, with the given name, opposite the x or the y axis or both: the values times a factor.

    Raises:
        ValueError: neither is named.
    """
    if x is None and y is None:
        raise ValueError("expected the name of a second scale, x or y")
    functions = (lambda values: values * factor), (lambda values: values / factor)
    if x is not None:
        axis.secondary_xaxis("top", functions=functions).set_xlabel(x)
    if y is not None:
        axis.secondary_yaxis("right", functions=functions).set_ylabel(y)


def in_space(frame: pd.DataFrame, *, colour: str, row: str, panel: str) -> Figure:
    """Return points (columns x, y, z) coloured from 0 to 1 by a column, by ``row`` and ``panel``; the first is a star.

    Values above 1 have the last colour. The upright axis has no name, which would stand above the colour bar.
    """
    rows, panels = frame[row].unique(), frame[panel].unique()
    figure = _figure(3.7 * len(panels) + 0.8, 3.3 * len(rows))
    axes = figure.subplots(len(rows), len(panels), squeeze=False, subplot_kw={"projection": "3d"})
    for (i, j), axis in zip(itertools.product(rows, panels), axes.flat, strict=True):
        points = frame[(frame[row] == i) & (frame[panel] == j)]
        colours = {"c": points[colour], "cmap": SEQUENTIAL, "vmin": 0, "vmax": 1}
        shown = axis.scatter(points.x, points.y, points.z, **colours, s=28, depthshade=False)
        axis.scatter(*points[["x", "y", "z"]].iloc[0], color="crimson", marker="*", s=180, depthshade=False)
        axis.set(
            title=f"{i}: {j}",
            xlabel="x",
            ylabel="y",
            zticks=[points.z.min().round(), points.z.max().round()],
        )
        axis.tick_params(labelsize="small", pad=-2)
        axis.set_box_aspect((1, 1, 0.4))
        axis.view_init(elev=45)
    figure.colorbar(shown, ax=axes, label=colour, shrink=0.6)
    return figure
