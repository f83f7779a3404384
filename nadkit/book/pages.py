"""Pages: pieces of HTML that work without a network and without scripts: tables, tabs, images."""

import base64
import html
import io
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever draws has them
    from matplotlib.figure import Figure
    from torch import Tensor

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
    """Return the label of the first of some `tabs`, as HTML, and what it shows; a page without tabs is of this run."""
    if found := re.search(r"<label[^>]*>(.*?)</label>\n<div>(.*?)</div>\n(?=<input|</div>)", page, flags=re.DOTALL):
        return found[1], found[2]
    return "this run", page


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: '45 s', '64 min', '2.5 h'."""
    for unit, size, digits in (("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{round(seconds / size, digits):g} {unit}"
    return f"{seconds:.0f} s"


def image(figure: "Figure", alt: str) -> str:
    """Return a figure as a PNG in the page, and close it."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)  # or pyplot shows it once more
    image = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{image}" alt="{html.escape(alt)}">'


def packed(image: "Tensor") -> str:
    """Return a one-channel image (H, W) as words, which a table can hold: a PNG of 8 bits in base64.

    Zero is 128, and the largest entry of either sign 1 or 255.
    """
    from PIL import Image

    largest = image.abs().max().item() or 1.0
    levels = 128 + (127 / largest * image.double().cpu()).round()
    buffer = io.BytesIO()
    Image.fromarray(levels.numpy().astype("uint8")).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(words: Iterable[str]) -> "Tensor":
    """Return the images (K, H, W) that `packed` made words of, each with its largest entry at 1 or -1."""
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
    return f'<table class="table {css}">\n{above}<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def row(cells: Iterable[str], *, head: str | None = None, id: str = "") -> str:
    """Return a row of cells that are HTML already; `head` is the one that names the row."""
    named = f'<th scope="row">{head}</th>' if head is not None else ""
    attribute = f' id="{id}"' if id else ""
    return f"<tr{attribute}>{named}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
