"""The digitised figures: complete, consistent with their own areas and with what the paper states, and guarded."""

import numpy as np
import pytest

from nadkit import files
from nadkit.data import digitised, published
from nadkit.files import DataError


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """An empty data folder, chosen by NADKIT_DATA, and an empty cache: what comes with nadkit is read."""
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(files, "user_cache_path", lambda name, **_: tmp_path / "cache" / name)
    return tmp_path / "data"


@pytest.mark.parametrize("panel", digitised.COLUMNS)
def test_every_panel_can_be_read(panel):
    table = digitised.figure(panel)
    assert set(digitised.COLUMNS[panel]) <= set(table)
    assert digitised.origin(panel) == "the copy that comes with nadkit"
    for column in table.columns[table.columns.str.startswith("uncertainty")]:
        assert table[column].between(0, 0.3).all()
    if "accuracy" in table:
        assert table.accuracy.between(0, 1.01).all()


@pytest.mark.parametrize("panel", ["1a", "1b", "1c", "3a", "5b"])
def test_areas_are_those_under_the_lines(panel):
    """Beyond the end of a line lies chance: .1, on ImageNet .001."""
    found, lines = digitised.areas(panel), digitised.figure(panel)
    for name, line in lines.groupby(lines.columns[0]):
        rest = (1 - line.fraction.iloc[-1]) * (0.001 if panel == "1c" else 0.1)
        area = np.trapezoid(line.accuracy, line.fraction) + rest
        assert area == pytest.approx(found.area[name], abs=0.01)


def test_areas_have_the_levels_of_corruption_as_numbers():
    assert digitised.areas("1a").area.round(3).to_dict() == {
        0.0: 0.801,
        0.2: 0.549,
        0.4: 0.443,
        0.6: 0.414,
        0.8: 0.360,
        1.0: 0.331,
    }
    assert digitised.areas("2a").half.loc[1.0] == 0.747


def test_only_the_first_panel_falls_level_by_level():
    """So of CIFAR-10 and ImageNet no more may be claimed than that true labels are the most robust."""
    order = {panel: digitised.areas(panel).area for panel in ("1a", "1b", "1c", "2b")}
    assert [panel for panel, area in order.items() if area.is_monotonic_decreasing] == ["1a"]
    assert all(area.idxmax() == 0 for area in order.values())


@pytest.mark.parametrize("panel", ["3b", "4b", "4c"])
def test_areas_over_other_axes_are_divided_by_the_largest(panel):
    assert digitised.figure(panel).auc_normalized.max() == pytest.approx(1, abs=0.002)


def test_points_give_the_printed_correlation_of_4b():
    table = digitised.figure("4b")
    assert table.test_loss.corr(table.auc_normalized, method="spearman") == pytest.approx(-0.728, abs=0.01)


@pytest.mark.parametrize("panel", ["6a", "6b"])
def test_densities_integrate_to_one(panel):
    table = digitised.figure(panel)
    width = table.iloc[:, 1] - table.iloc[:, 0]
    for kind in ("pdf_with_bn", "pdf_without_bn"):
        assert (width * table[kind]).sum() == pytest.approx(1, abs=0.02)


def write(data, name: str, text: str) -> None:
    path = data / "published" / "morcos" / f"morcos_{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_data_folder_comes_first(data):
    write(data, "fig7c", "layer,correlation,uncertainty\n1,-0.5,0.01\n")
    assert digitised.figure("7c").correlation.tolist() == [-0.5]
    assert digitised.origin("7c") == "files in a data folder"
    assert digitised.origin("7c", "7e") == "files in a data folder and the copy that comes with nadkit"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("layer,correlation\n1,-0.5\n", "the columns layer, correlation, uncertainty; missing: uncertainty; delete it"),
        ("", "a table with commas"),
        ("layer,correlation,uncertainty\n", "at least one row"),
        ("layer,correlation,uncertainty\n1,high,0.01\n", "numbers in the column correlation"),
    ],
)
def test_a_damaged_table_is_named(data, text, problem):
    write(data, "fig7c", text)
    with pytest.raises(DataError, match=rf"morcos_fig7c.csv is not a table read off the paper: expected {problem}"):
        digitised.figure("7c")


@pytest.mark.parametrize(
    ("function", "name", "words"),
    [(digitised.figure, "4a_lose", "did you mean '4a_losses'"), (digitised.areas, "7a", "known: 1a")],
)
def test_unknown_panels_are_refused(function, name, words):
    with pytest.raises(ValueError, match=words):
        function(name)


def test_a_table_that_was_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(published, "SHIPPED", tmp_path)
    with pytest.raises(DataError, match=r"morcos_fig1a.csv is missing .* install nadkit again"):
        digitised.figure("1a")


@pytest.mark.parametrize("name", ["fig7e", "areas"])
def test_asking_where_tables_are_from_finds_those_that_are_damaged(data, name):
    write(data, name, "layer\n1\n")
    with pytest.raises(DataError, match=rf"morcos_{name}.csv is not a table"):
        digitised.origin("7c", "7e")
