"""Pages: pieces of HTML that work without a network and without scripts: tables, tabs, images."""

import base64
import html
import io
import itertools
import re
import secrets
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a caller that draws has imported them
    from matplotlib.figure import Figure
    from torch import Tensor

# All panels follow all labels, in order; without style sheets they are shown one after the other.
TAB_STYLE = """\
.nadkit-tabs { display: flex; flex-wrap: wrap; position: relative; }
.nadkit-tabs > input { position: absolute; opacity: 0; }
.nadkit-tabs > label { padding: .3em .8em; border-bottom: 3px solid transparent; cursor: pointer; }
.nadkit-tabs > input:checked + label { border-color: currentColor; font-weight: bold; }
.nadkit-tabs > input:focus-visible + label { outline: 2px solid; }
.nadkit-tabs > div { order: 1; width: 100%; padding-top: .5em; overflow-x: auto; }
.nadkit-tabs img { max-width: 100%; }
@media screen { .nadkit-tabs > input:not(:checked) + label + div { display: none; } }"""


def tabs(panels: Iterable[tuple[str, str]]) -> str:
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


def first_panel(page: str) -> tuple[str, str]:
    """Return the first of some `tabs`: its label, as HTML, and what it shows; a page without tabs is of this run."""
    if found := re.search(r"<label[^>]*>(.*?)</label>\n<div>(.*?)</div>\n(?=<input|</div>)", page, flags=re.DOTALL):
        return found[1], found[2]
    return "this run", page


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: '45 s', '64 min', '2.5 h'."""
    for unit, size, digits in (("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{round(seconds / size, digits):g} {unit}"
    return f"{seconds:.0f} s"


SHARPNESS = 2
"""Pixels of a picture for each pixel of the page, along either side."""


def drawn(figure: "Figure", alt: str) -> tuple[str, str]:
    """Return a figure as a sharp PNG in the page, and as a PDF in base64 for slides; and close it."""
    from matplotlib import pyplot as plt

    sharp, vector = io.BytesIO(), io.BytesIO()
    figure.savefig(sharp, format="png", dpi=SHARPNESS * figure.dpi, bbox_inches="tight")
    figure.savefig(vector, format="pdf", bbox_inches="tight", metadata={"CreationDate": None})
    plt.close(figure)  # otherwise pyplot would show it once more
    return png(sharp.getvalue(), alt, SHARPNESS), base64.b64encode(vector.getvalue()).decode()


def png(content: bytes, alt: str, sharpness: float = 1) -> str:
    """Return a PNG in the page, as large as its size in pixels divided by its `sharpness`."""
    width, height = (round(side / sharpness) for side in struct.unpack(">II", content[16:24]))
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return f'<img src="{source}" width="{width}" height="{height}" alt="{html.escape(alt)}">'


def packed(image: "Tensor") -> str:
    """Return a one-channel image (H, W) as text, which a table can hold: a PNG of 8 bits in base64.

    Zero is 128, and the largest entry of either sign 1 or 255.
    """
    from PIL import Image

    largest = image.abs().max().item() or 1.0
    levels = 128 + (127 / largest * image.double().cpu()).round()
    buffer = io.BytesIO()
    Image.fromarray(levels.numpy().astype("uint8")).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(words: Iterable[str]) -> "Tensor":
    """Return the images (K, H, W) from the text that `packed` made, each with its largest entry at 1 or -1."""
    import numpy as np
    import torch
    from PIL import Image

    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(word)))) for word in words]
    return (torch.tensor(np.stack(images), dtype=torch.float64) - 128) / 127


def table(head: Sequence[str], rows: Iterable[str], *, caption: str = "", css: str = "") -> str:
    """Return a table of rows that `row` made, without blank lines: Markdown would end the block."""
    titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head)
    above = f"<caption>{html.escape(' '.join(caption.split()))}</caption>\n" if caption else ""
    body = "\n".join(rows)
    found = f'<table class="table {css}">\n{above}<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'
    return f'<div class="nadkit-scroll">\n{found}\n</div>'


def number(value: float) -> str:
    """Return a number in three significant digits, for a table: "0.0123", "98.8", "12,300"."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if 1000 <= abs(rounded) < 1e9 else f"{rounded:g}"


def row(cells: Iterable[str], *, head: str | None = None, id: str = "", css: Iterable[str] = ()) -> str:
    """Return a row of cells that are HTML already; `head` names the row, `css` the classes of the other cells."""
    named = f'<th scope="row">{head}</th>' if head is not None else ""
    attribute = f' id="{id}"' if id else ""
    classes = [f' class="nadkit-{name}"' for name in css]
    pairs = itertools.zip_longest(cells, classes, fillvalue="")
    return f"<tr{attribute}>{named}" + "".join(f"<td{name}>{cell}</td>" for cell, name in pairs) + "</tr>"
