"""Interactive figures: a chart, what a reader can choose in it, and a static picture for where no script runs.

Vega-Lite draws them: altair writes a figure as checked JSON, and `vl_convert` provides the scripts, which lie beside
the pages, and the static picture. Both come from the package index. Observable Plot would draw as well, but then each
figure would be a script of our own, and neither its picture nor its library would come from Python.

The fields above a figure, and its arrow keys, are `book/_static/explorers/explorers.js`.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nadkit import files

if TYPE_CHECKING:
    import altair as alt

VEGA_LITE = "6.4"
MISSING = "Not measured."
"""The words for a choice that has none of its own."""


@dataclass(frozen=True)
class Control:
    """What a reader chooses: a parameter of the figure by its name, and the values it may have.

    `keys` says which arrow key leads to the next value: "right", "up", "down", or "" for none.
    """

    name: str
    label: str
    values: Sequence[str | float]
    start: str | float
    keys: str = ""


@dataclass(frozen=True)
class Explorer:
    """An interactive figure: its chart, what can be chosen, and what each choice says in words.

    The keys of `words` are the values of the controls, joined by "|".
    """

    chart: "alt.TopLevelMixin"
    controls: Sequence[Control]
    words: Mapping[str, str]
    alt: str
    runs: Sequence[str] = ()


def key(*values: str | float) -> str:
    """Return the key of a state in an explorer's `words`; a script writes numbers in the same way."""
    return "|".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def finish(chart: "alt.TopLevelMixin", *controls: Control) -> "alt.TopLevelMixin":
    """Return a chart with a parameter for each control, in the style of the book."""
    import altair as alt

    parameters = [alt.param(name=control.name, value=control.start) for control in controls]
    return (
        chart.add_params(*parameters)
        .resolve_scale(color="independent", x="independent", y="independent")
        .configure(background="white", font="sans-serif")
        .configure_view(stroke=None)
    )


def library() -> str:
    """Return the scripts that draw the figures, as one script."""
    import vl_convert

    # Inside a function, because its names are short and other scripts of a page may use them, too.
    return f"(() => {{\n{vl_convert.javascript_bundle(vl_version=VEGA_LITE)}\n}})();\n"


def page(name: str, explorer: Explorer, cache: Path) -> str:
    """Return an explorer as HTML: the static picture, and the data from which the script makes a figure."""
    spec = explorer.chart.to_dict()
    picture = base64.b64encode(_picture(spec, cache)).decode()
    controls = [vars(control) for control in explorer.controls]
    data = json.dumps({"spec": spec, "controls": controls, "words": dict(explorer.words), "missing": MISSING})
    data = data.replace("<", r"\u003c")  # so that no text in it ends the script
    runs = html.escape("; ".join(dict.fromkeys(explorer.runs)))
    return f"""\
<div class="nadkit-explorer" id="explorer-{name}">
<script type="application/json">{data}</script>
<figure>
<div class="nadkit-chart"><img src="data:image/png;base64,{picture}" alt="{html.escape(explorer.alt)}"></div>
<figcaption><small>{runs}</small></figcaption>
</figure>
</div>"""


def _picture(spec: Mapping[str, Any], cache: Path) -> bytes:
    """Return a figure as a PNG of few colours; `cache` is a folder that keeps it, for drawing takes seconds."""
    import vl_convert
    from PIL import Image

    path = cache / f"{hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]}.png"
    if not path.exists():
        drawn = Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=1.5)))
        with files.atomic_write(path) as part:
            drawn.convert("RGB").quantize(128).save(part, format="png", optimize=True)
    return path.read_bytes()
