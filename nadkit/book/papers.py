"""Papers: what the book's bibliography says of those that its claims come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nadkit.book.chapters import BadInput, read_text


@dataclass(frozen=True)
class Paper:
    """A paper of the bibliography: its authors as text names them, its year and address; "" where it has none."""

    authors: str
    year: str
    url: str

    @property
    def name(self) -> str:
        """How text names it: "Morcos et al. 2018"."""
        return " ".join(filter(None, [self.authors, self.year]))

    @property
    def at(self) -> str:
        """What the address is: "arXiv:1803.06959", or "doi:" and a DOI."""
        for start, word in (("https://arxiv.org/abs/", "arXiv:"), ("https://doi.org/", "doi:")):
            if self.url.startswith(start):
                return self.url.replace(start, word)
        return self.url


def read(root: Path) -> dict[str, Paper] | None:
    """Return the papers in the bibliography of the book at `root` by their keys; None where it has none."""
    path = root / "book" / "references.bib"
    return parse(read_text(path)) if path.exists() else None


def parse(text: str) -> dict[str, Paper]:
    """Return the papers of a BibTeX file by their keys.

    Raises:
        BadInput: it cannot be parsed, or pybtex is missing.
    """
    try:
        from pybtex.database import parse_string
        from pybtex.exceptions import PybtexError
    except ModuleNotFoundError:
        raise BadInput("pybtex is not installed: pip install -e '.[book]'") from None

    try:
        entries = parse_string(text, "bibtex").entries
        return {
            key: Paper(_authors(entry), entry.fields.get("year", ""), _url(entry.fields))
            for key, entry in entries.items()
        }
    except PybtexError as error:
        raise BadInput(f"the bibliography cannot be parsed: {error}") from error


def _authors(entry: Any) -> str:  # noqa: ANN401
    """Return "Morcos et al." of an entry of pybtex."""
    people = entry.persons.get("author", [])
    last = [" ".join(str(part) for part in p.rich_prelast_names + p.rich_last_names) for p in people]
    return f"{last[0]} et al." if len(last) > 2 else " and ".join(last) or entry.key


def _url(fields: Mapping[str, str]) -> str:
    for field, start in (("eprint", "https://arxiv.org/abs/"), ("doi", "https://doi.org/"), ("url", "")):
        if fields.get(field):
            return start + fields[field]
    return ""
