"""The scorecard: every claim of the book with its verdict in this build and in the recorded runs."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nadkit.book import pages
from nadkit.book.chapters import BadInput
from nadkit.book.claims import FAILS, HOLDS, UNDECIDED, Claim, Run, measured_as_html, word_as_html
from nadkit.book.records import Record, short_commit
from nadkit.names import did_you_mean

ON_A_STAND_IN = "on a stand-in"
VERDICTS = (HOLDS, FAILS, UNDECIDED, ON_A_STAND_IN)
OWN = "our own measurements"
GONE = "no longer in the chapter"


@dataclass(frozen=True)
class Row:
    """A claim, its live result (None if the chapter dropped it) and its recorded results.

    `waits` says which planned run an undecided claim waits for; "" where none decides it, or it is decided.
    """

    run: Run
    live: Claim | None
    recorded: Sequence[tuple[Record, Claim]]
    waits: str = ""

    @property
    def claim(self) -> Claim:
        """The claim as it was last made."""
        return self.live or max(self.recorded, key=lambda pair: pair[0].started)[1]

    @property
    def chapter(self) -> str:
        """The name of the chapter that makes the claim."""
        return self.run.record["chapter"]

    @property
    def page(self) -> str:
        """Where in the pages of the book the claim is, seen from `html/book/`."""
        return f"{self.chapter}.html" + (f"#claim-{self.live.id}" if self.live else "")

    @property
    def best(self) -> tuple[Record, Claim] | None:
        """The record and its claim that count."""
        return best(self.recorded)


def best(recorded: Iterable[tuple[Record, Claim]]) -> tuple[Record, Claim] | None:
    """Return of what records say of a claim that which counts: valid, measured, on the images that it is about, at the
    largest scale, latest.
    """
    valid = (pair for pair in recorded if pair[0].counts)

    def order(pair: tuple[Record, Claim]) -> tuple:
        record, claim = pair
        return claim.measured is None, bool(claim.stand_in), record.rank

    return min(valid, key=order, default=None)


def rows(runs: Iterable[Run], records: Iterable[Record], waits: Mapping[str, str] = MappingProxyType({})) -> list[Row]:
    """Return the claims of executed chapters, in their order; behind them those that only a record has.

    `waits` says by claim which planned run it waits for.
    """
    records = list(records)
    found = []
    for run in runs:
        live = {claim.id: claim for claim in run.claims}
        recorded: dict[str, list[tuple[Record, Claim]]] = {}
        for record in records:
            if record.chapter == run.record["chapter"]:
                for claim in record.claims:
                    # A measurement is judged by today's rules, whatever they were when it was recorded.
                    judged = claim.judged_by(live[claim.id]) if claim.id in live else claim
                    recorded.setdefault(claim.id, []).append((record, judged))
        undecided = {id: waits.get(id, "") for id, claim in live.items() if claim.verdict not in (HOLDS, FAILS)}
        ids = dict.fromkeys([*live, *recorded])
        found += [Row(run, live.get(id), recorded.get(id, []), undecided.get(id, "")) for id in ids]
    return found


def bibliography(text: str) -> set[str]:
    """Return the citation keys of a BibTeX file."""
    entries = re.findall(r"^\s*@(\w+)\s*\{\s*([^\s,{}]+)\s*,", text, flags=re.MULTILINE)
    return {key for kind, key in entries if kind.lower() not in ("comment", "preamble", "string")}


def require_cited(rows: Iterable[Row], keys: Iterable[str]) -> None:
    """Raise BadInput, naming them all, where claims are of papers that the bibliography does not have."""
    keys = sorted(keys)
    problems = [
        f"claim {claim.id} of {row.chapter}: paper: no such key in the bibliography, {claim.paper!r}; "
        f"{did_you_mean(claim.paper, keys)}"
        for row in rows
        if (claim := row.claim).paper and claim.paper not in keys
    ]
    if problems:
        raise BadInput("\n".join(problems))


# ---- totals --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """How many claims one paper makes, and how many got which verdict."""

    paper: str
    claims: int
    live: Mapping[str, int]
    recorded: Mapping[str, int]


def totals(rows: Sequence[Row]) -> list[Total]:
    """Return the totals of each paper by its key, then of our own measurements.

    Counted are the claims that chapters still make; records that differ do not count.
    """
    rows = [row for row in rows if row.live]
    papers = sorted({row.live.paper for row in rows}, key=lambda paper: (not paper, paper))
    return [_total(paper, [row for row in rows if row.live.paper == paper]) for paper in papers]


def _total(paper: str, rows: Sequence[Row]) -> Total:
    live = Counter(_counted(row.live) for row in rows)
    recorded = Counter(_counted(row.best[1]) for row in rows if row.best)
    return Total(paper, len(rows), {v: live[v] for v in VERDICTS}, {v: recorded[v] for v in VERDICTS})


def _counted(claim: Claim) -> str:
    """Return the verdict that the totals count; one on a stand-in is none about the paper's images."""
    return claim.verdict if claim.verdict in VERDICTS else ON_A_STAND_IN


# ---- for programs --------------------------------------------------------------------------------


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the scorecard as plain data; its links are relative to the folder `html` of the pages."""
    return {
        "version": 1,
        "totals": [
            {"paper": t.paper, "claims": t.claims, "live": dict(t.live), "recorded": dict(t.recorded)}
            for t in totals(rows)
        ],
        "claims": [_row_to_json(row) for row in rows],
    }


def _row_to_json(row: Row) -> dict[str, Any]:
    claim = row.claim
    return {
        "chapter": row.chapter,
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "paper": claim.paper,
        "reported": claim.reported,
        "holds_if": claim.holds_if,
        "link": f"book/{row.page}",
        "live": row.live and _judged(row.live) | {"profile": row.run.record.get("profile")},
        "recorded": [_judged(claim) | _recorded_facts(record) for record, claim in row.recorded],
        "waits_for": row.waits or None,
    }


def _judged(claim: Claim) -> dict[str, Any]:
    return {
        "measured": claim.measured,
        "error": claim.error,
        "verdict": claim.verdict,
        "why_undecided": claim.why_undecided,
    }


def _recorded_facts(record: Record) -> dict[str, Any]:
    return {
        "record": record.name,
        "profile": record.profile,
        "state": record.validity.state,
        "why": record.validity.why,
        "device": record.device,
        "commit": record.commit,
        "date": record.started[:10],
    }


# ---- for people ----------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """Return what the scorecard's page includes: the totals, and each chapter's claims under a heading of their own."""
    chapters = dict.fromkeys(row.chapter for row in rows)
    parts = ["## Totals", _totals_table(totals(rows)) if rows else "The chapters claim nothing yet."]
    for chapter in chapters:
        own = [row for row in rows if row.chapter == chapter]
        # A link with words of its own: the page's table of contents shows no titles that Sphinx fills in.
        parts += [f"## [{own[0].run.title}](/book/{chapter}.ipynb)", _chapter_table(own)]
    return "\n\n".join(parts) + "\n"


# Short enough for a phone; that a claim which fails may be one outside our band, the page says.
HEADS = {HOLDS: "holds", FAILS: "fails or outside", UNDECIDED: "not decidable", ON_A_STAND_IN: ON_A_STAND_IN}


def _totals_table(found: Iterable[Total]) -> str:
    head = ["paper", "claims", "runs", *(HEADS[verdict] for verdict in VERDICTS)]
    lines = [head, ["---", "---:", "---", *["---:"] * len(VERDICTS)]]
    for total in found:
        name = f"{{cite:t}}`{total.paper}`" if total.paper else OWN
        lines.append([name, str(total.claims), "live", *map(str, total.live.values())])
        lines.append(["", "", "recorded", *map(str, total.recorded.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _chapter_table(rows: Sequence[Row]) -> str:
    record = rows[0].run.record
    caption = f"The claims of {record['chapter']}: live, profile {record.get('profile')}, and recorded"
    head = ("Claim", "Reported", "Live", "Recorded")
    return pages.table(head, map(_as_row, rows), caption=caption, css="nadkit-claims nadkit-scorecard")


def _as_row(row: Row) -> str:
    claim = row.claim
    link = f'<a href="{_escape(f"../{row.page}")}">{_escape(claim.statement)}</a>'
    link += f"<br><small>{_escape(claim.source)}</small><br><code>{_escape(claim.id)}</code>"
    live = _measured(row.live) if row.live else f"<em>{GONE}</em>"
    recorded = "".join(f"<li>{_measured(claim)}<br>{_where(record)}</li>" for record, claim in row.recorded)
    waits = f"<small>{_escape(row.waits)}</small>" if row.waits else ""
    reported = f"{_escape(claim.report)}<br><small>holds if {_escape(claim.holds_if)}</small>"
    cells = {"reported": reported, "run": live}
    cells["recorded"] = (f"<ul>{recorded}</ul>" if recorded else "") + waits or "-"
    return pages.row(cells.values(), head=link, css=cells)


def lines(rows: Iterable[Row], start: str) -> str:
    """Return a list of claims with the verdict that counts, recorded if there is one; `start` leads to `html/book/`."""
    return "\n".join(['<ul class="nadkit-verdicts">', *(_line(row, start) for row in rows), "</ul>"])


def _line(row: Row, start: str) -> str:
    record, claim = row.best or (None, row.claim)
    facts = [f"reported {claim.report}, measured {claim.measurement}", record.words if record else "this build"]
    facts += filter(None, [claim.why_undecided, row.waits])
    link = f'<a href="{_escape(start + row.page)}">{_escape(claim.statement)}</a>'
    return f"<li>{word_as_html(claim)} {link} <small>({_escape('; '.join(facts))})</small></li>"


def _measured(claim: Claim) -> str:
    return " ".join(measured_as_html(claim).split())


def _where(record: Record) -> str:
    facts = [record.name, record.device or record.platform, short_commit(record.commit), record.started[:10]]
    emphasis = "span" if record.counts else "strong"
    mark = f'<br><{emphasis} class="nadkit-mark">{_escape(record.mark)}</{emphasis}>' if record.mark else ""
    return f"<small>{_escape(' · '.join(facts))}{mark}</small>"


def _escape(text: str) -> str:
    return html.escape(" ".join(text.split()))
