"""Typesetting: the page that a build makes of a chapter.

An executed notebook holds what a kernel returned. On the page its pictures become numbered figures, each a file of its
own; numbers in tables have three digits; recorded measurements stand beside the claims; and a box below the title says
how to rerun the chapter. Nothing here runs a chapter: changing a page reruns nothing.
"""

import base64
import hashlib
import html
import io
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nadkit import files
from nadkit.book import chapters, claims, collect, pages
from nadkit.book.chapters import QUICK, Chapter, cell_source, read_notebook
from nadkit.book.records import Record

COLOURS = 256
FOLDED = 3  # more lines than this of kept numbers are folded
WORDS_A_MINUTE = 200
_IMAGE = re.compile(r'<img src="data:image/png;base64,([^"]+)"([^>]*)>')
_NUMBER = re.compile(r'(<b class="nadkit-number">)[^<]*(</b>)')


class Pictures:
    """The pictures of the pages: PNGs in `folder`, each in a file named by its content.

    They have at most 256 colours, which is a third of the bytes; measured on curves, maps, and noise, a channel is off
    by at most 15 of 255, and by less than 1 on average.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: dict[str, Path] = {}

    def add(self, png: bytes) -> str:
        """Store a picture, and return its place in the folder of the pages."""
        name = f"{hashlib.sha256(png).hexdigest()[:16]}.png"
        path = self._folder / name
        if not path.exists():
            with files.atomic_write(path) as part:
                part.write_bytes(_lighter(png))
        self.made[f"_pictures/{name}"] = path
        return f"_pictures/{name}"


def _lighter(png: bytes) -> bytes:
    """Return a PNG in at most 256 colours, or itself where that is no lighter."""
    from PIL import Image

    image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    few = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(buffer, format="png", optimize=True)
    return min(buffer.getvalue(), png, key=len)


# ---- a chapter -----------------------------------------------------------------------------------


def chapter(
    of: Chapter,
    executed: Path | None,
    records: Sequence[Record],
    recorded: claims.Recorded,
    notes: Mapping[str, str],
    pictures: Pictures,
) -> dict[str, Any]:
    """Return the page of a chapter as a notebook.

    It is made from the `executed` notebook, or from the chapter itself if it never ran. By claim, `recorded` gives what
    the best of the chapter's `records` says, and `notes` what an undecided claim waits for.
    """
    notebook = read_notebook(executed or of.path)
    run = notebook["metadata"].get("nadkit", {})
    claims.annotate(notebook, notes, recorded)
    top = "../" * (of.name.count("/") + 1)
    for cell in notebook["cells"]:
        images = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        for number, output in enumerate(images, start=1):
            _set_image(cell, output, f" ({number} of {len(images)})" if len(images) > 1 else "", pictures, top)
        for output in cell.get("outputs", []):
            _set_html(output, pictures, top)
        cell["metadata"].get("mystnb", {}).pop("figure", None)  # otherwise Sphinx would write the caption once more
    _set_head(notebook, rerun(of, run, records, top))
    return notebook


def _set_image(cell: Mapping[str, Any], output: dict[str, Any], which: str, pictures: Pictures, top: str) -> None:
    """Make a figure of a picture that a cell displays."""
    shown = cell["metadata"].get("mystnb", {})
    alt = shown.get("image", {}).get("alt", "")
    caption = shown.get("figure", {}).get("caption", "") or _first_sentence(alt)
    data = output["data"]
    content = base64.b64decode("".join(data["image/png"]))
    wide = output.get("metadata", {}).get("image/png", {}).get("width")
    sharpness = int.from_bytes(content[16:20], "big") / wide if wide else 1
    page = figure(pages.png(content, alt, sharpness), f"{caption.removesuffix('.')}{which}.", pictures, top)
    output["data"] = {"text/html": page, "text/plain": data.get("text/plain", "")}


def _set_html(output: dict[str, Any], pictures: Pictures, top: str) -> None:
    """Make a figure of what `results.show` drew, fold many kept numbers, and give those of a table three digits."""
    output.get("metadata", {}).pop(collect.PDF, None)
    page = "".join(output.get("data", {}).get("text/html", ""))
    for shown in collect.shown_by(output).values():
        output["data"]["text/html"] = figure(page, shown.caption, pictures, top)
    numbers = "".join(output.get("data", {}).get("text/plain", ""))
    if collect.keeps_numbers(output) and numbers.count("\n") >= FOLDED:
        kept = f"<summary>The numbers that this run keeps</summary><pre>{html.escape(numbers)}</pre>"
        output["data"]["text/html"] = f'<details class="nadkit-kept">{kept}</details>'
    if 'class="dataframe"' in page:
        output["data"]["text/html"] = f'<div class="nadkit-scroll">\n{_tidy(page)}\n</div>'


def figure(page: str, caption: str, pictures: Pictures, top: str, *, below: str = "") -> str:
    """Return HTML with pictures in it as a figure, which `numbered` numbers; other HTML is returned unchanged.

    By default the caption is the first sentence of the first picture's text; `below` follows it. `top` is the path from
    the page to the folder of the pages.
    """
    if not (first := _IMAGE.search(page)):
        return page

    def placed(found: re.Match) -> str:
        place = top + pictures.add(base64.b64decode(found[1]))
        return f'<a class="nadkit-enlarge" href="{place}"><img src="{place}" loading="lazy"{found[2]}></a>'

    alt = re.search(r'alt="([^"]*)"', first[2])
    words = html.escape(caption) if caption else _first_sentence(alt[1] if alt else "")
    small = f" <small>{below}</small>" if below else ""
    said = f'<b class="nadkit-number">Figure.</b> {_with_formulas(words)}{small}'
    return f'<figure class="nadkit-figure">\n{_IMAGE.sub(placed, page)}\n<figcaption>{said}</figcaption>\n</figure>'


def numbered(page: str) -> str:
    """Return a page with its figures numbered consecutively, also those in folded boxes, which do not show at first."""
    number = itertools.count(1)
    return _NUMBER.sub(lambda found: f"{found[1]}Figure {next(number)}.{found[2]}", page)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", text.strip(), maxsplit=1)[0]


def _with_formulas(words: str) -> str:
    """Return escaped words with `$...$` as formulas."""
    return re.sub(r"\$([^$]+)\$", r'<span class="math notranslate nohighlight">\\(\1\\)</span>', words)


# ---- tables that pandas made ---------------------------------------------------------------------


def _tidy(page: str) -> str:
    """Return tables of pandas with numbers of three digits, and the name of the index in the row of the titles."""
    page = re.sub(
        r"<td>(-?\d+\.\d+(?:[eE][-+]?\d+)?)</td>", lambda found: f"<td>{pages.number(float(found[1]))}</td>", page
    )
    return re.sub(r"<thead>(.*?)</thead>", _one_head, page, flags=re.DOTALL)


def _one_head(found: re.Match) -> str:
    """Return the head of a table, its two rows as one where one of them has a title wherever the other is blank."""
    rows = [re.findall(r"<th([^>]*)>(.*?)</th>", row, flags=re.DOTALL) for row in found[1].split("</tr>")[:-1]]
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or "colspan" in found[1]:
        return found[0]
    if any(above[1] and below[1] for above, below in zip(*rows, strict=True)):
        return found[0]
    titles = "".join(f"<th>{above[1] or below[1]}</th>" for above, below in zip(*rows, strict=True))
    return f"<thead><tr>{titles}</tr></thead>"


# ---- the head of a page --------------------------------------------------------------------------


def _set_head(notebook: dict[str, Any], box: str) -> None:
    """Put the reading time below the title, and a box behind the cell that has it."""
    cells = notebook["cells"]
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "markdown" and (found := re.search(r"^# .*$", cell_source(cell), flags=re.MULTILINE)):
            text = cell_source(cell)
            about = f'<p class="nadkit-reading">{reading_minutes(cells)} min to read</p>'
            # As lines, because the heading, on a line of its own, tells whether the sidebar changed.
            cell["source"] = f"{text[: found.end()]}\n\n{about}\n{text[found.end() :]}".splitlines(keepends=True)
            cells.insert(i + 1, {"cell_type": "markdown", "id": "rerun", "metadata": {}, "source": box})
            return


def reading_minutes(cells: Iterable[Mapping[str, Any]]) -> int:
    """Return how long the prose of a notebook takes to read, in whole minutes, at 200 words a minute."""
    text = "\n".join(cell_source(cell) for cell in cells if cell["cell_type"] == "markdown")
    prose = re.sub(r"```\{include\}.*?```|\$\$.*?\$\$|\$[^$\n]+\$", " ", text, flags=re.DOTALL)
    return max(1, round(len(re.findall(r"[^\W\d_]{2,}", prose)) / WORDS_A_MINUTE))


def rerun(of: Chapter, run: Mapping[str, Any], records: Sequence[Record], top: str) -> str:
    """Return a folded box in Markdown: the command that reruns a chapter, its parameters, and how long it took.

    `run` is what the runner recorded of the run on the page; if it is empty, the chapter never ran.
    """
    told = chapters.describe(of)
    profile = run.get("profile", QUICK)
    option = "" if profile == QUICK else f" --profile {profile}"
    names = [entry["name"] for entry in told["parameters"]]
    example = "seed" if "seed" in names else names[0] if names else ""
    lines = [f"$ nadkit run {of.name}{option} --out runs"]
    if example:
        value = 1 if example == "seed" else told["parameters"][names.index(example)]["values"].get(profile)
        given = shlex.quote(f"{example}={value if isinstance(value, str) else json.dumps(value)}")
        lines.append(f"$ nadkit run {of.name}{option} -p {given} --out runs")
    took = [(f"this page, profile {profile}", pages.duration(run["seconds"]))] if "seconds" in run else []
    took += [(f"recorded, {record.title}", record.words) for record in records if record.counts]
    place = html.escape(f"{top}notebooks/{of.name}.ipynb")
    parts = [
        "The first command runs the chapter as on this page, the second with another value; several `-p` set several.",
        "\n".join(["```console", *lines, "```"]),
        f'<p><a href="{place}" download>The notebook</a>, without results</p>',
        _parameters(told) if names else "It has no parameters.",
        pages.table(("Run", "How long"), (pages.row(map(html.escape, pair)) for pair in took)) if took else "",
    ]
    return "\n\n".join(
        ["````{dropdown} Rerun this chapter\n:class-container: nadkit-rerun", *filter(None, parts), "````"]
    )


def _parameters(told: Mapping[str, Any]) -> str:
    """Return the table of a chapter's parameters, those of each profile side by side."""
    return pages.table(("Parameter", "Meaning", "Range", *told["profiles"]), _parameter_rows(told), css="nadkit-table")


def _parameter_rows(told: Mapping[str, Any]) -> Iterator[str]:
    for entry in told["parameters"]:
        values = [_value(value) for value in entry["values"].values()]
        cells = [
            f"<code>{entry['name']}</code>",
            *(html.escape(text) for text in (entry["help"], chapters.allowed(entry), *values)),
        ]
        yield pages.row(cells)


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
