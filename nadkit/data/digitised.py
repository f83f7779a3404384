"""Figures 1 to 7 of Morcos et al. 2018 (arXiv 1803.06959), read off pictures of them: numbers with their errors.

Source: public slides about the paper; ``shipped/published/morcos/README.md`` says what was seen, and how well. The
tables come with nadkit; a data folder's ``published/morcos/`` comes first.
"""

from pathlib import Path

import pandas as pd

from nadkit.data import published
from nadkit.files import DataError
from nadkit.names import hint

_OF_CURVES = ["fraction", "accuracy", "uncertainty"]
_OF_POINTS = ["uncertainty_x", "uncertainty_y"]
_OF_BINS = ["pdf_with_bn", "pdf_without_bn", "uncertainty"]
COLUMNS: dict[str, list[str]] = {
    "1a": ["corruption", *_OF_CURVES],
    "1b": ["corruption", *_OF_CURVES],
    "1c": ["corruption", *_OF_CURVES],
    "2a": ["corruption", "noise_scale", *_OF_CURVES[1:]],
    "2b": ["corruption", "noise_scale", *_OF_CURVES[1:]],
    "3a": ["condition", *_OF_CURVES],
    "3b": ["generalization_error", "auc_normalized", *_OF_POINTS],
    "4a_auc": ["epoch", "auc_normalized", "uncertainty"],
    "4a_losses": ["epoch", "test_loss_column_mean", "train_loss_envelope_low", "train_loss_envelope_high"],
    "4b": ["test_loss", "auc_normalized", *_OF_POINTS],
    "4c": ["test_accuracy", "auc_normalized", *_OF_POINTS],
    "5a": ["labels", "dropout", *_OF_CURVES],
    "5b": ["condition", *_OF_CURVES],
    "6a": ["selectivity_low", "selectivity_high", *_OF_BINS],
    "6b": ["mutual_information_low", "mutual_information_high", *_OF_BINS],
    "7a": ["layer", "selectivity", "ablation_impact_loss", *_OF_POINTS],
    "7b_points": ["selectivity", "ablation_impact_loss", *_OF_POINTS],
    "7b_envelope": ["selectivity_low", "selectivity_high", "median_top_of_cloud", "median_bottom_of_cloud"],
    "7c": ["layer", "correlation", "uncertainty"],
    "7d_outliers": ["selectivity", "ablation_impact_loss", *_OF_POINTS],
    "7d_envelope": ["selectivity_low", "selectivity_high", "top_of_block", "bottom_of_block"],
    "7e": ["layer", "correlation", "uncertainty"],
}
"""The tables, by panel of the paper's figures, and the columns that each has at least."""

WORDS = ("condition", "labels", "status")
"""Columns of words; so is ``layer`` in 7a. All others are numbers, with gaps where nothing could be read."""

_AREAS = ["figure", "curve", "area_over_reference", "area_uncertainty", "x_at_accuracy_0.5"]


def figure(panel: str) -> pd.DataFrame:
    """Return what was read off a panel, such as ``"1a"``: a row for each point, the columns `COLUMNS` of it and others.

    Raises:
        ValueError: no such panel; near misses are suggested.
        DataError: the table is damaged; the message says which columns it lacks.
    """
    if panel not in COLUMNS:
        raise ValueError(f"figure {panel!r} was not read off{hint(panel, COLUMNS)}; known: {', '.join(COLUMNS)}")
    words = (*WORDS, "layer") if panel == "7a" else WORDS
    return _read(_path(f"fig{panel}"), COLUMNS[panel], words)


def areas(panel: str) -> pd.DataFrame:
    """Return the area under each line of panel 1a, 1b, 1c, 2a, 2b, 3a, 5a or 5b, and where it crosses one half.

    A row a line, in the paper's order; its index is the corruption (float) in figures 1 and 2, a name in the others.
    Columns: ``area`` over the fraction of units ablated, in figure 2 over log10 of the noise, divided by its range;
    ``error`` of reading it; ``half``, the number of units or the noise at which the accuracy is one half.

    Raises:
        ValueError: no such panel.
        DataError: the table is damaged.
    """
    table = _areas()
    rows = table[table.figure == panel]
    if rows.empty:
        known = list(dict.fromkeys(table.figure))
        raise ValueError(f"figure {panel!r} has no areas{hint(panel, known)}; known: {', '.join(known)}")
    names = rows.curve.astype(float) if panel[0] in "12" else rows.curve
    columns = {"area": rows.area_over_reference, "error": rows.area_uncertainty, "half": rows["x_at_accuracy_0.5"]}
    return pd.DataFrame(columns).set_index(names)


def origin(*panels: str) -> str:
    """Return words for readers: where the tables of these panels are read from.

    A chapter asks before it trains: a damaged table should not be found only when its figure is drawn, hours later.

    Raises:
        ValueError: no such panel.
        DataError: a table is damaged, or that of the areas.
    """
    for panel in panels:
        figure(panel)
    _areas()
    return published.origin(*(_path(f"fig{panel}") for panel in panels))


def _areas() -> pd.DataFrame:
    return _read(_path("areas"), _AREAS, ("figure", "curve", "x_reference"))


def _path(name: str) -> str:
    return f"published/morcos/morcos_{name}.csv"


def _read(relative: str, columns: list[str], words: tuple[str, ...]) -> pd.DataFrame:
    path = published.find(relative)
    if path is None:
        raise DataError(f"{relative} is missing from {published.SHIPPED}: install nadkit again")
    try:
        table = pd.read_csv(path, dtype={name: str for name in (*words, "note")})
    except (ValueError, UnicodeDecodeError) as error:
        raise _damaged(path, f"a table with commas between its columns: {error}") from error
    if missing := [name for name in columns if name not in table]:
        raise _damaged(path, f"the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    if table.empty:
        raise _damaged(path, "at least one row")
    numbers = [name for name in columns if name not in words]
    if broken := [name for name in numbers if not pd.api.types.is_numeric_dtype(table[name])]:
        raise _damaged(path, f"numbers in the column {broken[0]}")
    return table.astype({name: float for name in numbers})


def _damaged(path: Path, expected: str) -> DataError:
    return DataError(
        f"{path} is not a table read off the paper: expected {expected}; delete it, so that the one that comes with"
        " nadkit is read, or put a good copy in its place"
    )
