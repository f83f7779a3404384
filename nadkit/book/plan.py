"""The plan of records: the runs wanted, `book/recorded/plan.yml`, and working through it.

A row names a run, for people and by chapter, profile and parameters, and says what it costs. Which claims it decides is
not written down: it is computed from the claims (`nadkit.book.forecast`). A claim that no record decides yet
*waits for* the first row that would.
"""

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import joblib

from nadkit.book import forecast, records, scorecard
from nadkit.book.chapters import (
    BadInput,
    Chapter,
    convert,
    find_chapters,
    load,
    read_profile,
    read_yaml,
)
from nadkit.book.children import Child
from nadkit.book.claims import FAILS, HOLDS, Claim
from nadkit.book.forecast import Expected
from nadkit.book.pages import duration
from nadkit.book.prints import commit, why_no_commit
from nadkit.book.records import DIFFERS, Record
from nadkit.names import did_you_mean, hint

PLAN = "book/recorded/plan.yml"
CPU, GPU = DEVICES = ("cpu", "gpu")
MEASURED, ESTIMATED = "measured", "estimated"
NEEDED = ("name", "chapter", "profile", "device")
MORE = (MEASURED, ESTIMATED, "parameters", "leaves")
TO_RUN, BEGUN, OTHER, LACKING = "to run", "begun", "of other parameters", "without later claims"
STOPPED = "stopped, for the time is over; the next call goes on from its checkpoints"
NICE = 10


@dataclass(frozen=True)
class Row:
    """A run wanted: its name for people, what it runs, and the minutes that it takes on a device.

    `values` are those of all parameters, `changed` those that differ from the profile. `leaves` are claims that its
    parameters would allow it to decide but its results will leave open.
    """

    name: str
    chapter: Chapter
    profile: str
    values: Mapping[str, Any]
    changed: Mapping[str, Any]
    device: str
    minutes: float
    how: str
    leaves: Sequence[str] = ()
    record: Record | None = None

    @cached_property
    def expected(self) -> list[Expected]:
        """The claims that the run will make."""
        return forecast.expected(self.chapter, self.values)

    @cached_property
    def decides(self) -> list[str]:
        """The claims that it will decide, unless its results leave them open."""
        return [claim.id for claim in self._hoped if not claim.stand_in]

    @property
    def on_a_stand_in(self) -> list[str]:
        """The claims that it will decide on a stand-in for their images, and so leave waiting."""
        return [claim.id for claim in self._hoped if claim.stand_in]

    @property
    def _hoped(self) -> list[Expected]:
        return [claim for claim in self.expected if not claim.obstacles and claim.id not in self.leaves]

    @property
    def file(self) -> str:
        """The name of the run's notebook below `runs`, and of its record, without suffix."""
        from nadkit.book.runner import file_name

        return f"{self.chapter.name}/{file_name(self.changed, self.profile)}"

    @property
    def state(self) -> str:
        """Whether there is a record and whether it holds, or whether the run was begun."""
        if self.record:
            known = self.record.parameters
            other = any(known[name] != value for name, value in self.values.items() if name in known)
            if other:
                return OTHER
            return LACKING if self._later else self.record.validity.state
        notebook = self.chapter.root / "runs" / f"{self.file}.ipynb"
        begun = notebook.exists() or notebook.with_name(f".{notebook.stem}.checkpoints").exists()
        return BEGUN if begun else TO_RUN

    @property
    def _later(self) -> set[str]:
        """The claims that the run will decide and its record does not have, for they were added or renamed since."""
        return {claim.id for claim in self._hoped} - {claim.id for claim in self.record.claims}

    @property
    def is_open(self) -> bool:
        """Whether it has to run: there is no record, it lacks claims, or today's code gives other numbers."""
        return self.state in (TO_RUN, BEGUN, OTHER, LACKING, DIFFERS)

    @property
    def cost(self) -> str:
        """What it takes, for people."""
        device = "GPU" if self.device == GPU else "two CPU cores"
        return f"{device}, about {duration(60 * self.minutes)}"


@dataclass(frozen=True)
class Plan:
    """The rows of a book's plan, the most informative first, and the claims that its records decide."""

    root: Path
    rows: Sequence[Row]
    decided: Mapping[str, str] = field(repr=False, default_factory=dict)
    """By claim, the verdict of the records."""

    def undecided(self, row: Row) -> list[str]:
        """Return the claims that a row decides and no record does."""
        return [claim for claim in row.decides if claim not in self.decided]

    def waits_for(self) -> dict[str, str]:
        """Return, for each claim that no record decides, the run it waits for: the next one that will decide it."""
        found: dict[str, str] = {}
        for row in self.todo(DEVICES):
            for claim in self.undecided(row):
                found.setdefault(claim, f"waits for the run “{row.name}” ({row.cost})")
        return found

    def todo(self, devices: Sequence[str]) -> list[Row]:
        """Return the rows to run, in order: those for the CPU as listed, those for the GPU by claims per minute."""
        left = [row for row in self.rows if row.is_open and row.device in devices]
        found = [row for row in left if row.device == CPU]
        left = [row for row in left if row.device == GPU]
        known = {*self.decided, *(claim for row in found for claim in row.decides)}
        while left:
            best = max(left, key=lambda row: len(set(row.decides) - known) / row.minutes)
            known |= {*best.decides}
            found.append(best)
            left.remove(best)
        return found

    def notes(self) -> dict[str, str]:
        """Return what a page says beside a claim that its own run leaves undecided."""
        return {claim: f"a recorded run: {verdict}" for claim, verdict in self.decided.items()} | self.waits_for()

    def facts(self, row: Row) -> dict[str, Any]:
        """Return what there is to say about a row, as plain data."""
        return {
            "run": row.name,
            "chapter": row.chapter.name,
            "record": row.file,
            "profile": row.profile,
            "parameters": dict(row.changed),
            "device": row.device,
            "minutes": row.minutes,
            "how": row.how,
            "state": row.state,
            "decides": row.decides,
            "undecided": self.undecided(row),
            "on_a_stand_in": row.on_a_stand_in,
        }


# ---- reading -------------------------------------------------------------------------------------


def read(root: Path) -> Plan:
    """Return the plan of the book at `root`; a book without a plan wants nothing.

    Raises:
        BadInput: a row names something that is not there, or a run twice; the message says which.
    """
    path = root / PLAN
    entries = (read_yaml(path) if path.exists() else None) or []
    if not isinstance(entries, list):
        raise BadInput(f"{path}: expected a list of runs, got {entries!r:.60}")
    rows: list[Row] = []
    for number, entry in enumerate(entries, start=1):
        try:
            row = _row(root, entry)
            _require_new(row, rows)
        except BadInput as error:
            raise BadInput(f"{path}, run {number}: {error}") from None
        rows.append(row)
    found = {name: records.recorded(name, root) for name in find_chapters(root)}
    return Plan(root, [_with_record(row, found[row.chapter.name]) for row in rows], _decided(root, found))


def _row(root: Path, entry: object) -> Row:
    """Return a checked row of the plan."""
    if not isinstance(entry, dict):
        raise BadInput(f"expected 'name: ...', 'chapter: ...' and so on, got {entry!r:.60}")
    keys = (*NEEDED, *MORE)
    if unknown := [key for key in entry if key not in keys]:
        raise BadInput(f"{unknown[0]}: no such entry; {did_you_mean(str(unknown[0]), keys)}")
    if missing := [key for key in NEEDED if not isinstance(entry.get(key), str)]:
        raise BadInput(f"{missing[0]}: expected words, got {entry.get(missing[0])!r}")
    chapter = load(root, entry["chapter"])
    usual = {name: parameter.default for name, parameter in chapter.parameters.items()}
    usual |= read_profile(root, entry["profile"]).get(chapter.name, {})
    if entry["device"] not in DEVICES:
        raise BadInput(f"device: expected cpu or gpu, got {entry['device']!r}{hint(entry['device'], DEVICES)}")
    kinds = [kind for kind in (MEASURED, ESTIMATED) if kind in entry]
    minutes = entry[kinds[0]] if len(kinds) == 1 else None
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes < math.inf:
        raise BadInput("expected the minutes as one number above 0, 'measured: 45' or 'estimated: 45'")
    values = usual | _given(chapter, entry.get("parameters") or {})
    row = Row(
        entry["name"],
        chapter,
        entry["profile"],
        values,
        {name: value for name, value in values.items() if value != usual[name]},
        entry["device"],
        minutes,
        kinds[0],
        entry.get("leaves") or [],
    )
    _require_claims(row)
    return row


def _given(chapter: Chapter, values: object) -> dict[str, Any]:
    """Return the parameters of a row, checked; whether a folder of images is at hand, only the run has to know."""
    if not isinstance(values, dict):
        raise BadInput(f"parameters: expected 'parameter: value' lines, got {values!r:.60}")
    folders = {name: v for name, v in values.items() if isinstance(v, str) and v.startswith("folder:")}
    for name in folders:
        if name not in chapter.parameters:
            raise BadInput(f"{chapter.name}: {name}: no such parameter; {did_you_mean(str(name), chapter.parameters)}")
    return convert(chapter, {name: v for name, v in values.items() if name not in folders}) | folders


def _require_claims(row: Row) -> None:
    """Raise BadInput unless a row decides some claim, and those that it leaves open are its own."""
    if not isinstance(row.leaves, list):
        raise BadInput(f"leaves: expected a list of claims, got {row.leaves!r:.60}")
    ids = [claim.id for claim in row.expected]
    if unknown := [name for name in row.leaves if name not in ids]:
        raise BadInput(f"leaves: {row.chapter.name} has no claim {unknown[0]!r}: {did_you_mean(unknown[0], ids)}")
    open_anyway = {claim.id: claim.obstacles[0] for claim in row.expected if claim.obstacles}
    if needless := [name for name in row.leaves if name in open_anyway]:
        raise BadInput(f"leaves: {needless[0]} need not stand there: {open_anyway[needless[0]]}")
    if not (row.decides or row.on_a_stand_in):
        why = "; ".join(f"{claim}: {obstacle}" for claim, obstacle in open_anyway.items())
        raise BadInput(f"it decides no claim; {why or 'the chapter makes none'}")


def _require_new(row: Row, before: Sequence[Row]) -> None:
    for other in before:
        if (other.chapter.name, other.values) == (row.chapter.name, row.values):
            raise BadInput(f"{row.name!r} is the same run as {other.name!r}")
        if other.name == row.name:
            raise BadInput(f"there are two runs called {row.name!r}")


def _with_record(row: Row, found: Sequence[Record]) -> Row:
    mine = [record for record in found if record.key == row.file]
    return replace(row, record=mine[0]) if mine else row


def _decided(root: Path, found: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Return the verdicts of the records in words, by claim, judged by today's rules."""
    verdicts: dict[str, str] = {}
    for name, of_chapter in found.items():
        said: dict[str, list[tuple[Record, Claim]]] = {}
        for record in of_chapter:
            for id, claim in forecast.judged(load(root, name), record.parameters, record.claims).items():
                said.setdefault(id, []).append((record, claim))
        counts = {id: scorecard.best(pairs) for id, pairs in said.items()}
        verdicts |= {id: best[1].word for id, best in counts.items() if best and best[1].verdict in (HOLDS, FAILS)}
    return verdicts


# ---- working through it --------------------------------------------------------------------------


def work(
    root: Path,
    devices: Sequence[str],
    *,
    minutes: float = math.inf,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[tuple[Row, str]]:
    """Run and record the rows that are to run, one after the other, and give each with its outcome.

    A run that fits into the time left goes before one that does not. The rest of the time is used, too: the next run
    starts, is stopped when the time is over, and goes on from its checkpoints at the next call.

    Raises:
        BadInput: the plan or a record is damaged, or the folder differs from its commit.
    """
    end = time.monotonic() + 60 * minutes
    require_commit(root)
    unsure = {row.chapter.name for row in read(root).rows if row.state == records.UNVERIFIED}
    if unsure:
        records.verify(root, sorted(unsure), say=say)
    tried: set[str] = set()
    while True:
        require_commit(root)
        left = (end - time.monotonic()) / 60
        todo = [row for row in read(root).todo(devices) if row.name not in tried]
        if not todo or left <= 0:
            return
        row = min(todo, key=lambda row: row.minutes > left)
        tried.add(row.name)
        say(f"{row.name}: {row.state} ({row.cost})")
        yield row, _record(row, 60 * left, threads)


def at_hand() -> tuple[str, ...]:
    """Return the devices of this machine."""
    from nadkit import devices

    return DEVICES if devices.pick("auto").type != "cpu" else (CPU,)


def require_commit(root: Path) -> None:
    """Raise BadInput unless the book's folder is as some commit has it, so that records can name it."""
    found = commit(root)
    if found is None or found.endswith("+"):
        what = (
            f"is in no git repository ({why_no_commit(root)})" if found is None else "has changes that no commit holds"
        )
        raise BadInput(f"{root} {what}, so no record could name where it came from: commit first, or work in a clone")


def _record(row: Row, seconds: float, threads: int | None) -> str:
    """Run and record a row in a process of its own, and return what went wrong or that it was stopped, else nothing."""
    threads = str(threads or joblib.cpu_count())
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "parameters.json"
        given.write_text(json.dumps(dict(row.changed)))
        root, options = row.chapter.root, ["--profile", row.profile, "--params", str(given)]
        options += ["--root", str(root)]
        child = Child("record", row.chapter.name, *options, folder=root, environment=environment, nice=NICE)
        try:
            return child.answer(None if math.isinf(seconds) else seconds).get("error", "")
        except subprocess.TimeoutExpired:
            return STOPPED
