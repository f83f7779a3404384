"""Figures: results in, a figure out that shows them."""

import math
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nadkit import directions, plots


@pytest.fixture(autouse=True)
def _house_style():
    with plt.rc_context():
        plots.style()
        yield
    assert plt.get_fignums() == []  # pyplot knows none of them, so a notebook shows each once


def draw(figure: Figure) -> list:
    figure.canvas.draw()
    return figure.axes


@pytest.fixture
def table():
    return pd.DataFrame([[50.0, 75.0, math.nan], [100.0, 60.0, 55.5]], index=[-2, 0], columns=[0, 2, 4])


def test_accuracy_maps_share_a_scale_and_carry_numbers(table):
    axes = draw(plots.accuracy_maps({"a": table, "b": table + 1}))
    assert [axis.get_title() for axis in axes[:2]] == ["a", "b"]
    assert {text.get_text() for text in axes[0].texts} == {"50", "75", "100", "60", "56"}
    assert len({axis.collections[0].get_clim() for axis in axes[:2]}) == 1


def test_large_maps_carry_no_numbers():
    axes = draw(plots.accuracy_maps({"a": pd.DataFrame(torch.full((16, 16), 70.0).numpy())}))
    assert list(axes[0].texts) == []


def test_log_map_spans_decades():
    (axis, _) = draw(plots.log_map(pd.DataFrame([[0.01, 1.0], [10.0, 100.0]]), label="variance"))
    assert axis.collections[0].norm.vmin == 0.01
    assert axis.collections[0].norm(1.0) == pytest.approx(0.5)


def test_hover_map_is_well_formed_and_escapes(table):
    root = ET.fromstring(plots.hover_map(table, label="<lenet>"))
    titles = [element.text for element in root.iter("title")]
    assert titles[0] == "<lenet>: frequency (0, -2), 50.0 %"
    assert len(titles) == 5  # the empty cell is left out


def test_images_and_their_spectra():
    basis = directions.fourier((1, 8, 8))
    wave = basis.images[basis.row(2, -1), 0]
    axes = draw(plots.images_and_spectra(wave[None], ["wave"]))
    spectrum = axes[1].images[0].get_array()
    peaks = {(x - 4, y - 4) for y, x in torch.as_tensor(spectrum.data > spectrum.max() / 2).nonzero().tolist()}
    assert peaks == {(2, -1), (-2, 1)}


def test_lines_name_each_series():
    frame = pd.DataFrame({"n": [1, 2, 1, 2], "overlap": [0.1, 0.2, 0.3, 0.4], "series": ["a", "a", "b", "b"]})
    (axis,) = draw(plots.lines(frame, x="n", y="overlap", hue="series", log_x=True))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    assert axis.get_xscale() == "log"


def test_a_single_line_has_no_legend():
    (axis,) = draw(plots.lines(pd.DataFrame({"n": [1, 2], "overlap": [0.1, 0.2]}), x="n", y="overlap"))
    assert axis.get_legend() is None
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.2]


def test_groups_show_every_row_and_their_means_with_two_standard_errors():
    frame = pd.DataFrame({"network": ["a", "a", "b", "b"], "accuracy": [0.0, 2.0, 5.0, 5.0]})
    (axis,) = draw(plots.by_group(frame, x="network", y="accuracy", label="accuracy (%)"))
    dots = sorted(y for points in axis.collections for _, y in points.get_offsets().tolist())
    assert dots == [0, 2, 5, 5]
    lines = [line.get_ydata().tolist() for line in axis.lines]
    assert [1.0, 5.0] in lines
    assert min(min(ys) for ys in lines) == pytest.approx(1 - 2 * math.sqrt(2) / math.sqrt(2))
    assert axis.get_ylabel() == "accuracy (%)"
