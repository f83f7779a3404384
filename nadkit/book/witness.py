"""Witnesses: what a chapter gives at its smallest size, kept to tell whether other code still gives the same.

A *record* of a big run must outlive refactoring, yet nobody repeats the run after every change. So the same commit also
runs the chapter at its smoke size. As long as today's code gives the numbers of this witness, the record is valid.

Rounding differs between processors, versions and numbers of threads. The witness is therefore made several times, in
the `ENVIRONMENTS` below, and keeps for every series of numbers the largest difference that this made. It is also made
twice in the same environment: numbers that repeat there must also repeat for today's code where versions and processor
are the same, however much rounding moves them.
"""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from nadkit.book import claims, prints
from nadkit.book.chapters import QUICK, BadInput, Chapter, convert, find_profiles, load, profile_values, read_profile
from nadkit.book.children import Child
from nadkit.book.claims import Claim
from nadkit.book.collect import stored
from nadkit.book.results import ANSWERS, UNSEEN
from nadkit.names import did_you_mean

SMOKE, WITNESS = "smoke", "witness"
BASE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", UNSEEN: "1"}
"""One thread with all instructions, no pictures, and no GPU unless the profile `witness` asks for one."""
ENVIRONMENTS = {
    "two threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "no vectors": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}
"""Other ways to round."""
SAFETY = 3.0
"""How many times the difference between the environments is accepted where versions or the processor differ."""
FLOOR = 2e-5
"""The smallest tolerance, relative: numbers are stored with six digits."""
ORDER = 1e-12
"""The relative difference that the order of a sum in float64 makes; it does not mean another experiment."""
ROBUST = 0.02
"""Series that rounding alone moves by more than this say nothing about the code: they are not compared."""
JUMPS = 0.1
"""The share of the series that may leave their tolerances, but not `ROBUST`, where versions or the processor differ.

Rounding may put one image into another class or swap two ranks. A number that counts images or ranks then jumps, though
in the other environments it may not have moved at all.
"""

Values = Sequence[float | str | bool | None]


class WitnessFailed(RuntimeError):
    """A chapter cannot be run at the size of the witness."""


@dataclass(frozen=True)
class Series:
    """Numbers or words that belong together: a column of a table, a number kept, a claim's measurement and error.

    `spread` is the largest difference that another way to round made; None if it changed words or gaps. `repeats` says
    that another run with the same way to round gave the same numbers; measured times, for example, do not repeat.
    """

    values: Values
    spread: float | None = 0.0
    repeats: bool = False

    @property
    def robust(self) -> bool:
        """Whether rounding hardly changes it, so that a difference means other code."""
        return self.spread is not None and self.spread <= ROBUST

    @property
    def tolerance(self) -> float:
        """The difference that another processor or version may make."""
        return max(FLOOR, SAFETY * (self.spread or 0.0))


@dataclass(frozen=True)
class Witness:
    """What a chapter gave at the size of `parameters`, and on what: versions, kind of processor, data at hand."""

    parameters: Mapping[str, Any]
    versions: Mapping[str, str]
    processor: str
    data: Sequence[Mapping[str, str | None]]
    at_hand: Sequence[str]
    series: Mapping[str, Series] = field(repr=False)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the witness that `to_json` made plain; KeyError, TypeError or AttributeError if it is none."""
        series = {name: Series(**entry) for name, entry in content["series"].items()}
        return cls(**{**content, "series": series})

    def to_json(self) -> dict[str, Any]:
        """Return the witness as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """How one run at a witness's size compares to it: the series that differ, and the largest difference of the others.

    `exact` says that not even the last digit may differ: the same versions on the same kind of processor. `of` is the
    number of series of numbers in the witness that tell, `compared` of those that the other run has as well, `jumped`
    of those that left their tolerances as rounding may let a few (`JUMPS`).
    """

    exact: bool
    of: int
    compared: int
    jumped: int
    differing: Mapping[str, float]
    largest: float

    @property
    def agrees(self) -> bool:
        """Whether numbers were compared, and all agree."""
        return self.compared > 0 and not self.differing

    @property
    def words(self) -> str:
        """The comparison, for people."""
        if self.differing:
            worst = sorted(self.differing.items(), key=lambda pair: -pair[1])[:3]
            named = ", ".join(f"{name} ({_percent(by)})" for name, by in worst)
            return f"{len(self.differing)} of {self.compared} series differ: {named}"
        if not self.compared:
            return f"none of the {self.of} series of numbers in its witness is computed any more"
        how = "to the last digit" if self.largest <= ORDER else f"to {self.largest:.0e}, relative"
        jumps = (
            f", {self.jumped} of them by more than rounding did in the witness's environments" if self.jumped else ""
        )
        rest = "" if self.compared == self.of else f" ({self.of - self.compared} are no longer computed)"
        return f"all {self.compared} series of numbers agree {how}{jumps}{rest}"


def _percent(difference: float) -> str:
    return "other words or another length" if math.isinf(difference) else f"by {100 * difference:.3g} %"


def compare(witness: Witness, other: Witness) -> Comparison:
    """Compare two runs of one size in their common series: robust ones and, in exact comparisons, those that repeat.

    The difference of two series is the largest one of their numbers, relative to their largest number. On the same
    versions and kind of processor it must be zero, up to the order of the sums in a claim's measurement (`ORDER`),
    which alone is kept with all its digits; else it must lie within the series' tolerance, but for a few that jump
    (`JUMPS`). A series that only one of the two has means more or fewer results, not different ones.
    """
    exact = (witness.versions, witness.processor) == (other.versions, other.processor)
    telling = {name: series for name, series in witness.series.items() if series.robust or (exact and series.repeats)}
    both = {name: series for name, series in telling.items() if name in other.series}
    found = {name: distance(series.values, other.series[name].values) for name, series in both.items()}
    differing = {name: by for name, by in found.items() if by > (ORDER if exact else both[name].tolerance)}
    of, compared = (sum(any(map(_is_number, s.values)) for s in some.values()) for some in (telling, both))
    jumped = 0
    if not exact and len(differing) <= JUMPS * compared and max(differing.values(), default=0.0) <= ROBUST:
        jumped, differing = len(differing), {}
    largest = max((by for name, by in found.items() if name not in differing), default=0.0)
    return Comparison(exact, of, compared, jumped, differing, largest)


def distance(one: Values, other: Values) -> float:
    """Return max |a - b| over the largest |a| or |b| of two series; infinite where words, gaps or lengths differ."""
    if len(one) != len(other):
        return math.inf
    numbers = [(a, b) for a, b in zip(one, other, strict=True) if _is_number(a) and _is_number(b)]
    others = [(a, b) for a, b in zip(one, other, strict=True) if not (_is_number(a) and _is_number(b))]
    if any(a != b for a, b in others):
        return math.inf
    scale = max((abs(number) for pair in numbers for number in pair), default=0.0)
    return max(abs(a - b) for a, b in numbers) / scale if scale else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- making one ----------------------------------------------------------------------------------


def parameters(chapter: Chapter, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the size of a chapter's witness: profile `smoke`, then profile `witness`, then what is `given`.

    Given parameters that the chapter does not have are left out.

    Raises:
        BadInput: a value is no longer possible.
    """
    profiles = find_profiles(chapter.root)
    found = profile_values(chapter, SMOKE if SMOKE in profiles else QUICK)
    if WITNESS in profiles:
        found |= read_profile(chapter.root, WITNESS).get(chapter.name, {})
    found |= {name: value for name, value in (given or {}).items() if name in chapter.parameters}
    return convert(chapter, found)


def make(
    chapter: Chapter,
    say: Callable[[str], None],
    given: Mapping[str, Any] | None = None,
    library: Path | None = None,
    size: Mapping[str, Any] | None = None,
) -> Witness:
    """Run a chapter at its smallest size in every environment and return its witness.

    `size` is the size in newer code, which may have parameters that this code lacks. `given` are parameters to run it
    with, such as those that are constants in newer code. `library` is the folder of another nadkit than the one that
    runs.

    Raises:
        BadInput: the chapter does not have such a parameter.
        WitnessFailed: it does not run.
    """
    if unknown := next((name for name in given or {} if name not in chapter.parameters), None):
        raise BadInput(f"{chapter.name}: {unknown}: no such parameter; {did_you_mean(unknown, chapter.parameters)}")
    values = parameters(chapter, {**(size or {}), **(given or {})})
    say(f"{chapter.name}: making the witness, {len(ENVIRONMENTS) + 2} runs at smoke size")
    first, again = (observe(chapter, values, library=library) for _ in range(2))
    others = [observe(chapter, values, environment, library).series for environment in ENVIRONMENTS.values()]
    series = {
        name: Series(one.values, _spread(name, one, others), _repeats(one, again.series.get(name)))
        for name, one in first.series.items()
    }
    return Witness(**{**asdict(first), "series": series})


def _spread(name: str, one: Series, others: Sequence[Mapping[str, Series]]) -> float | None:
    found = max(distance(one.values, other[name].values) if name in other else math.inf for other in others)
    return float(f"{found:.2g}") if math.isfinite(found) else None


def _repeats(one: Series, again: Series | None) -> bool:
    return again is not None and any(map(_is_number, one.values)) and distance(one.values, again.values) == 0


def make_at(
    commit: str,
    root: Path,
    name: str,
    say: Callable[[str], None],
    given: Mapping[str, Any] | None = None,
    size: Mapping[str, Any] | None = None,
) -> Witness:
    """Return the witness of a chapter as it was at a commit, in a git worktree that is removed afterwards.

    Raises:
        BadInput: there is no such commit, or it did not have the chapter.
        WitnessFailed: it does not run.
    """
    with _worktree(commit, root) as tree:
        return make(load(tree, name), say, given, library=tree, size=size)


@contextmanager
def _worktree(commit: str, root: Path) -> Iterator[Path]:
    git = ["git", "-C", str(root)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "book"
        inside = subprocess.run([*git, "rev-parse", "--show-prefix"], capture_output=True, text=True).stdout.strip()
        added = subprocess.run(
            [*git, "worktree", "add", "--quiet", "--detach", str(tree), commit], capture_output=True, text=True
        )
        if added.returncode:
            raise BadInput(f"commit {commit} cannot be checked out: {added.stderr.strip()}")
        try:
            yield tree / inside
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], capture_output=True)


def observe(
    chapter: Chapter,
    values: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    library: Path | None = None,
) -> Witness:
    """Run a chapter once, in a process of its own, and return all that it stored; nothing is said about rounding.

    Raises:
        WitnessFailed: it does not run.
    """
    ways = {name for ways in ENVIRONMENTS.values() for name in ways}
    usual = {name: value for name, value in os.environ.items() if name not in ways}
    variables = usual | BASE | dict(environment or {})
    if values.get("device", "auto").startswith("cuda"):
        variables.pop("CUDA_VISIBLE_DEVICES")
    if library:
        paths = [str(library), os.environ.get("PYTHONPATH")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "parameters.json", Path(folder) / "witness.ipynb"
        given.write_text(json.dumps(dict(values)))
        options = ["--params", str(given), "--out", str(out), "--root", str(chapter.root)]
        child = Child("run", chapter.name, *options, folder=library, environment=variables, silent=True)
        if error := child.answer().get("error"):
            lines = [line for line in error.splitlines() if line.strip()]
            raise WitnessFailed(f"{chapter.name} does not run at the size of the witness: {' '.join(lines[:2])}")
        return seen(out, values)


def seen(notebook: Path, values: Mapping[str, Any]) -> Witness:
    """Return what an executed notebook stored, as a witness that says nothing about rounding.

    Raises:
        BadInput: the notebook is damaged.
    """
    kept, (run,) = stored(notebook), claims.read(notebook)
    series = {f"number {name}": [value] for name, value in kept.numbers.items()}
    # Answers only restate numbers that are compared themselves, and another question does not make another experiment.
    for name, table in ((name, table) for name, table in kept.tables.items() if name != ANSWERS):
        columns = zip(*table["rows"], strict=True) if table["rows"] else [[] for _ in table["columns"]]
        series |= {f"table {name}, {column}": list(c) for column, c in zip(table["columns"], columns, strict=True)}
    series |= {f"claim {claim.id}": _measurement(claim) for claim in run.claims}
    return Witness(
        parameters=dict(values),
        versions=prints.computing_versions(),
        processor=prints.processor(),
        data=kept.data,
        at_hand=sorted({name for folder in prints.published_at_hand() for name, _ in folder}),
        series={name: Series(found) for name, found in series.items()},
    )


def _measurement(claim: Claim) -> Values:
    if claim.measured is None:  # then its error says nothing
        return [None]
    return [float(f"{value:.6g}") for value in (claim.measured, claim.error)]
