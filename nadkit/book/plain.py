"""Plain Markdown of a chapter's MyST: what Jupyter shows without an extension."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from nadkit.book import papers
from nadkit.book.chapters import Chapter, cell_source, find_chapters, read_notebook, read_text
from nadkit.book.papers import Paper

BLOCK = re.compile(
    r"^[ \t]*(`{3,}|:{3,})\{([\w-]+)\}[ \t]*([^\n]*)\n(.*?)^[ \t]*\1[ \t]*$\n?", re.MULTILINE | re.DOTALL
)
OPTIONS = re.compile(r"\A(?:[ \t]*:[\w-]+:[^\n]*\n)*\n*")
_TARGET = re.compile(r"^\(([\w-]+)\)=[ \t]*\n", re.MULTILINE)
_EQUATION = re.compile(r"\$\$((?:(?!\$\$).)*)\$\$[ \t]*\(([\w-]+)\)", re.DOTALL)
_ROLE = re.compile(r"\{(ref|numref|eq|cite(?::[tp])?)\}`([^`]+)`")
_NOTES = ("note", "tip", "hint", "warning", "important", "attention", "caution", "danger", "error", "seealso")
_BOOK_ALONE = "Profiles and claims"
"""The title of the part of a chapter that is about the book's machine."""


class Plain:
    """Makes plain Markdown of MyST, as far as that is simple: what JupyterLab shows without an extension."""

    def __init__(self, root: Path) -> None:
        self._titles = _titles(root)
        self._papers = papers.read(root) or {}

    def of_chapter(self, chapter: Chapter) -> Callable[[str], str]:
        """Return the function that converts the texts of a chapter, whose equations have numbers of their own."""
        texts = [cell_source(cell) for cell in chapter.notebook["cells"] if cell["cell_type"] == "markdown"]
        labels = [found[2] for text in texts for found in _EQUATION.finditer(text)]
        numbers = {label: number for number, label in enumerate(labels, start=1)}
        return lambda text: self._convert(text, numbers)

    def _convert(self, text: str, numbers: Mapping[str, int]) -> str:
        text = BLOCK.sub(lambda block: self._block(block, numbers), text)
        text = _TARGET.sub("", text)
        text = _EQUATION.sub(lambda e: f"$${e[1].rstrip()} \\tag{{{numbers[e[2]]}}}\n$$", text)
        text = _ROLE.sub(lambda role: self._role(role[1], role[2], numbers), text)
        return re.sub(r"\n{3,}", "\n\n", text)

    def _block(self, block: re.Match[str], numbers: Mapping[str, int]) -> str:
        kind, title, body = block[2], block[3].strip(), OPTIONS.sub("", block[4])
        if kind == "include" or (kind == "dropdown" and title == _BOOK_ALONE):
            return ""
        if kind == "dropdown":
            inside = self._convert(body, numbers).strip()
            return f"<details><summary>{title}</summary>\n\n{inside}\n\n</details>\n"
        if kind == "admonition" or kind in _NOTES:
            inside = (
                f"**{title if kind == 'admonition' else kind.capitalize()}.** {self._convert(body, numbers).strip()}"
            )
            return "".join(f"> {line}".rstrip() + "\n" for line in inside.splitlines())
        if kind == "exercise":
            return f"### Exercise: {title}\n\n{self._convert(body, numbers).strip()}\n"
        if kind in ("solution", "solution-start"):
            return f"**Solution.**\n\n{self._convert(body, numbers).strip()}\n"
        if kind == "solution-end":
            return ""
        return block[0]

    def _role(self, kind: str, content: str, numbers: Mapping[str, int]) -> str:
        shown, _, target = content.removesuffix(">").rpartition("<") if content.endswith(">") else ("", "", content)
        if kind == "eq":
            return f"({numbers[content]})" if content in numbers else "(an equation of another chapter)"
        if kind in ("ref", "numref"):
            return shown.strip() or f"*{self._titles.get(target, target)}*"
        known = [self._papers.get(key.strip(), Paper(key.strip(), "", "")) for key in content.split(",")]
        cited = [(paper.authors, paper.year) for paper in known]
        if kind == "cite:t":
            return ", ".join(f"{who} ({year})" for who, year in cited)
        return f"({'; '.join(f'{who}, {year}' for who, year in cited)})"


def _titles(root: Path) -> dict[str, str]:
    """Return the heading below each label of the book."""
    texts = [read_text(page) for page in (root / "book").rglob("*.md")]
    for path in find_chapters(root).values():
        texts += [cell_source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown"]
    return {label: title for text in texts for label, title in re.findall(r"^\(([\w-]+)\)=\s*\n#+ +(.*)$", text, re.M)}
