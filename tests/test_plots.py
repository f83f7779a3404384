"""Figures: results in, a figure out that shows them."""

import io
import itertools
import math
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from nadkit import plots
from nadkit.activations.ablation import layer_curves
from nadkit.activations.sites import find_sites
from nadkit.inputs.basis import NADs, pixel_basis
from nadkit.inputs.fourier import fourier_basis


@pytest.fixture(autouse=True)
def _house_style():
    plt.close("all")  # those of other tests
    with plt.rc_context():
        plots.style()
        yield
    assert plt.get_fignums() == []  # pyplot knows none of them, so a notebook shows each once


def draw(figure: Figure) -> list:
    figure.draw_without_rendering()  # the canvas of a figure that pyplot does not know draws nothing
    return figure.axes


@pytest.fixture
def table():
    return pd.DataFrame([[50.0, 75.0, math.nan], [100.0, 60.0, 55.5]], index=[-2, 0], columns=[0, 2, 4])


def test_wave_maps_arrange_each_network_by_frequency():
    waves = {"fx": [2, 0, 0, 2], "fy": [1, 1, 0, 0], "accuracy": [4.0, 3.0, 1.0, 2.0]}
    rows = pd.DataFrame(waves)
    both = pd.concat([rows.assign(network="b"), rows.assign(network="a", accuracy=5.0)])
    maps = plots.wave_maps(both, "accuracy")
    assert [*maps] == ["b", "a"]
    assert maps["b"].loc[1].tolist() == [3.0, 4.0]
    assert maps["b"].loc[0].tolist() == [1.0, 2.0]
    alone = plots.wave_map(zip(waves["fx"], waves["fy"], strict=True), waves["accuracy"])
    assert alone.to_numpy().tolist() == maps["b"].to_numpy().tolist()
    assert (alone.index.tolist(), alone.columns.tolist()) == ([0, 1], [0, 2])


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
    basis = fourier_basis((1, 8, 8))
    wave = basis.images[basis.frequencies.index((2, -1, "real", 0)), 0]
    axes = draw(plots.images_and_spectra(wave[None], ["wave"]))
    spectrum = axes[1].images[0].get_array()
    peaks = {(x - 4, y - 4) for y, x in torch.as_tensor(spectrum.data > spectrum.max() / 2).nonzero().tolist()}
    assert peaks == {(2, -1), (-2, 1)}


def test_published_images_stand_below_ours_as_far_as_there_are_any():
    images = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    axes = draw(plots.images_and_spectra(images, ["a", "b", "c"], theirs=-images[:2]))
    assert axes[6].get_title(loc="left") == plots.PUBLISHED
    assert [len(axis.images) for axis in axes] == [1] * 6 + [1, 1, 0] * 2
    assert np.array_equal(axes[6].images[0].get_array(), -axes[0].images[0].get_array())
    assert np.allclose(axes[9].images[0].get_array(), axes[3].images[0].get_array())


@pytest.mark.parametrize("channels", [1, 3])
def test_directions_are_images_with_their_index_and_eigenvalue(channels):
    d = 16 * channels
    vectors = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    basis = NADs(vectors=vectors, shape=(channels, 4, 4), eigenvalues=torch.arange(d, 0, -1.0))
    axes = draw(plots.directions(basis, 7))
    assert [axis.get_title() for axis in axes] == [f"{i}: {d - i}" for i in range(7)]
    for axis, expected in zip(axes, basis.images, strict=False):
        (image,) = axis.images
        seen = torch.from_numpy(image.get_array().data).reshape(4, 4, -1)
        seen = seen if channels == 1 else 2 * seen - 1
        torch.testing.assert_close(seen.permute(2, 0, 1), expected / expected.abs().max())
    axes = draw(plots.directions(pixel_basis((channels, 4, 4)), 3))
    assert [axis.get_title() for axis in axes] == ["0", "1", "2"]
    assert len(draw(plots.directions(basis))) == 10
    assert len(draw(plots.directions(basis[:2], 2))) == 2


def test_directions_that_cannot_be_drawn_are_explained():
    with pytest.raises(ValueError, match="expected k from 1 to 16, got 17"):
        plots.directions(pixel_basis((1, 4, 4)), 17)
    with pytest.raises(ValueError, match="one channel or three, got 2"):
        plots.directions(pixel_basis((2, 4, 4)))


def test_lines_name_each_series():
    frame = pd.DataFrame({"n": [1, 2, 1, 2], "overlap": [0.1, 0.2, 0.3, 0.4], "series": ["a", "a", "b", "b"]})
    (axis,) = draw(plots.lines(frame, x="n", y="overlap", hue="series", log_x=True))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    assert axis.get_xscale() == "log"


def test_dashed_lines_have_the_colour_of_another_or_their_own_and_are_on_top():
    rows = pd.DataFrame(
        {"x": [0, 1] * 3, "y": range(6), "which": [name for name in ("old", "a", "b") for _ in range(2)]}
    )
    (axis,) = draw(plots.lines(rows, x="x", y="y", hue="which", dashed={"old": "a"}))
    found = {line.get_ydata()[0]: line for line in axis.lines if len(line.get_xdata())}
    assert {y: line.is_dashed() for y, line in found.items()} == {0: True, 2: False, 4: False}
    assert to_hex(found[0].get_color()) == to_hex(found[2].get_color()) != to_hex(found[4].get_color())
    assert [*found][-1] == 0
    (axis,) = draw(plots.lines(rows, x="x", y="y", hue="which", dashed={"b": "b"}))
    found = {line.get_ydata()[0]: line for line in axis.lines if len(line.get_xdata())}
    assert found[4].is_dashed()
    assert len({to_hex(line.get_color()) for line in found.values()}) == 3


def test_a_single_line_has_no_legend():
    (axis,) = draw(plots.lines(pd.DataFrame({"n": [1, 2], "overlap": [0.1, 0.2]}), x="n", y="overlap"))
    assert axis.get_legend() is None
    assert axis.lines[0].get_ydata().tolist() == [0.1, 0.2]


def test_rows_that_share_an_x_are_a_mean_and_a_band_of_two_standard_errors():
    (axis,) = draw(plots.lines(pd.DataFrame({"n": [1, 1, 2], "overlap": [0.0, 2.0, 5.0]}), x="n", y="overlap"))
    assert axis.lines[0].get_ydata().tolist() == [1, 5]
    (band,) = axis.collections
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(1 - 2)


def test_kinds_within_a_group_stand_side_by_side():
    rows = [("a", "clean", 1.0), ("a", "clean", 3.0), ("a", "flipped", 0.0), ("b", "flipped", 5.0)]
    frame = pd.DataFrame(rows, columns=["network", "data", "accuracy"])
    (axis,) = draw(plots.by_group(frame, x="network", y="accuracy", label="accuracy (%)", hue="data"))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["clean", "flipped"]
    marked = [point for line in axis.lines if line.get_marker() != "None" for point in line.get_xydata().tolist()]
    assert {round(x, 2): y for x, y in marked if not math.isnan(y)} == {-0.2: 2.0, 0.2: 0.0, 1.2: 5.0}


def test_groups_by_two_columns_have_a_panel_each_without_the_groups_that_lack_a_number():
    rows = [("a", "clean", 1.0, 2.0), ("a", "flipped", 3.0, 4.0), ("published", "clean", 5.0, math.nan)]
    frame = pd.DataFrame(rows, columns=["network", "data", "test", "train"])
    panels = {"test": "test images", "train": "training images"}
    one, other = draw(plots.by_group(frame, x="network", y=panels, label="accuracy (%)", hue="data"))
    assert [axis.get_title() for axis in (one, other)] == ["test images", "training images"]
    assert [axis.get_ylabel() for axis in (one, other)] == ["accuracy (%)", ""]
    names = [[tick.get_text() for tick in axis.get_xticklabels()] for axis in (one, other)]
    assert names == [["a", "published"], ["a"]]
    assert one.get_ylim() == other.get_ylim()
    assert one.get_legend() is None
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["clean", "flipped"]


def test_pictures_are_a_row_a_name_and_a_column_a_title():
    image = torch.zeros(2, 3, 4, 5)
    image[1, 0] = 2.0  # beyond what can be shown
    axes = draw(plots.pictures({"clean": image, "poisoned": 1 - image}, ["a", "b"]))
    assert [axis.get_title() for axis in axes] == ["a", "b", "", ""]
    assert [axis.get_ylabel() for axis in axes] == ["clean", "", "poisoned", ""]
    shown = [axis.images[0].get_array() for axis in axes]
    assert all(picture.shape == (4, 5, 3) for picture in shown)
    assert shown[1][0, 0].tolist() == [1, 0, 0]


def test_groups_show_every_row_and_their_means_with_two_standard_errors():
    frame = pd.DataFrame({"network": ["a", "a", "b", "b"], "accuracy": [0.0, 2.0, 5.0, 5.0]})
    (axis,) = draw(plots.by_group(frame, x="network", y="accuracy", label="accuracy (%)"))
    dots = sorted(y for points in axis.collections for _, y in points.get_offsets().tolist())
    assert dots == [0, 2, 5, 5]
    lines = [line.get_ydata().tolist() for line in axis.lines]
    assert [1.0, 5.0] in lines
    assert min(min(ys) for ys in lines) == pytest.approx(1 - 2 * math.sqrt(2) / math.sqrt(2))
    assert axis.get_ylabel() == "accuracy (%)"


def test_accuracy_by_index_shares_the_axis_of_indices_and_draws_what_the_table_has():
    rows = [("NAD", 0, 3.0, 100.0, 99.0), ("NAD", 500, 0.2, 54.0, None), ("random", 0, 1.0, 70.0, None)]
    rows += [("random", 1, 1.1, 72.0, None), ("logistic regression", 0, 3.0, 100.0, None)]
    table = pd.DataFrame(rows, columns=["series", "index", "eigenvalue", "accuracy", "published"])
    top, right, bottom = draw(plots.accuracy_by_index(table))
    assert top.get_shared_x_axes().joined(top, bottom)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in top.lines}
    assert drawn["NAD"] == [[1, 100], [501, 54]]  # counted from 1, for the axis is logarithmic
    assert drawn["published"] == [[1, 99]]
    assert {line.get_label(): len(line.get_xydata()) for line in right.lines}["random"] == 2
    assert [text.get_text() for text in top.get_legend().get_texts()] == [
        "NAD",
        "logistic regression",
        "published",
        "random",
    ]


def test_accuracy_by_index_needs_no_published_or_random_rows():
    table = pd.DataFrame(
        {"series": ["NAD"], "index": [0], "eigenvalue": [1.0], "accuracy": [60.0], "published": [float("nan")]}
    )
    top = draw(plots.accuracy_by_index(table))[0]
    assert [line.get_label() for line in top.lines] == ["NAD"]


def test_dots_stand_beside_the_band_of_what_they_are_compared_with():
    table = pd.DataFrame(
        {
            "what": ["reference", "reference", "wider"],
            "kind": ["r", "r", "w"],
            "a": [0.9, 1.1, 0.5],
            "b": [3.0, 3.0, 4.0],
        }
    )
    left, right = draw(plots.dots(table, y="what", x=["a", "b"], hue="kind", band="reference"))
    assert [text.get_text() for text in left.get_yticklabels()] == ["reference", "wider"]
    assert left.patches[0].get_extents().transformed(left.transData.inverted()).intervalx.tolist() == pytest.approx(
        [1 - 2 * math.sqrt(0.02), 1 + 2 * math.sqrt(0.02)]
    )
    assert sorted(x for points in left.collections for x, _ in points.get_offsets().tolist()) == [0.5, 0.9, 1.1]
    assert right.get_xlabel() == "b"


def test_colour_images_are_grey_where_they_are_zero():
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0, 0, 0], images[1, 2, 1, 1] = 2, -5
    axes = draw(plots.colour_images(images, ["red", "no blue"]))
    shown = [torch.as_tensor(axis.images[0].get_array()) for axis in axes]
    assert shown[0][0, 0].tolist() == [1, 0.5, 0.5]
    assert shown[1][1, 1].tolist() == [0.5, 0.5, 0]
    assert [axis.get_title() for axis in axes] == ["red", "no blue"]


def test_log_maps_share_one_scale():
    tables = {n: pd.DataFrame([[low, 10.0]], index=[0], columns=[0, 2]) for n, low in (("a", 1.0), ("b", 0.1))}
    one, other, _ = draw(plots.log_maps(tables, label="variance"))
    assert [axis.get_title() for axis in (one, other)] == ["a", "b"]
    assert {axis.collections[0].get_clim() for axis in (one, other)} == {(0.1, 10.0)}


def test_a_scatter_has_a_panel_for_each_group_and_a_legend_of_marks():
    rows = [("vit", "NAD", 10.0, 100.0), ("vit", "wave", 0.1, 50.0), ("mixer", "NAD", 1.0, 90.0)]
    frame = pd.DataFrame(rows, columns=["network", "direction", "variance", "accuracy"])
    one, other = draw(plots.scatter(frame, x="variance", y="accuracy", panel="network", style="direction"))
    assert [axis.get_title() for axis in (one, other)] == ["vit", "mixer"]
    assert one.collections[0].get_offsets().tolist() == [[10, 100], [0.1, 50]]
    assert one.get_xscale() == "log"
    assert one.get_legend() is None
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["NAD", "wave"]
    (even,) = draw(
        plots.scatter(frame[2:], x="variance", y="accuracy", panel="network", style="direction", log_x=False)
    )
    assert even.get_xscale() == "linear"
    _, own = draw(plots.scatter(frame, x="variance", y="accuracy", panel="network", style="direction", share=False))
    assert other.get_ylim() == one.get_ylim() != own.get_ylim()
    left, right = draw(plots.scatter(frame, x="variance", y="accuracy", panel="network", style="direction", share="y"))
    assert left.get_shared_y_axes().joined(left, right)
    assert not left.get_shared_x_axes().joined(left, right)
    assert even.get_legend().get_title().get_text() == "direction"


def test_a_scatter_may_have_an_empty_panel_at_its_end():
    rows = pd.DataFrame({"x": [1.0, 2.0], "y": [0.0, 1.0], "which": ["a", "b"], "mark": ["p", "q"]})
    axes = draw(plots.scatter(rows, x="x", y="y", panel="which", style="mark", share=False, empty="theirs"))
    assert [axis.get_title() for axis in axes] == ["a", "b", "theirs"]
    assert [bool(axis.collections) for axis in axes] == [True, True, False]
    legends = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in axes if axis.get_legend()]
    assert legends == [["p", "q"]]


def test_step_maps_share_one_scale_and_leave_out_what_was_never_reached():
    tables = {n: pd.DataFrame([[steps, float("nan")]], index=[0], columns=[0, 2]) for n, steps in (("a", 40), ("b", 5))}
    one, other, bar = draw(plots.step_maps(tables, most=300))
    assert [text.get_text() for text in one.texts] == ["40"]
    assert {axis.collections[0].get_clim() for axis in (one, other)} == {(5, 300)}
    assert "not within 300" in bar.get_ylabel()
    unreached = {"never": pd.DataFrame([[float("nan")] * 2]), "a": tables["a"]}
    for maps in (unreached, dict(reversed(unreached.items()))):
        assert {axis.collections[0].get_clim() for axis in draw(plots.step_maps(maps, most=300))[:2]} == {(40, 300)}
    (alone, _) = draw(plots.step_maps({"never": pd.DataFrame([[float("nan")] * 2])}, most=300))
    assert not alone.texts
    (reached, _) = draw(plots.step_maps({"at the last step": pd.DataFrame([[300]])}, most=300))
    assert reached.texts


def test_sampled_waves_mark_the_positions_that_are_kept():
    position = torch.arange(16) / 2
    (axis,) = draw(plots.sampled_waves({"line": position, "square": position.square()}, stride=4, fine=2))
    assert [line.get_xdata().tolist() for line in axis.lines[1::2]] == [[0, 4], [0, 4]]
    assert axis.lines[3].get_ydata().tolist() == [0, 16]
    assert len(axis.lines[0].get_xdata()) == 16
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["line", "square"]
    (many,) = draw(plots.sampled_waves({str(k): position * k for k in range(6)}, stride=4, fine=2))
    assert len(many.get_legend().get_texts()) == 6


def test_a_wave_map_takes_values_in_the_order_of_the_waves():
    values = pd.Series([1.0, 2.0], index=[144, 145])
    assert plots.wave_map([(0, 2), (4, 2)], values).loc[2].tolist() == [1, 2]


def test_a_second_scale_shows_the_values_times_a_factor():
    figure = plots.lines(pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 2.0]}), x="x", y="y", legend_beside=True)
    axis = figure.axes[0]
    plots.second_scale(axis, x="twice x", factor=2)
    plots.second_scale(axis, y="ten times y", factor=10)
    figure.savefig(io.BytesIO())
    top, right = axis.child_axes
    assert (top.get_xlabel(), right.get_ylabel()) == ("twice x", "ten times y")
    assert top.get_xlim() == pytest.approx(np.multiply(axis.get_xlim(), 2))
    assert right.get_ylim() == pytest.approx(np.multiply(axis.get_ylim(), 10))
    with pytest.raises(ValueError, match="x or y"):
        plots.second_scale(axis, factor=2)
    assert figure.get_figwidth() > plots.lines(pd.DataFrame({"x": [0], "y": [1]}), x="x", y="y").get_figwidth()


def test_a_table_of_many_marks_is_thinned_out_evenly():
    frame = pd.DataFrame({"x": range(1001)})
    assert plots.thinned(frame, most=400).x.tolist() == list(range(0, 1001, 3))
    assert plots.thinned(frame, most=1001).equals(frame)
    assert plots.thinned(frame[:0]).empty


def test_dots_by_layer_have_a_panel_for_each_group_and_an_axis_that_shows_both_signs():
    rows = [("MLP", layer, 0.1 * layer, impact) for layer, impact in ((1, 0.0), (1, -2.0), (2, 400.0))]
    frame = pd.DataFrame([*rows, ("dead", 1, 0.5, 0.0)], columns=["network", "layer", "selectivity", "impact"])
    one, other = draw(plots.by_layer(frame, x="selectivity", y="impact", panel="network", symlog=True))
    assert [axis.get_title() for axis in (one, other)] == ["MLP", "dead"]
    assert one.collections[0].get_offsets()[:, 1].tolist() == pytest.approx([0, -2, 400])
    assert [text.get_text() for text in one.get_legend().get_texts()] == ["1", "2"]
    assert (one.get_yscale(), other.get_yscale()) == ("symlog", "linear")
    assert one.yaxis.get_transform().linthresh == 1000  # the power of ten above the median, 201
    plain = draw(plots.by_layer(frame, x="selectivity", y="impact", panel="network"))
    assert {axis.get_yscale() for axis in plain} == {"linear"}
    positive = frame.assign(impact=[1.0, 10, 100, 5])[:3]
    logarithmic = draw(plots.by_layer(positive, x="selectivity", y="impact", panel="network", log_y=True))
    assert logarithmic[0].get_yscale() == "log"
    *_, more = draw(plots.by_layer(frame, x="selectivity", y="impact", panel="network", symlog=True, empty="theirs"))
    assert (more.get_title(), len(more.collections), more.get_yscale()) == ("theirs", 0, "linear")
    with pytest.raises(ValueError, match="got both"):
        plots.by_layer(frame, x="selectivity", y="impact", panel="network", log_y=True, symlog=True)


def test_curves_have_bands_and_marks_in_the_colours_of_their_lines():
    frame = pd.DataFrame(
        {
            "data": ["clean"] * 4 + ["corrupted"] * 2,
            "network": ["plain", "plain", "dropout", "dropout", "plain", "plain"],
            "fraction": [0.0, 1.0] * 3,
            "accuracy": [1.0, 0.1] * 3,
            "error": [0.0, 0.05] * 3,
        }
    )
    clean, corrupted = draw(
        plots.curves(
            frame, x="fraction", y="accuracy", error="error", hue="network", panel="data", marks={"dropout": 0.3}
        )
    )
    assert (clean.get_title(), corrupted.get_title()) == ("clean", "corrupted")
    plain, dropout, mark = clean.get_lines()
    assert list(dropout.get_ydata()) == [1.0, 0.1]
    assert list(mark.get_xdata()) == [0.3, 0.3]
    assert mark.get_color() == dropout.get_color() != plain.get_color()
    assert len(clean.collections) == 2
    assert len(corrupted.collections) == 1
    legend = corrupted.get_legend()  # names the lines of all panels
    assert [text.get_text() for text in legend.get_texts()] == ["plain", "dropout"]
    assert clean.get_xscale() == "linear"
    (axis,) = draw(
        plots.curves(frame[2:4], x="fraction", y="accuracy", error="error", hue="network", panel="data", log_x=True)
    )
    assert axis.get_xscale() == "log"


def test_panels_of_curves_may_have_x_axes_of_their_own():
    rows = pd.DataFrame({"x": [0.0, 1.0, 0.0, 9.0], "y": 0.5, "e": 0.1, "hue": "a", "panel": ["p", "p", "q", "q"]})
    for share in (True, False):
        p, q = draw(plots.curves(rows, x="x", y="y", error="e", hue="hue", panel="panel", share_x=share))
        assert (p.get_xlim() == q.get_xlim()) is share


def test_levels_ascend_in_a_sequential_palette_and_other_names_stay_apart():
    frame = pd.DataFrame({"level": ["1", "0", "0.2"], "x": 1.0, "y": [3.0, 2.0, 1.0], "error": 0.1, "panel": ""})
    columns = {"x": "x", "y": "y", "panel": "panel"}
    (axis,) = draw(plots.scatter(frame, style="level", **columns))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["0", "0.2", "1"]
    (axis,) = draw(plots.curves(frame, hue="level", error="error", log_x=True, **columns))
    by_name = {line.get_label(): sum(to_rgb(line.get_color())) for line in axis.get_lines()}
    assert by_name["0"] < by_name["0.2"] < by_name["1"]
    words = frame.assign(level=["a", "b", "c"])
    (axis,) = draw(plots.curves(words, hue="level", error="error", **columns))
    assert [line.get_color() for line in axis.get_lines()] == sns.color_palette("colorblind", 3)


def test_stacked_panels_share_what_runs_below_them_and_the_marks():
    frame = pd.DataFrame({"epoch": [1, 10, 1, 10], "loss": [2.0, 1.0, 4.0, 3.0], "AUC": [0.1, 0.2, 0.3, 0.4]})
    marks = {"lowest": 3.0, "highest": 10.0}
    top, bottom = draw(plots.stacked(frame, x="epoch", y=["loss", "AUC"], marks=marks, log=["epoch", "loss"]))
    mean, *upright = top.get_lines()
    assert mean.get_xydata().tolist() == [[1, 3], [10, 2]]
    assert [line.get_xdata()[0] for line in upright] == [3, 10]
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["lowest", "highest"]
    assert [(axis.get_xscale(), axis.get_yscale()) for axis in (top, bottom)] == [("log", "log"), ("log", "linear")]
    assert [axis.get_ylabel() for axis in (top, bottom)] == ["loss" + plots.LOG_SCALE, "AUC"]
    theirs = pd.DataFrame({"epoch": [1, 10], "loss": [1.0, 0.5]})
    plots.beside(top.figure, theirs, x="epoch", y="loss")
    assert top.get_lines()[-1].get_ydata().tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("low", "high", "numbers"),
    [
        (0.055, 0.26, ["0.06", "0.1", "0.2"]),
        (0.055, 0.7, ["0.1", "0.2", "0.5"]),
        (0.00005, 0.2, ["0.0001", "0.001", "0.01", "0.1"]),
    ],
)
def test_a_logarithmic_axis_has_numbers_that_can_be_read(low, high, numbers):
    figure = plots.lines(pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 2.0]}), x="x", y="y")
    (axis,) = figure.axes
    plots.log_scale(axis)
    axis.set_ylim(low, high)
    (axis,) = draw(figure)
    ticks = zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
    assert [label.get_text() for at, label in ticks if low <= at <= high] == numbers


def test_panels_side_by_side_have_scales_of_their_own_and_words_in_the_order_of_the_table():
    frame = pd.DataFrame({"alpha": ["-1", "-1", "0", "0"], "index": [0.1, 0.3, 0.5, 0.5], "accuracy": [90.0] * 4})
    index, accuracy = draw(plots.side_by_side(frame, x="alpha", y=["index", "accuracy"]))
    assert index.lines[0].get_xydata().tolist() == [[0, 0.2], [1, 0.5]]
    assert [text.get_text() for text in index.get_xticklabels()] == ["-1", "0"]
    assert [axis.get_ylabel() for axis in (index, accuracy)] == ["index", "accuracy"]
    assert index.get_ylim() != accuracy.get_ylim()
    rows = pd.concat([frame.assign(layer="first"), frame.assign(layer="last")], ignore_index=True)
    one, other = draw(plots.side_by_side(rows, x="alpha", y=["index", "accuracy"], hue="layer"))
    assert one.get_legend() is None
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["first", "last"]


def test_levels_are_named_below_their_groups():
    frame = pd.DataFrame({"corruption": ["0", "1"], "area": [1.0, 0.5], "ablated": ["units", "units"]})
    (axis,) = draw(plots.by_level(frame, x="corruption", y="area", hue="ablated"))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("corruption", "area")


@pytest.mark.parametrize(
    ("name", "groups", "upright"),
    [("({i}, {i})", 4, False), ("({i}, {i})", 16, True), ("static\n{i}\ncentre", 6, False), ("", 1, False)],
)
def test_names_of_groups_do_not_overlap(name, groups, upright):
    frame = pd.DataFrame({"wave": [name.format(i=i) for i in range(groups)], "energy": 1.0})
    (axis,) = draw(plots.by_group(frame, x="wave", y="energy", label="energy"))
    names = [label.get_window_extent() for label in axis.get_xticklabels()]
    assert len(names) == groups
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(names))
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {90 if upright else 0}


OURS = pd.DataFrame(
    {
        "network": ["MLP"] * 4 + ["ConvNet"] * 2,
        "level": ["0", "0", "1", "1", "0", "0"],
        "gone": [0.0, 1.0] * 3,
        "accuracy": [1.0, 0.1] * 3,
        "error": 0.01,
    }
)
THEIRS = pd.DataFrame(
    {
        "network": ["MLP"] * 3 + ["ResNet"],
        "level": ["0", "1", "0.5", "0"],
        "gone": [0.5, 0.4, 0.3, 0.2],
        "accuracy": [0.8, 0.7, 0.6, 0.5],
    }
)


def dashed(axis) -> list:
    return [line for line in axis.lines if line.get_linestyle() == "--"]


def test_beside_draws_dashed_lines_in_our_colours_where_we_have_such_a_line():
    columns = {"x": "gone", "y": "accuracy", "hue": "level", "panel": "network"}
    figure = plots.beside(plots.curves(OURS, error="error", **columns), THEIRS, **columns)
    mlp, convnet = draw(figure)
    assert [line.get_ydata().tolist() for line in dashed(mlp)] == [[0.8], [0.7]]  # we have no level of 0.5
    assert dashed(convnet) == []
    solid = [line for line in mlp.lines if line not in dashed(mlp)]
    assert [line.get_color() for line in dashed(mlp)] == [line.get_color() for line in solid]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the paper, read off"]


def test_beside_finds_our_lines_where_they_are_means():
    figure = plots.lines(OURS, x="gone", y="accuracy", hue="level")
    (axis,) = draw(plots.beside(figure, THEIRS, x="gone", y="accuracy", hue="level"))
    colours = [handle.get_color() for handle in axis.get_legend_handles_labels()[0]]
    theirs = axis.lines[-2:]  # seaborn has dashes of its own
    assert [line.get_color() for line in theirs] == colours
    assert [line.get_xdata().tolist() for line in theirs] == [[0.5, 0.2], [0.4]]


def test_beside_draws_grey_dots_in_the_panel_of_that_quantity():
    figure = plots.stacked(OURS, x="gone", y=["error", "accuracy"], marks={"here": 0.5})
    axes = draw(plots.beside(figure, THEIRS, x="gone", y="accuracy", dots=True))
    (dots,) = [line for line in axes[1].lines if line.get_linestyle() == "None"]
    assert dots.get_ydata().tolist() == THEIRS.accuracy.tolist()
    assert dots.get_color() == plots.GREY
    assert len(figure.legends) == 1


def test_beside_says_nothing_where_it_has_nothing_to_draw():
    figure = plots.lines(OURS, x="gone", y="accuracy", hue="level")
    plots.beside(figure, THEIRS.assign(level="2"), x="gone", y="accuracy", hue="level")
    assert figure.legends == []


def test_the_ablation_of_each_layer_is_a_line_by_its_name():
    network = torch.nn.Sequential(
        *(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2), torch.nn.Tanh()),
        torch.nn.Linear(2, 2),
    )
    data = torch.rand(6, 1, 2, 2), torch.arange(6) % 2
    found = layer_curves(network, data, find_sites(network, (1, 2, 2)), orderings=2, progress=False)
    (axis,) = draw(plots.ablation(found))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [*found] == ["2", "4"]
    for line, curve in zip(axis.get_lines(), found.values(), strict=False):
        torch.testing.assert_close(torch.tensor(line.get_xdata()), curve.fraction)
        torch.testing.assert_close(torch.tensor(line.get_ydata()), curve.accuracy.mean(0).double())
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("fraction of units ablated", "accuracy")


@pytest.fixture
def taps():
    """Entries of two matrices over two taps."""
    entries = {"root": [1.0, -0.5, 0.0, 1.0], "last": [0.25, 0.0, 0.0, -2.0]}
    rows = [(name, k // 2, k % 2, entry) for name, matrix in entries.items() for k, entry in enumerate(matrix)]
    return pd.DataFrame(rows, columns=["layer", "filter tap", "window tap", "entry"])


def test_a_graph_of_taps_has_a_line_for_each_entry_whose_width_is_the_root_of_it(taps):
    root, last = draw(plots.tap_graphs(taps, panel="layer"))
    assert (root.get_title(), last.get_title()) == ("root", "last")
    assert [line.get_linewidth() for line in root.get_lines()] == pytest.approx([3, 3 * 0.5**0.5, 0, 3])
    assert [list(line.get_xdata()) for line in root.get_lines()] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    positive, negative = root.get_lines()[0].get_color(), root.get_lines()[1].get_color()
    assert positive != negative == last.get_lines()[3].get_color()


def test_matrices_share_a_scale_with_zero_in_its_middle(taps):
    root, last, _ = draw(plots.matrices(taps, panel="layer"))
    for axis in (root, last):
        assert axis.images[0].get_clim() == (-2, 2)
    assert root.images[0].get_array().tolist() == [[1, -0.5], [0, 1]]
    assert (root.get_ylabel(), last.get_ylabel(), last.get_xlabel()) == ("filter tap", "", "window tap")


def test_points_in_space_are_coloured_on_one_scale_and_the_first_is_a_star():
    points = {"x": [0.0, 1.0], "y": [0.0, 2.0], "z": [-1.0, 1.0], "similarity": [1.0, 0.2]}
    kinds = [("torus", "ReLU"), ("torus", "linear"), ("boxes", "ReLU"), ("boxes", "linear")]
    table = pd.concat(pd.DataFrame(points).assign(surface=a, network=b) for a, b in kinds)
    axes = draw(plots.in_space(table, colour="similarity", row="surface", panel="network"))
    assert [axis.get_title() for axis in axes[:4]] == ["torus: ReLU", "torus: linear", "boxes: ReLU", "boxes: linear"]
    for axis in axes[:4]:
        dots, star = axis.collections
        assert (dots.get_clim(), len(dots.get_offsets()), len(star.get_offsets())) == ((0, 1), 2, 1)
    assert axes[4].get_ylabel() == "similarity"


def test_kernels_share_a_scale_without_their_diagonals():
    rows = [("bad", 0, 1.0, 0.9), ("bad", 1, 0.9, 1.0), ("good", 0, 1.0, 0.5), ("good", 1, 0.5, 1.0)]
    bad, good, bar = draw(plots.kernels(pd.DataFrame(rows, columns=["net", "image", "0", "1"]), panel="net", label="K"))
    assert (bad.get_title(), good.get_title(), bar.get_ylabel()) == ("bad", "good", "K")
    assert bad.images[0].get_clim() == good.images[0].get_clim() == (0.5, 0.9)
    assert good.images[0].get_array().tolist() == [[1, 0.5], [0.5, 1]]


def test_one_table_has_one_picture():
    frame = pd.DataFrame({"kind": list("aabb"), "score": [0.1, 0.2, 0.3, 0.4]})
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    for picture in (
        lambda: plots.by_group(frame, x="kind", y="score", label="score"),
        lambda: plots.strips(frame, x="kind", y="score", panel="kind"),
    ):
        first, second = ([dots.get_offsets() for dots in picture().axes[0].collections] for _ in range(2))
        assert first
        assert all(map(np.array_equal, first, second))
    assert np.random.random() == expected  # the dots take no draws from the user's


def test_strips_have_a_dot_for_each_row_and_a_panel_for_each_kind():
    frame = pd.DataFrame({"net": [0, 0, 1, 0], "score": [1.0, 2.0, 3.0, 40.0], "kind": ["a", "a", "a", "b"]})
    first, second = draw(plots.strips(frame, x="net", y="score", panel="kind"))
    assert [axis.get_title() for axis in (first, second)] == ["a", "b"]
    assert sorted(y for dots in first.collections for _, y in dots.get_offsets()) == [1, 2, 3]
    assert (first.get_ylabel(), second.get_ylabel()) == ("score", "")


def test_intervals_are_rows_from_the_top():
    frame = pd.DataFrame({"score": ["a", "b"], "tau": [0.5, -0.1], "error": [0.2, 0.1]})
    (axis,) = draw(plots.intervals(frame, x="tau", y="score", error="error"))
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]
    assert axis.yaxis_inverted()
    ends = [tuple(x for x, _ in segment) for segment in axis.collections[0].get_segments()]
    assert ends == [pytest.approx((0.3, 0.7)), pytest.approx((-0.2, 0.0))]


def test_ordered_quantities_have_colours_in_order():
    light = {value: sum(colour) for value, colour in plots.ordered_palette([10, 2, "0.5"]).items()}
    assert list(light) == ["0.5", 2, 10]
    assert sorted(light.values()) == list(light.values())
    words = plots.ordered_palette(["early", "middle", "late", "early"])
    assert list(words) == ["early", "middle", "late"]
    assert len(set(words.values())) == 3


def test_lines_of_numbers_are_coloured_in_order_and_those_of_words_apart():
    rows = {"x": [0, 1] * 3, "y": range(6), "level": [1.0, 1.0, 0.2, 0.2, 0.5, 0.5], "name": list("aabbcc")}
    frame = pd.DataFrame(rows | {"error": 0.1, "panel": ""})
    for draw_lines in (plots.lines, lambda frame, **more: plots.curves(frame, error="error", panel="panel", **more)):
        (axis,) = draw(draw_lines(frame, x="x", y="y", hue="level"))
        drawn = [line for line in axis.get_lines() if len(line.get_xdata())]
        ordered = plots.ordered_palette([0.2, 0.5, 1.0])
        assert {to_hex(line.get_color()) for line in drawn} == {to_hex(colour) for colour in ordered.values()}
        (axis,) = draw(draw_lines(frame, x="x", y="y", hue="name"))
        drawn = [line for line in axis.get_lines() if len(line.get_xdata())]
        assert {to_hex(c.get_color()) for c in drawn} == {to_hex(c) for c in sns.color_palette("colorblind", 3)}


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_no_figure_is_wider_than_its_type_is_legible(count):
    maps = {f"m{i}": pd.DataFrame(np.eye(3) + 1) for i in range(count)}
    for figure in (plots.accuracy_maps(maps), plots.log_maps(maps, label="x"), plots.step_maps(maps, most=9)):
        assert figure.get_figwidth() <= plots.WIDEST + 1e-9
        rows = {axis.get_subplotspec().rowspan.start for axis in figure.axes if axis.get_title()}
        assert len(rows) == math.ceil(count / 3)  # three in a row, as "left", "middle" and "right" in words
        titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
        assert titles == list(maps)
    assert (
        plots.images_and_spectra(torch.rand(count + 6, 4, 4), ["x"] * (count + 6)).get_figwidth() <= plots.WIDEST + 1e-9
    )


def test_logarithmic_axes_have_plain_numbers():
    frame = pd.DataFrame({"x": [0.01, 1.0, 1000.0], "y": [1.0, 2.0, 3.0]})
    (axis,) = draw(plots.lines(frame, x="x", y="y", log_x=True))
    said = [label.get_text() for label in axis.get_xticklabels()]
    assert "$\\mathdefault{0.01}$" in said
    assert not [text for text in said if "^" in text]
