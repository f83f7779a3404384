"""Pages: pieces of HTML that work without a network and without scripts: tables, tabs, images."""

import base64
import html
import io
import re
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a caller that draws has imported them
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
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
    dpi = figure.dpi
    figure.dpi = SHARPNESS * dpi
    box = _laid_out(figure)
    figure.savefig(sharp, format="png", dpi=figure.dpi, bbox_inches=box)
    figure.savefig(vector, format="pdf", dpi=dpi, bbox_inches=box, metadata={"CreationDate": None})
    plt.close(figure)  # otherwise pyplot would show it once more
    return png(sharp.getvalue(), alt, SHARPNESS), base64.b64encode(vector.getvalue()).decode()


def _laid_out(figure: "Figure") -> "Bbox":
    """Lay out a figure for good, and return the box (inches) of all that it shows.

    Saved as "tight", it would be laid out and measured once for every format, a third of the time.
    """
    from matplotlib import rcParams

    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine(None)
    return figure.get_tightbbox().padded(rcParams["savefig.pad_inches"])


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


def table(
    head: Sequence[str] | Mapping[str, Sequence[str]],
    rows: Iterable[str],
    *,
    caption: str = "",
    css: str = "",
    region: str = "",
) -> str:
    """Return a table of rows that `row` made, without blank lines: Markdown would end the block.

    Where `head` is a mapping, its titles stand above those of their columns, or, without any, above one column. A
    table that scrolls by itself is a `region` of this name.
    """
    above = f"<caption>{html.escape(' '.join(caption.split()))}</caption>\n" if caption else ""
    body = "\n".join(rows)
    found = f'<table class="table {css}">\n{above}<thead>{_head(head)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>'
    # the keyboard can scroll what it can focus
    named = {"class": "nadkit-rows", "role": "region", "aria-label": region} if region else {"class": "nadkit-scroll"}
    return f'<div{_attributes(named)} tabindex="0">\n{found}\n</div>'


def _head(head: Sequence[str] | Mapping[str, Sequence[str]]) -> str:
    if not isinstance(head, Mapping):
        return "<tr>" + "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head) + "</tr>"
    above = "".join(
        f'<th scope="colgroup" colspan="{len(below)}">{html.escape(title)}</th>'
        if below
        else f'<th scope="col" rowspan="2">{html.escape(title)}</th>'
        for title, below in head.items()
    )
    return f"<tr>{above}</tr>\n{_head([title for below in head.values() for title in below])}"


def number(value: float) -> str:
    """Return a number in three significant digits, for a table: "0.0123", "98.8", "12,300"."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if 1000 <= abs(rounded) < 1e9 else f"{rounded:g}"


Cell = str | tuple[str, Mapping[str, object]]
"""What a cell of a table holds, as HTML; or that, and its attributes."""


def row(cells: Iterable[Cell], *, head: Cell | None = None, **attributes: str) -> str:
    """Return a row of a table; `head` names it, `attributes` are its own, such as an `id`."""
    named = _cell(head, "th", scope="row") if head is not None else ""
    return f"<tr{_attributes(attributes)}>{named}{''.join(_cell(cell, 'td') for cell in cells)}</tr>"


def _cell(cell: Cell, tag: str, **attributes: str) -> str:
    content, own = (cell, {}) if isinstance(cell, str) else cell
    return f"<{tag}{_attributes({**attributes, **own})}>{content}</{tag}>"


def _attributes(named: Mapping[str, object]) -> str:
    words = {name: html.escape(" ".join(str(value).split())) for name, value in named.items()}
    return "".join(f' {name}="{value}"' for name, value in words.items())
