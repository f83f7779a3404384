"""The scorecard: every claim of the book with its verdict in this build and in the recorded runs.

Its page is one table, which is complete without scripts. With scripts, DataTables filters and sorts it
(`book/_static/scorecard/`). DataTables is maintained, works on a table that is already in the page, and is a plain
script. Packages such as itables bring it as a module, which browsers do not load from a file on disk.
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from nadkit.book import pages
from nadkit.book.chapters import BadInput
from nadkit.book.claims import (
    FAILS,
    HOLDS,
    MIME,
    SYMBOLS,
    UNDECIDED,
    Claim,
    Claims,
    Run,
    measured_as_html,
    word_as_html,
)
from nadkit.book.papers import Paper
from nadkit.book.records import Record, short_commit
from nadkit.names import did_you_mean

ON_A_STAND_IN = "on a stand-in"
VERDICTS = (HOLDS, FAILS, UNDECIDED, ON_A_STAND_IN)
OWN = "our own measurements"
GONE = "no longer in the chapter"


@dataclass(frozen=True)
class Row:
    """A claim, its live result (None if the chapter dropped it) and its recorded results.

    `waits` says which planned run an undecided claim waits for; "" if no planned run decides it, or it is decided.
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
        """Where in the pages of the book the claim is, relative to `html/book/`."""
        return f"{self.chapter}.html" + (f"#claim-{self.live.id}" if self.live else "")

    @property
    def best(self) -> tuple[Record, Claim] | None:
        """The record and its claim that count."""
        return best(self.recorded)

    @property
    def standing(self) -> tuple[Record | None, Claim]:
        """The claim whose verdict stands, and its record; None means this build.

        The result that lacks least of what the claim is about and needs is taken, as in `best`; of two alike, or where
        neither can decide it, the recorded one.
        """
        live = (None, self.live or self.claim)
        recorded = self.best or live
        if recorded[1].measured is not None and recorded[1].obstacles and live[1].obstacles:
            return recorded
        return min([recorded, live], key=lambda pair: _lacks(pair[1]))


def best(recorded: Iterable[tuple[Record, Claim]]) -> tuple[Record, Claim] | None:
    """Return the recorded result that counts for a claim: valid, measured, at the settings and on the images that it is
    about, with all that it needs, and then by `Record.rank`; it is never chosen by its outcome.
    """
    valid = (pair for pair in recorded if pair[0].counts)
    return min(valid, key=lambda pair: (*_lacks(pair[1]), pair[0].rank), default=None)


def _lacks(claim: Claim) -> tuple[bool, ...]:
    """Return what a measurement lacks of what its claim is about and needs, the gravest first."""
    return claim.measured is None, not claim.has_its_settings, bool(claim.stand_in), bool(claim.obstacles)


def rows(
    runs: Iterable[Run],
    records: Iterable[Record],
    waits: Mapping[str, str] = MappingProxyType({}),
    judged: Callable[[Record], Mapping[str, Claim]] = lambda record: {},
) -> list[Row]:
    """Return the claims of executed chapters, in their order; then those that only a record has.

    `waits` says by claim which planned run it waits for. `judged` returns the claims of a record, judged by today's
    rules for the parameters of its run; a claim that is not among them is judged by the rules of the live run.
    """
    records = list(records)
    found = []
    for run in runs:
        live = {claim.id: claim for claim in run.claims}
        recorded: dict[str, list[tuple[Record, Claim]]] = {}
        for record in records:
            if record.chapter == run.record["chapter"]:
                by_rules = judged(record)
                for claim in record.claims:
                    # A measurement is judged by today's rules, whatever they were when it was recorded.
                    by_live = claim.judged_by(live[claim.id]) if claim.id in live else claim
                    recorded.setdefault(claim.id, []).append((record, by_rules.get(claim.id, by_live)))
        for id in dict.fromkeys([*live, *recorded]):
            row = Row(run, live.get(id), recorded.get(id, []))
            is_open = row.live and row.standing[1].verdict not in (HOLDS, FAILS)
            found.append(replace(row, waits=waits.get(id, "")) if is_open else row)
    return found


def require_cited(rows: Iterable[Row], keys: Iterable[str]) -> None:
    """Raise BadInput, naming them all, if claims are of papers that the bibliography does not have."""
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

    Only claims that chapters still make are counted; records that differ do not count.
    """
    rows = [row for row in rows if row.live]
    papers = sorted({row.live.paper for row in rows}, key=lambda paper: (not paper, paper))
    return [_total(paper, [row for row in rows if row.live.paper == paper]) for paper in papers]


def _total(paper: str, rows: Sequence[Row]) -> Total:
    live = Counter(counted(row.live) for row in rows)
    recorded = Counter(counted(row.best[1]) for row in rows if row.best)
    return Total(paper, len(rows), {v: live[v] for v in VERDICTS}, {v: recorded[v] for v in VERDICTS})


def counted(claim: Claim) -> str:
    """Return the verdict that the totals count; one on a stand-in is not one about the paper's images."""
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


NO_PAPERS: Mapping[str, Paper] = MappingProxyType({})
COLUMNS = ("Claim", "Chapter", "Source", "Reported", "Measured", "Verdict")


def anchor(id: str) -> str:
    """Return the name of a claim's row on the scorecard's page."""
    return f"scorecard-{id}"


def markdown(rows: Sequence[Row], papers: Mapping[str, Paper] = NO_PAPERS) -> str:
    """Return what the scorecard's page includes: a conclusion for each paper, the totals, and all claims."""
    if not rows:
        return "The chapters claim nothing yet.\n"
    found = totals(rows)
    conclusions = "\n".join(_conclusion(total.paper, rows, papers) for total in found)
    parts = ["## In short", conclusions, "## Totals", _totals_table(found, papers)]
    return "\n\n".join([*parts, "## All claims", _table(rows, papers)]) + "\n"


def conclusion(rows: Sequence[Row]) -> str:
    """Return in one sentence how many of the decided claims hold, and how many are open."""
    verdicts = [counted(row.standing[1]) for row in rows]
    holds, fails, undecided, stand_in = (verdicts.count(verdict) for verdict in VERDICTS)
    decided = holds + fails
    if decided == 0:
        words = [f"of {len(rows)} claims none is decided"]
    elif decided == 1:
        words = [f"the one decided claim {HOLDS if holds else FAILS}"]
    elif holds and fails:
        words = [f"{holds} of {decided} decided claims hold"]
    else:
        words = [f"all {decided} decided claims {'hold' if holds else 'fail'}"]
    if stand_in:
        words.append(f"decided on a stand-in only: {stand_in}")
    if undecided:
        waiting = sum(bool(row.waits) for row in rows if counted(row.standing[1]) == UNDECIDED)
        some = "all" if waiting == undecided else waiting
        words.append(f"open: {undecided}" + (f", planned runs would decide {some}" if waiting else ""))
    return "; ".join(words) + "."


def _conclusion(paper: str, rows: Iterable[Row], papers: Mapping[str, Paper]) -> str:
    own = [row for row in rows if row.live and row.live.paper == paper]
    url = papers[paper].url if paper in papers else ""
    out = f" ([{papers[paper].at}]({url}))" if url else ""
    name = f"{{cite:t}}`{paper}`{out}" if paper else f"**{OWN.capitalize()}**"
    return f"- {name}: {conclusion(own)}"


def _totals_table(found: Iterable[Total], papers: Mapping[str, Paper]) -> str:
    """Return the totals with a head of two rows, so that the columns are narrow."""
    words = [f"{SYMBOLS.get(verdict, '')} {_short(verdict)}".strip() for verdict in VERDICTS]
    rows = [
        pages.row(
            map(str, (total.claims, *total.recorded.values(), *total.live.values())),
            head=_link(_named(total.paper, papers), papers, total.paper),
        )
        for total in found
    ]
    return pages.table(
        {"Paper": (), "Claims": (), "Recorded": words, "This build": words},
        rows,
        caption="Claims by paper and verdict. Of several records of a claim, one counts.",
        css="nadkit-totals",
    )


def _short(verdict: str) -> str:
    return {UNDECIDED: "open"}.get(verdict, verdict)


def _table(rows: Sequence[Row], papers: Mapping[str, Paper]) -> str:
    gone = sum(row.live is None for row in rows)
    left_out = f" In a record only, and not in the totals: {gone}." if gone else ""
    found = pages.table(
        COLUMNS,
        (_as_row(row, papers, place) for place, row in enumerate(rows)),
        caption=f"Every claim: where it is tested, what was reported and measured, and the verdict.{left_out}",
        css="nadkit-claims nadkit-scorecard",
        region="all claims",
    )
    return f'<div class="nadkit-filtered">\n{_form(rows, papers)}\n{found}\n</div>'


def _form(rows: Sequence[Row], papers: Mapping[str, Paper]) -> str:
    """Return the fields that filter the rows: hidden until a script can."""
    choices = {
        "paper": dict.fromkeys(_named(row.claim.paper, papers) for row in rows),
        "verdict": [verdict for verdict in (*VERDICTS, GONE) if any(_verdict(row) == verdict for row in rows)],
        "chapter": dict.fromkeys(row.chapter for row in rows),
    }
    fields = ['<label>search <input type="search" name="words"></label>']
    for name, values in choices.items():
        options = "".join(f'<option value="{_escape(v)}">{_escape(_short(v))}</option>' for v in values)
        fields.append(f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>')
    fields.append('<button type="reset">show all</button> <output aria-live="polite"></output>')
    return "\n".join(['<form class="nadkit-filter" hidden>', *fields, "</form>"])


def _as_row(row: Row, papers: Mapping[str, Paper], place: int) -> str:
    claim, (record, standing), verdict = row.claim, row.standing, _verdict(row)
    head = (
        f'<a href="{_escape(f"../{row.page}")}">{_escape(standing.statement)}</a><br>'
        f'<a class="nadkit-id" href="#{anchor(claim.id)}"><code>{_escape(claim.id)}</code></a>{_details(row)}'
    )
    word = f"<em>{GONE}</em>" if verdict == GONE else word_as_html(standing)
    where = "" if verdict == GONE else f"<br><small>{'recorded' if record else 'this build'}</small>"
    facts = {"paper": _named(claim.paper, papers), "verdict": verdict, "chapter": row.chapter}
    cells = [
        (f'<a href="../{_escape(row.chapter)}.html">{_escape(_last(row.chapter))}</a>', {"data-order": place}),
        _link(claim.source, papers, claim.paper),
        _escape(standing.report),
        (_escape(standing.measurement), {"data-order": "" if standing.measured is None else standing.measured}),
        (f"{word}{where}", {"data-order": [*VERDICTS, GONE].index(verdict)}),
    ]
    return pages.row(
        cells,
        head=(head, {"data-search": " ".join(dict.fromkeys([standing.statement, claim.statement, claim.id]))}),
        id=anchor(claim.id),
        **{f"data-{name}": value for name, value in facts.items()},
    )


def _last(chapter: str) -> str:
    return chapter.rpartition("/")[2]


def _verdict(row: Row) -> str:
    return counted(row.standing[1]) if row.live else GONE


def _details(row: Row) -> str:
    """Return what is behind a click: the bound, and every measurement with where it comes from."""
    profile = row.run.record.get("profile")
    runs = [f"<small>this build, profile {_escape(str(profile))}</small><br>{_measured(row.live)}"] if row.live else []
    runs += [f"{_where(record)}<br>{_measured(claim)}" for record, claim in row.recorded]
    summary = f"<summary>bound and runs ({len(runs)})</summary>"
    items = [f"holds if {_escape(row.claim.holds_if)}", *runs, *filter(None, [_escape(row.waits)])]
    return f"<details>{summary}<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul></details>"


def _named(paper: str, papers: Mapping[str, Paper]) -> str:
    if not paper:
        return OWN
    return papers[paper].name if paper in papers else paper


def _link(words: str, papers: Mapping[str, Paper], paper: str) -> str:
    """Return words that lead to a paper, if its address is known."""
    if paper in papers and papers[paper].url:
        return f'<a href="{_escape(papers[paper].url)}">{_escape(words)}</a>'
    return _escape(words)


def link(notebook: Mapping[str, Any], start: str, papers: Mapping[str, Paper] = NO_PAPERS) -> None:
    """Add links from an executed notebook's claims to the scorecard and to papers.

    `start` is the path from the notebook's page to `html/book/`.
    """
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    for output in (output for output in outputs if MIME in output.get("metadata", {})):
        page = "".join(output["data"]["text/html"])
        for claim in Claims.from_json(output["metadata"][MIME]["claims"]):
            before = re.search(rf'<tr id="claim-{re.escape(claim.id)}">.*?</tr>', page, flags=re.DOTALL)[0]
            name, source = f"<code>{claim.id}</code>", html.escape(claim.source)
            to = f'<a href="{start}practice/scorecard.html#{anchor(claim.id)}">{name}</a>'
            after = before.replace(name, to, 1)
            linked = _link(claim.source, papers, claim.paper)
            after = after.replace(f"<small>{source}</small>", f"<small>{linked}</small>", 1)
            page = page.replace(before, after, 1)
        output["data"]["text/html"] = page


def lines(rows: Iterable[Row], start: str) -> str:
    """Return a list of claims with the verdict that stands; `start` is the path to `html/book/`."""
    return "\n".join(['<ul class="nadkit-verdicts">', *(_line(row, start) for row in rows), "</ul>"])


def _line(row: Row, start: str) -> str:
    record, claim = row.standing
    reported = "no number reported" if claim.reported is None else f"reported {claim.report}"
    facts = [f"holds if {claim.holds_if}", f"{reported}, measured {claim.measurement}"]
    facts.append(record.words if record else "this build")
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
