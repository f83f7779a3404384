"""Excerpts: figures and verdicts of the chapters, for other pages and for the top of each chapter itself.

A page asks for one by including a file, which `nadkit build` makes from the results of the chapters:

- `_generated/figures/CHAPTER/NAME.md`: what `results.show(NAME, ...)` shows there, this run beside the recorded ones;
- `_generated/lead/CHAPTER/NAME.md`: the best of these alone: a recorded run that holds, or else this run;
- `_generated/claims/ID+ID.md`: the verdicts on these claims, of the records that count or else of this run.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nadkit import files
from nadkit.book import collect, pages, scorecard, typeset
from nadkit.book.chapters import BadInput, cell_source, read_notebook, read_text
from nadkit.book.scorecard import Row
from nadkit.book.typeset import Pictures
from nadkit.names import did_you_mean

_INCLUDE = re.compile(r"^```\{include\} (_generated/(figures|lead|claims)/(\S+)\.md)$", re.MULTILINE)


def make(
    root: Path,
    chapters: Sequence[str],
    executed: Mapping[str, Path],
    rows: Sequence[Row],
    folder: Path,
    pictures: Pictures,
) -> dict[str, Path]:
    """Write the excerpts that pages of the book ask for below `folder`; return where each belongs -> its file.

    Their images go to the `pictures`.

    If one of the `chapters` was not `executed`, a note stands in place of what it would show.

    Raises:
        BadInput: a page asks for a chapter, a figure or a claim that is not there.
    """
    made = {}
    own = [root / "book" / f"{name}.ipynb" for name in chapters]
    for page in [*sorted((root / "book").rglob("*.md")), *filter(Path.exists, own)]:
        where = page.parent.relative_to(root)
        start = "../" * (len(where.parts) - 1)  # from the page to `html/book/`
        for place, kind, name in _INCLUDE.findall(_markdown(page)):
            try:
                if kind == "claims":
                    text = _verdicts(name, rows, start, whole=len(executed) == len(chapters))
                else:
                    text = _figure(name, chapters, executed, pictures, f"{start}../", lead=kind == "lead")
            except BadInput as error:
                raise BadInput(f"{page.relative_to(root)}: {place}: {error}") from error
            made[(where / place).as_posix()] = path = folder / "excerpts" / where / place
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.atomic_write(path) as part:
                part.write_text(f"{text}\n", encoding="utf-8")
    return made


def _markdown(page: Path) -> str:
    if page.suffix == ".md":
        return read_text(page)
    cells = read_notebook(page)["cells"]
    return "\n".join(cell_source(cell) for cell in cells if cell["cell_type"] == "markdown")


def _figure(
    name: str, chapters: Sequence[str], executed: Mapping[str, Path], pictures: Pictures, top: str, *, lead: bool
) -> str:
    chapter, _, figure = name.rpartition("/")
    if chapter not in chapters:
        raise BadInput(f"no chapter is called {chapter!r}: {did_you_mean(chapter, chapters)}")
    if chapter not in executed:
        return f"*`nadkit build {chapter}` shows a figure here.*"
    shown = collect.shown(executed[chapter])
    if figure not in shown:
        raise BadInput(f"{chapter} shows nothing called {figure!r}: {did_you_mean(figure, shown)}")
    page, caption = shown[figure].page, shown[figure].caption
    label, best = pages.first_panel(page)
    if not lead:
        below = f"this build{_on_images(executed[chapter])}" if best == page else ""  # tabs say it themselves
        return typeset.figure(page, caption, pictures, top, below=below)
    best = re.sub(r'<p class="nadkit-provenance">.*?</p>', "", best, flags=re.DOTALL)  # the chapter's own tabs say it
    return typeset.figure(best, caption, pictures, top, below=label)


def _on_images(executed: Path) -> str:
    """Return what images a run is on, as far as it has any: ", on scikit-learn's digits of 8 x 8 pixels"."""
    kinds = (re.match(r"([^,(]+?) ?[,(].*\bas \d+x(\d+)x(\d+)", item["kind"]) for item in collect.stored(executed).data)
    sets = [f"{found[1]} of {found[2]} x {found[3]} pixels" for found in kinds if found]
    return f", on {' and '.join(dict.fromkeys(sets))}" if sets else ""


def _verdicts(name: str, rows: Sequence[Row], start: str, *, whole: bool) -> str:
    known = {row.live.id: row for row in rows if row.live}
    ids = name.split("+")
    if whole and (unknown := [id for id in ids if id not in known]):
        raise BadInput(f"no chapter claims {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
    return scorecard.lines([known[id] for id in ids if id in known], start)
