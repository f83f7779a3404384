"""The reference: the parameters of all chapters on one page, and docstrings as Sphinx reads them.

For the docstrings, plain text with Markdown's backticks, this module is an extension of Sphinx, in the list of
`_config.yml`: autodoc finds them, napoleon reads their sections.
"""

import html
import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nadkit.book import pages
from nadkit.book.chapters import QUICK, Chapter, describe

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_NAME = re.compile(r"`([A-Za-z_][\w.]*)`")
# reStructuredText would read these as emphasis, substitutions and links.
_MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")
_SECTION = re.compile(r"[A-Z][a-z]+:$")
# These extensions of Jupyter Book do not say that pages may be read in any order. They keep nothing of a page.
QUIET = {"sphinx_jupyterbook_latex", "sphinx_multitoc_numbering"}
_NAMES = re.compile(r"( +\w+(?:, \w+)+): ")


def parameters(chapters: Iterable[Chapter]) -> str:
    """Return, in Markdown, a table for each chapter: its parameters, their types, values and limits."""
    return "\n\n".join(map(_table, map(describe, chapters))) + "\n"


def _table(chapter: Mapping[str, Any]) -> str:
    others = [name for name in chapter["profiles"] if name != QUICK]
    rows = []
    for p in chapter["parameters"]:
        values = p["values"]
        cells = [_code(p["type"]), _code(json.dumps(values[QUICK]))]
        cells += ["" if values[name] == values[QUICK] else _code(json.dumps(values[name])) for name in others]
        head = f"<code>{p['name']}</code><br><small>{html.escape(p['help'])}</small>"
        rows.append(pages.row([*cells, _limits(p)], head=head))
    caption = f"Parameters of {chapter['chapter']}"
    found = pages.table(("Parameter", "Type", QUICK, *others, "Allowed"), rows, caption=caption, css="nadkit-claims")
    # A link with words of its own: the page's table of contents shows no titles that Sphinx fills in.
    heading = f"## [{chapter['title']}](/book/{chapter['chapter']}.ipynb)"
    return f"{heading}\n\n{found}"


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def _limits(parameter: Mapping[str, Any]) -> str:
    if "choices" in parameter:
        return ", ".join(map(_code, map(str, parameter["choices"])))
    return html.escape(parameter.get("range") or parameter.get("known", ""))


def setup(app: "Sphinx") -> dict[str, Any]:
    """Register with Sphinx."""
    from docutils import nodes
    from sphinx.addnodes import index
    from sphinx.domains.python import PyObject
    from sphinx.transforms import SphinxTransform

    class Named(SphinxTransform):
        """Enters a page into the index under its name, so that a search for the name finds the page first."""

        default_priority = 800  # before the index is made, at 850

        def apply(self, **_: object) -> None:
            section = next(self.document.findall(nodes.section), None)
            if section is not None:
                name = self.env.docname.rpartition("/")[2].replace("-", " ")
                self.document.insert(0, index(entries=[("single", name, section["ids"][0], "main", None)]))

    app.add_transform(Named)
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings call them
    app.connect("builder-inited", _share_pages)
    app.connect("autodoc-process-docstring", _prepare, priority=400)  # before napoleon, at 500
    app.connect("html-collect-pages", _complete_search)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _share_pages(app: "Sphinx") -> None:
    """Let two processes read and write the pages, where there are two cores: Jupyter Book has no option for it."""
    import joblib

    app.parallel = min(2, joblib.cpu_count())
    for name in QUIET & app.extensions.keys():
        app.extensions[name].parallel_read_safe = True


def _complete_search(app: "Sphinx") -> list[tuple[str, dict[str, Any], str]]:
    """Give the search the index entries of pages that are not drawn this time: Sphinx forgets them.

    It makes no pages of its own: the event is the last before the search is written.
    """
    from sphinx.util.index_entries import split_index_msg

    if indexer := getattr(app.builder, "indexer", None):  # not every builder has a search
        for page, entries in app.env.get_domain("index").entries.items():
            if page in indexer._titles:
                split = [(split_index_msg(kind, value), id or "", main) for kind, value, id, main, _ in entries]
                words = {(word, id, main) for parts, id, main in split for word in parts}
                indexer._index_entries.setdefault(page, sorted(words))
    return []


def _prepare(app: object, what: str, name: str, object_: object, options: object, lines: list[str]) -> None:
    lines[:] = as_rst(lines, vars(_module(name)))
    if what in ("attribute", "data", "property"):
        # Napoleon takes what stands before a colon for a type: here nothing does.
        lines[0] = f": {lines[0]}"


def as_rst(lines: list[str], scope: dict[str, Any]) -> list[str]:
    """Return the lines of a docstring in reStructuredText.

    A name in single backticks becomes a link if `scope`, the names of the module, has it, and code otherwise. Displayed
    equations are not changed, and mathematical symbols are not read as markup.
    """
    made, before, literal = [], "", False
    for line in lines:
        if line and line[0] != " ":
            literal = False
        elif line and not literal and not made[-1] and not _opens_block(before):
            literal = True
            made += ["::", ""]
        made.append(line if literal else _escaped(line, scope))
        before = line or before
    return made


def _opens_block(line: str) -> bool:
    """Return whether what is indented below this line belongs to it: to a section, or to an item of a list."""
    return bool(_SECTION.match(line)) or line[:1] in "- "


def _escaped(line: str, scope: dict[str, Any]) -> str:
    # "first, last: words" names two attributes: napoleon would take the first for a type.
    line = _NAMES.sub(lambda found: found[0].replace(", ", ","), line)
    pieces = _CODE.split(line)
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            start = "\\ " if i and piece[:1].isalnum() else ""  # as after `name`s
            bullet = re.match(r" *[-*] ", piece)[0] if not i and re.match(r" *[-*] ", piece) else ""
            pieces[i] = start + bullet + _MARKUP.sub(r"\\\g<0>", piece[len(bullet) :])
        else:
            pieces[i] = _NAME.sub(lambda found: _link(found[1], scope), piece)
    return "".join(pieces)


def _link(name: str, scope: dict[str, Any]) -> str:
    """Return a name as a role that shows it and leads to where it was defined."""
    thing = scope.get(name)
    home = getattr(thing, "__module__", None)
    if inspect.ismodule(thing):
        return f"`{name} <{thing.__name__}>`"
    return f"`{name} <{home}.{thing.__qualname__}>`" if home and hasattr(thing, "__qualname__") else f"`{name}`"


def _module(name: str) -> ModuleType:
    """Return the module in which a name with dots lies."""
    while name not in sys.modules:
        name = name.rpartition(".")[0]
    return sys.modules[name]
