"""Figures of the book: results in, a figure (or inline HTML) out, in colours safe for colour-blind readers."""

import html
from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from torch import Tensor

SEQUENTIAL = "cividis"
DIVERGING = "RdBu_r"
ANNOTATED = 64
"""Up to this many cells a heat map carries its numbers."""


def style() -> None:
    """Set the book's look for every figure that follows."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure (inches) that pyplot has forgotten, so that a notebook shows it just once."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure


def accuracy_maps(maps: Mapping[str, pd.DataFrame], *, low: float = 50.0, high: float = 100.0) -> Figure:
    """Return heat maps side by side, one colour scale: accuracy (%) by vertical (rows) and horizontal frequency."""
    figure = _figure(4.2 * len(maps) + 0.6, 4.2)
    axes = figure.subplots(1, len(maps), squeeze=False)
    for axis, (title, table) in zip(axes[0], maps.items(), strict=True):
        last = axis is axes[0, -1]
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
        axis.set(title=title, xlabel="horizontal frequency", ylabel="vertical frequency" if axis is axes[0, 0] else "")
        axis.tick_params(axis="y", rotation=0)
    return figure


def log_map(table: pd.DataFrame, *, label: str) -> Figure:
    """Return one heat map of positive numbers on a logarithmic colour scale, by vertical and horizontal frequency."""
    figure = _figure(5, 4.2)
    axis = figure.subplots()
    sns.heatmap(table, ax=axis, norm=LogNorm(), cmap=SEQUENTIAL, cbar_kws={"label": label})
    axis.set(xlabel="horizontal frequency", ylabel="vertical frequency")
    axis.tick_params(axis="y", rotation=0)
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


def images_and_spectra(images: Tensor, titles: Sequence[str]) -> Figure:
    """Return one-channel images (K, H, W) above the magnitudes of their Fourier transforms, zero frequency centred."""
    count, height, width = images.shape
    images = images.double().cpu()
    figure = _figure(1.6 * count + 0.4, 3.6)
    axes = figure.subplots(2, count, squeeze=False)
    spectra = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1)).abs()
    extent = (-width / 2 - 0.5, width / 2 - 0.5, height / 2 - 0.5, -height / 2 - 0.5)
    for k, title in enumerate(titles):
        limit = images[k].abs().max().item()
        axes[0, k].imshow(images[k].numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit)
        axes[0, k].set(title=title, xticks=[], yticks=[])
        axes[1, k].imshow(spectra[k].numpy(), cmap=SEQUENTIAL, extent=extent)
        axes[1, k].set(xticks=[-width // 2, 0], yticks=[-height // 2, 0] if k == 0 else [])
    axes[0, 0].set_ylabel("pixels")
    axes[1, 0].set_ylabel("spectrum")
    return figure


def lines(frame: pd.DataFrame, *, x: str, y: str, hue: str | None = None, log_x: bool = False) -> Figure:
    """Return column ``y`` against column ``x`` as a marked line, one for each value of ``hue``."""
    figure = _figure(6.4, 4)
    axis = figure.subplots()
    marks = {"marker": "o"} if hue is None else {"hue": hue, "style": hue, "markers": True}
    sns.lineplot(frame, x=x, y=y, ax=axis, **marks)
    if log_x:
        axis.set_xscale("log")
    if hue is not None:
        axis.legend(frameon=False)
    return figure


def by_group(frame: pd.DataFrame, *, x: str, y: str, label: str) -> Figure:
    """Return column ``y`` of every row by its group ``x``, with means and intervals of two standard errors."""
    figure = _figure(6.4, 4)
    axis = figure.subplots()
    sns.stripplot(frame, x=x, y=y, ax=axis, color="0.6", jitter=0.1, zorder=1)
    sns.pointplot(frame, x=x, y=y, ax=axis, errorbar=("se", 2), linestyle="none", capsize=0.1, zorder=2)
    axis.set(xlabel="", ylabel=label)
    return figure
