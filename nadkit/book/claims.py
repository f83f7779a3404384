"""Claims: what a paper reports, what a run measured, and the verdict the numbers give.

A chapter shows its claims with one call, `show([Claim(...), ...])`; those that share a source, a paper or
conditions come from one maker, `about(...)`. They are stored in the executed notebook next to the table,
and `read` gets them back.
"""

import contextlib
import html
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from nadkit.book import pages
from nadkit.book.chapters import BadInput, find_title, read_notebook
from nadkit.names import with_error

if TYPE_CHECKING:  # statistics take a second to import, and reading claims needs none
    from nadkit.stats import Measured

# The key of the claims in the metadata of the output that shows them.
MIME = "application/vnd.nadkit.claims+json"
HOLDS, FAILS, UNDECIDED = "holds", "fails", "not decidable at this scale"
# Readers see this word if a claim fails that sets a band around a number, or bounds a distance from it: the band is
# ours, and may be too narrow even if the paper is right.
OUTSIDE = "outside our band"
# A symbol and a word each, so that colour is never the only cue.
SYMBOLS = {HOLDS: "✓", FAILS: "✗", OUTSIDE: "≠", UNDECIDED: "?"}
CSS_CLASSES = {HOLDS: "holds", FAILS: "fails", OUTSIDE: "outside", UNDECIDED: "undecided"}

# Folders of images that stand in for a data set: name of the folder -> its name for readers, and the data set.
STAND_INS = {"cifar10-jpeg": ("a JPEG copy of CIFAR-10", "cifar10")}
A_FOLDER = "a folder of images"

# An amount or a setting that a recorded run did not state.
UNKNOWN = "unknown"
OURS = "our measurement"

Scalar = str | float | bool | None
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_ONE_SIDED = re.compile(rf"(>=|<=|>|<) *{_NUMBER}")
_BETWEEN = re.compile(rf"between {_NUMBER} and {_NUMBER}")
_WITHIN = re.compile(rf"within {_NUMBER}")
_BANDS = ("between", "within")


@dataclass(frozen=True)
class Test:
    """Whether a number lies on the right side of another: a `sign` of `_COMPARE` and that other number."""

    sign: str
    bound: float

    def __call__(self, number: float) -> bool:
        return _COMPARE[self.sign](number, self.bound)

    def room(self, value: float, error: float) -> float:
        """Return how far all of value ± error lies on the right side, negative where some of it does not."""
        return value - error - self.bound if self.sign in (">", ">=") else self.bound - value - error


def parse_bound(text: str) -> list[Test]:
    """Return the one-sided tests of a bound: ">= 0.95", "between 0.9 and 1.1", or "within 0.05" of zero.

    Raises:
        ValueError: `text` is no bound.
    """
    if found := _ONE_SIDED.fullmatch(text.strip()):
        return [Test(found[1], float(found[2]))]
    ends = ()
    if found := _BETWEEN.fullmatch(text.strip()):
        ends = float(found[1]), float(found[2])
    elif found := _WITHIN.fullmatch(text.strip()):
        ends = -float(found[1]), float(found[1])
    if ends and ends[0] <= ends[1]:
        return [Test(">=", ends[0]), Test("<=", ends[1])]
    raise ValueError(
        f"holds_if: expected '>= 0.95', '> 0', '<= 3', '< 1', 'between 0.9 and 1.1' (smaller number first) "
        f"or 'within 0.05' (of zero: a difference), got {text!r}"
    )


def within(value: float, error: float, bound: str) -> int:
    """Return 0 if all of value ± error is within a bound, 1 if none of it is, and 2 if it reaches across.

    Raises:
        ValueError: `bound` is not a bound.
    """
    ends = (value - error, value + error)
    passed = [[test(end) for end in ends] for test in parse_bound(bound)]
    if all(map(all, passed)):
        return 0
    # Each test is one-sided: where both ends miss it, so does everything between them.
    return 2 if all(map(any, passed)) else 1


@dataclass(frozen=True)
class Claim:
    """One statement of a paper beside one measurement of ours.

    `measured` is a number, or a `Measured` with its `error` (the half-width of its uncertainty), or None if nothing
    could be measured; a number that is not finite counts as not measured. `needs` maps what the statement needs to
    (amount of this run, amount required). `same` maps the settings it is about to (this run's, the paper's); the two
    must be equal, unless one is a stand-in for the other (`STAND_INS`). `paper` is the citation key, in the book's
    bibliography, of the paper whose claim it is; "" where it is our own.

    Raises:
        ValueError: no verdict could be computed from these.
    """

    id: str
    statement: str
    measured: "Measured | float | None"
    holds_if: str
    source: str = OURS
    reported: str | float | None = None
    error: float = 0.0
    needs: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    same: Mapping[str, tuple[Scalar, Scalar]] = field(default_factory=dict, hash=False)
    paper: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(?:[-.][a-z0-9]+)*", self.id):
            raise ValueError(f"id: expected lower-case words joined by '-', got {self.id!r}")
        if not isinstance(self.paper, str):
            raise ValueError(f"claim {self.id}: paper: expected a citation key or '', got {self.paper!r}")
        parse_bound(self.holds_if)
        # The numbers come from numpy and torch as often as from Python: keep plain floats.
        if not isinstance(self.reported, str | None):
            self._set("reported", _finite(f"claim {self.id}: reported", self.reported))
        self._take_measurement()
        self._set("error", _finite(f"claim {self.id}: error", self.error))
        if self.error < 0:
            raise ValueError(f"claim {self.id}: error: expected at least 0, got {self.error}")
        self._set("needs", self._pairs("needs", _amount))
        self._set("same", self._pairs("same", _scalar))

    def _take_measurement(self) -> None:
        if hasattr(found := self.measured, "error"):  # a Measured
            if self.error:
                raise ValueError(f"claim {self.id}: error: expected none beside a Measured, which has its own")
            self._set("measured", found.value if math.isfinite(found.error) else None)
            self._set("error", found.error if math.isfinite(found.value + found.error) else 0.0)
        if self.measured is not None:
            value = _number(f"claim {self.id}: measured", self.measured)
            self._set("measured", value if math.isfinite(value) else None)

    def _pairs(self, field: str, convert: Callable[[str, object], Scalar]) -> dict[str, tuple[Scalar, Scalar]]:
        pairs = {}
        for name, pair in getattr(self, field).items():
            what = f"claim {self.id}: {field} {name}"
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"{what}: expected a pair (this run's, the paper's), got {pair!r}")
            pairs[name] = (convert(what, pair[0]), convert(what, pair[1]))
        return pairs

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def verdict(self) -> str:
        """HOLDS if the whole interval measured ± error is within the bound, FAILS if none of it is.

        If measured on a stand-in, the verdict says so, "holds, on a JPEG copy of CIFAR-10", and is neither of the two.
        """
        found = self._outcome
        return f"{found}, on {self.stand_in}" if self.stand_in and found != UNDECIDED else found

    @property
    def word(self) -> str:
        """The verdict without what it was measured on, as people read it: OUTSIDE for a band that is missed."""
        return OUTSIDE if self._outcome == FAILS and self.holds_if.strip().startswith(_BANDS) else self._outcome

    @property
    def verdict_in_words(self) -> str:
        """The verdict as people read it, with its symbol."""
        where = f", on {self.stand_in}" if self.stand_in and self.word != UNDECIDED else ""
        return f"{SYMBOLS[self.word]} {self.word}{where}"

    @property
    def stand_in(self) -> str:
        """The stand-in for the images that it is about, if it was measured on one; else empty."""
        return next((ours for ours, theirs in self.same.values() if (ours, theirs) in STAND_INS.values()), "")

    @property
    def has_its_settings(self) -> bool:
        """Whether it was measured at the settings that it is about, or on a stand-in."""
        return all(a == b or (a, b) in STAND_INS.values() for a, b in self.same.values())

    @property
    def _outcome(self) -> str:
        if self.measured is None or self.obstacles:
            return UNDECIDED
        return (HOLDS, FAILS, UNDECIDED)[within(self.measured, self.error, self.holds_if)]

    def judged_by(self, today: Self) -> Self:
        """Return this measurement, judged by the rules of the same claim as it is made today.

        The bound, what the claim needs and the settings it is about are today's; the amounts and settings measured are
        the run's. An amount or setting that the run did not state is unknown, and leaves the claim undecided.
        """

        def ruled(own: Mapping, rules: Mapping) -> dict:
            return {name: (own.get(name, (UNKNOWN, None))[0], wanted) for name, (_, wanted) in rules.items()}

        needs, same = ruled(self.needs, today.needs), ruled(self.same, today.same)
        return replace(self, holds_if=today.holds_if, paper=today.paper, needs=needs, same=same)

    @property
    def why_undecided(self) -> str:
        """The reason a verdict cannot be given here; empty where it can."""
        if self.verdict != UNDECIDED:
            return ""
        missing = ["not measured"] if self.measured is None else []
        if obstacles := missing + self.obstacles:
            return "; ".join(obstacles)
        return "the uncertainty reaches across the bound"

    @property
    def obstacles(self) -> list[str]:
        """What keeps any measurement from deciding the claim: other settings, and too little of what it needs.

        If nothing was measured, unknown settings are not counted.
        """
        told = self.measured is not None
        differ = [(name, a, b) for name, (a, b) in self.same.items() if a != b and (a, b) not in STAND_INS.values()]
        other = [f"{name}: {a}, the claim is about {b}" for name, a, b in differ if a != UNKNOWN or told]
        needs = [(name, a, b) for name, (a, b) in self.needs.items()]
        unknown = [f"{name}: not in this record, {b:g} needed" for name, a, b in needs if a == UNKNOWN and told]
        few = [f"{name}: {a:g} of the {b:g} needed" for name, a, b in needs if a != UNKNOWN and a < b]
        return other + unknown + few

    @property
    def measurement(self) -> str:
        """The measured number with its uncertainty, for people."""
        if self.measured is None:
            return "-"
        return with_error(self.measured, self.error)

    @property
    def report(self) -> str:
        """What was reported, a number or words, for people."""
        match self.reported:
            case None:
                return "-"
            case float(number):
                return f"{number:.6g}"
        return self.reported


def _scalar(what: str, value: object) -> Scalar:
    # numpy's and torch's scalars become Python's.
    with contextlib.suppress(AttributeError, RuntimeError, ValueError):
        value = value.item()
    if isinstance(value, str) and value.startswith("folder:"):  # readers need no path
        return STAND_INS.get(PurePath(value.removeprefix("folder:")).name, (A_FOLDER,))[0]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{what}: expected a string, a finite number, True, False or None, got {value!r}")


def _amount(what: str, number: object) -> float | str:
    return UNKNOWN if number == UNKNOWN else _finite(what, number)


def _finite(what: str, number: object) -> float:
    if math.isfinite(value := _number(what, number)):
        return value
    raise ValueError(f"{what}: expected a finite number, got {number!r}")


def _number(what: str, number: object) -> float:
    with contextlib.suppress(TypeError, ValueError):
        return float(number)
    raise ValueError(f"{what}: expected a finite number, got {number!r}")


def about(
    *,
    of: str = "",
    source: str = OURS,
    reported: str | float | None = None,
    needs: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    same: Mapping[str, tuple[Scalar, Scalar]] = MappingProxyType({}),
    paper: str = "",
    kind: Callable[..., Claim] = Claim,
) -> Callable[..., Claim]:
    """Return a maker of claims that share these fields.

    The maker takes the arguments of `kind`, by default `Claim`. A field given to it overrides the shared one; its
    `needs` and `same` are added to the shared ones. Every statement begins with `of`, such as "MLPs on MNIST".
    """
    begin = f"{of}: " if of else ""

    def claim(id: str, statement: str, measured: "Measured | float | None", holds_if: str, **own: object) -> Claim:
        shared = {"source": source, "reported": reported, "paper": paper}
        added = {"needs": {**needs, **own.pop("needs", {})}, "same": {**same, **own.pop("same", {})}}
        return kind(id, begin + statement, measured, holds_if, **shared | own | added)

    return claim


class Claims(Sequence[Claim]):
    """Claims with distinct ids, as a table for people and as data for programs.

    Raises:
        ValueError: two of them have the same id.
    """

    def __init__(self, claims: Iterable[Claim]) -> None:
        self._claims = tuple(claims)
        ids = [claim.id for claim in self._claims]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"two claims have the id {twice[0]!r}: every claim needs its own")

    @classmethod
    def from_json(cls, entries: Iterable[Mapping[str, Any]]) -> Self:
        """Return the claims from the plain data that `to_json` made.

        Verdicts are computed again from the numbers; stored ones are never trusted.

        Raises:
            AttributeError, TypeError, ValueError: these are not claims.
        """
        given = [{k: v for k, v in entry.items() if k not in ("verdict", "why_undecided")} for entry in entries]
        return cls(Claim(**fields) for fields in given)

    def __getitem__(self, index: int) -> Claim:
        return self._claims[index]

    def __len__(self) -> int:
        return len(self._claims)

    def __str__(self) -> str:
        return "\n".join(_as_text(claim) for claim in self)

    def to_json(self, *, verdicts: bool = True) -> list[dict[str, Any]]:
        """Return the claims as plain data, with their `verdicts` and why they are undecided, if wanted."""
        judged = [
            {"verdict": claim.verdict, "why_undecided": claim.why_undecided} if verdicts else {} for claim in self
        ]
        return [asdict(claim) | verdict for claim, verdict in zip(self, judged, strict=True)]

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        # The data for programs go to the output's metadata: as one more way to show the output,
        # Sphinx would warn that it cannot render it.
        store = {"version": 1, "claims": self.to_json()}
        return {"text/html": _as_html(self), "text/plain": str(self)}, {MIME: store}


def show(claims: Iterable[Claim]) -> None:
    """Display the claims in a notebook, and store them in it."""
    from IPython.display import display

    display(Claims(claims))


def _as_text(claim: Claim) -> str:
    lines = [
        f"{claim.verdict_in_words}: {claim.statement} [{claim.id}]",
        f"    {claim.source}; reported: {claim.report}; measured: {claim.measurement}; holds if {claim.holds_if}",
    ]
    return "\n".join(lines + ([f"    {claim.why_undecided}"] if claim.why_undecided else []))


Recorded = Mapping[str, tuple[str, Claim]]
"""For each claim, what the record that counts says: the record in a few words, and the claim."""


def _as_html(
    claims: Claims, notes: Mapping[str, str] = MappingProxyType({}), recorded: Recorded = MappingProxyType({})
) -> str:
    found = [recorded.get(claim.id) for claim in claims]
    head = ["Claim", "Reported", "This run", *(["Recorded"] if any(found) else [])]
    rows = (
        _as_row(claim, notes.get(claim.id, ""), pair, wide=any(found))
        for claim, pair in zip(claims, found, strict=True)
    )
    return pages.table(head, rows, caption="The claims, and what was measured", css="nadkit-claims")


def _as_row(claim: Claim, note: str, recorded: tuple[str, Claim] | None, *, wide: bool) -> str:
    escape = html.escape
    words, made = recorded or ("", None)
    statement = f"{escape(claim.statement)}<br><small>{escape(claim.source)}</small><br><code>{claim.id}</code>"
    if made and made.statement != claim.statement:
        statement += f"<br><small>Recorded: {escape(made.statement)}</small>"
    reported = f"{escape(claim.report)}<br><small>holds if {escape(claim.holds_if)}</small>"
    cells = {"claim": statement, "reported": reported, "run": measured_as_html(claim, note)}
    if wide:
        other = f"reported {escape(made.report)}; " if made and made.reported not in (None, claim.reported) else ""
        cells["recorded"] = f"{measured_as_html(made)}<br><small>{other}{escape(words)}</small>" if made else "-"
    named = ((cell, {"class": f"nadkit-{name}"}) for name, cell in cells.items())
    return pages.row(named, id=f"claim-{claim.id}")


def measured_as_html(claim: Claim, note: str = "") -> str:
    """Return the verdict on a claim, the measurement if there is one, and where undecided also why, and a note."""
    number = [] if claim.measured is None else [html.escape(claim.measurement)]
    reasons = filter(None, [claim.why_undecided, note]) if claim.why_undecided else []
    return "<br>".join([word_as_html(claim), *number, *(f"<small>{html.escape(reason)}</small>" for reason in reasons)])


def word_as_html(claim: Claim) -> str:
    """Return a verdict as a symbol and a word."""
    return f'<strong class="nadkit-{CSS_CLASSES[claim.word]}">{claim.verdict_in_words}</strong>'


def annotate(notebook: Mapping[str, Any], notes: Mapping[str, str], recorded: Recorded = MappingProxyType({})) -> None:
    """Put what was recorded beside the claims of an executed notebook, and notes beside the undecided ones."""
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        if store := output.get("metadata", {}).get(MIME):
            output["data"]["text/html"] = _as_html(Claims.from_json(store["claims"]), notes, recorded)


@dataclass(frozen=True)
class Run:
    """An executed notebook: where it is, what the runner recorded about it, its claims, and its title."""

    path: Path
    record: Mapping[str, Any]
    claims: Claims
    title: str


def read(path: str | Path, *, failed: bool = False) -> list[Run]:
    """Return the runs at `path`, an executed notebook or a folder of them, with their claims.

    In a folder, failed runs are left out unless `failed`.

    Raises:
        BadInput: there is nothing to read, a notebook is damaged, or `path` itself is a failed run
            and `failed` is not set.
    """
    path = Path(path)
    if path.is_file():
        run = _read_run(path)
        if run.record.get("status") == "failed" and not failed:
            raise BadInput(f"{path} is a failed run: its claims count only where you ask for them")
        return [run]
    if not path.is_dir():
        raise BadInput(f"{path}: expected an executed notebook or a folder of them, found nothing")
    files = [
        file
        for file in sorted(path.rglob("*.ipynb"))
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    left_out = set() if failed else {file for file in files if file.name.endswith(".failed.ipynb")}
    runs = [_read_run(file) for file in files if file not in left_out]
    found = [run for run in runs if failed or run.record.get("status") != "failed"]
    if not found:
        lost = len(left_out) + len(runs)
        said = f", and {lost} that failed" if lost else ""
        raise BadInput(f"{path}: no finished run below this folder{said}; 'nadkit run' makes one")
    return found


def _read_run(path: Path) -> Run:
    notebook = read_notebook(path)
    try:
        claims = Claims.from_json(entry for store in stores(notebook, MIME) for entry in store["claims"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: the claims stored in it cannot be read: {error}") from error
    return Run(path, notebook.get("metadata", {}).get("nadkit", {}), claims, find_title(notebook, path.stem))


def stores(notebook: Mapping[str, Any], key: str) -> list[Any]:
    """Return what the outputs of an executed notebook store under a key of their metadata, in order."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [output["metadata"][key] for output in outputs if key in output.get("metadata", {})]
