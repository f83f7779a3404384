"""Records: results of big runs that git keeps, `book/recorded/CHAPTER/RUN.json`, and whether they still hold.

`record` makes one from a finished run and its `witness`, a run of the same chapter at its smallest size. A record is
*current* while the code of its experiment is unchanged. When the code has changed, `verify` runs the witness again: the
record is *verified* if today's code gives the same numbers, and *differs* if not. The findings of `verify` are kept in
`book/recorded/verified.json`, by the checksum of the code, so that the witness need not run again.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nadkit import files
from nadkit.book import claims, prints
from nadkit.book import witness as witnesses
from nadkit.book.chapters import BadInput, Chapter, find_chapters, find_root, load, resolve
from nadkit.book.claims import Claims
from nadkit.book.collect import stored
from nadkit.book.pages import duration
from nadkit.book.results import DIFFERS, FINISHED, Scalar, Table, checked, data_words
from nadkit.book.sources import bare, checksum
from nadkit.book.witness import Witness, WitnessFailed

CURRENT, VERIFIED = "current", "verified"
UNVERIFIED, UNVERIFIABLE = "not verified yet", "not verifiable here"
VERSION = 2
# Of records with as many training images, the one whose profile is named first counts; of two with one profile, the
# one that is nearer to it, then the later one.
RANKS = {"paper": 0, "gpu": 1, "cpu": 2}
KEPT = "verified.json"


@dataclass(frozen=True)
class Validity:
    """Whether today's code still gives a record's numbers, and how that is known."""

    state: str
    why: str = ""


@dataclass(frozen=True)
class Record:
    """What git keeps of a run: its provenance, numbers, small tables and claims, its witness, and whether it holds."""

    path: Path
    chapter: str
    profile: str
    parameters: Mapping[str, Any]
    experiment: str
    commit: str | None
    versions: Mapping[str, str]
    platform: str
    device: str | None
    data: Sequence[Mapping[str, str | None]]
    started: str
    seconds: float
    numbers: Mapping[str, Scalar]
    tables: Mapping[str, Table]
    claims: Claims
    witness: Witness | None = None
    resumed: bool = False
    seal: str = ""
    validity: Validity = Validity(CURRENT)

    @property
    def name(self) -> str:
        """The profile, and the parameters that differ from it."""
        return self.path.stem

    @property
    def title(self) -> str:
        """The name for people: without the checksum that a long name has."""
        whole, cut, _ = self.name.partition("~")
        return whole.rpartition(",")[0].replace(",", ", ") + " and more" if cut else whole.replace(",", ", ")

    @property
    def key(self) -> str:
        """Its name among all records of the book."""
        return f"{self.chapter}/{self.name}"

    @property
    def counts(self) -> bool:
        """Whether totals count it: they do not if today's code gives other numbers."""
        return self.validity.state != DIFFERS

    @property
    def rank(self) -> tuple[int, int, int, float]:
        """The sort key; the records that count most come first.

        Those on the most training images; then by profile; those with the fewest parameters that differ from it; the
        latest.
        """
        most = max((n for _, n in self._images()), default=0)
        latest = -datetime.fromisoformat(self.started).timestamp()
        return -most, RANKS.get(self.profile, len(RANKS)), self.name.count(","), latest

    @property
    def words(self) -> str:
        """What it ran on and for how long, in a few words: 'MNIST, 12,000 images, 64 min on 2 cores'.

        The time of a run that was interrupted and went on is left out: only that of its last try is known.
        """
        sets: dict[str, dict[str, None]] = {}
        for name, n in self._images():
            sets.setdefault(name, {})[f"{n:,}"] = None
        named = [f"{name}, {' and '.join(numbers)} images" for name, numbers in sets.items()]
        what = " and ".join(named) or f"profile {self.profile}"
        device = self.device or self.platform
        cores = re.search(r"\d+ cores?$", device)
        took = "in several tries" if self.resumed else duration(self.seconds)
        return f"{what}, {took} on {cores[0] if cores else device}"

    def _images(self) -> list[tuple[str, int]]:
        """Return the sets of images that it trained on, with their numbers of training images."""
        named = r"([^,(]+).*?([\d,]+) and [\d,]+ of them(?:.*the first ([\d,]+) to train on)?"
        kinds = (re.match(named, str(item["kind"])) for item in self.data)
        return [(found[1].strip(), int((found[3] or found[2]).replace(",", ""))) for found in kinds if found]

    @property
    def mark(self) -> str:
        """What a page says of its validity; nothing while it is current."""
        state, why = self.validity.state, self.validity.why
        return "" if state == CURRENT else f"{state}: {why}" if why else state

    @property
    def provenance(self) -> str:
        """Where the results come from, in one line."""
        return " · ".join(
            [
                f"profile {self.title}",
                self.device or self.platform,
                *(f"{name} {self.versions[name]}" for name in ("torch", "nadkit") if name in self.versions),
                f"commit {short_commit(self.commit)}",
                *([f"seed {self.parameters['seed']}"] if "seed" in self.parameters else []),
                duration(self.seconds) + (" (its last try)" if self.resumed else ""),
                self.started[:10],
                *map(data_words, self.data),
            ]
        )


def short_commit(commit: str | None) -> str:
    """Return the first letters of a commit, and the '+' that says that files differed from it."""
    return re.sub(r"^(\w{8})\w*", r"\1", commit) if commit else "unknown"


# ---- reading and writing -------------------------------------------------------------------------


def recorded(chapter: str, root: Path | None = None) -> list[Record]:
    """Return the records of a chapter of the book at `root`, by default the book that the current folder is in.

    A notebook on its own, outside any book, has none.

    Raises:
        BadInput: there is no such chapter, or a record is damaged.
    """
    if root is None:
        try:
            root = find_root(Path.cwd())
        except BadInput:
            return []
    name, _ = resolve(chapter, find_chapters(root))
    paths = sorted(_folder(root, name).glob("[!.]*.json"))  # a name that begins with a dot is still being written
    if not paths:  # also a draft that cannot be read yet
        return []
    experiment, kept = prints.experiment(load(root, name), shown=True), _kept(root)
    records = (read(path) for path in paths)
    return [replace(record, validity=_validity(record, experiment, kept)) for record in records]


def _folder(root: Path, chapter: str) -> Path:
    return root / "book" / "recorded" / chapter


def read(path: Path) -> Record:
    """Return the record in a file, without checking whether it still holds.

    Raises:
        BadInput: it is damaged, or was changed since `nadkit record` wrote it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (version := content.pop("version")) != VERSION:
            raise ValueError(f"it is of version {version}, which this nadkit does not know")
        seal = content.pop("seal")
        if seal != checksum(content):
            raise ValueError("its seal is broken, so something in it was changed")
        content["claims"] = Claims.from_json(content["claims"])
        content["tables"] = {name: checked(table) for name, table in content["tables"].items()}
        content["witness"] = Witness.from_json(content["witness"])
        found = Record(path, **content, seal=seal)
        _ = found.provenance  # raises if something that it is made of is missing
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is not a record that can be read: {error}; 'nadkit record' makes it anew") from error


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the content of a record, sealed, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    sealed = {"version": VERSION, **content, "seal": checksum(content)}
    with files.atomic_write(path) as part:
        part.write_text("".join([*_lines(sealed), "\n"]), encoding="utf-8")


def _lines(value: object, indent: str = "") -> Iterator[str]:
    """Give pieces of JSON with a line for every entry of a mapping and for every list in a list, for a legible diff."""
    deeper = f"{indent} "
    if isinstance(value, Mapping) and value:
        items = [(f"{json.dumps(key, ensure_ascii=False)}: ", item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, list | Mapping) for item in value):
        items = [("", item) for item in value]
    else:
        yield json.dumps(value, ensure_ascii=False, allow_nan=False)
        return
    start, end = "{}" if isinstance(value, Mapping) else "[]"
    for i, (key, item) in enumerate(items):
        yield f"{',' if i else start}\n{deeper}{key}"
        yield from _lines(item, deeper)
    yield f"\n{indent}{end}"


# ---- making one ----------------------------------------------------------------------------------


def recordable(notebook: Path, root: Path) -> Chapter:
    """Return the chapter that `notebook` is a finished run of, if it can be recorded.

    Raises:
        BadInput: it is not a finished run of a current chapter, or it stored no result.
    """
    (run,) = claims.read(_an_executed_notebook(notebook))
    about = run.record
    if about.get("status") != FINISHED:
        raise BadInput(f"{notebook} is not a finished run; 'nadkit run' makes one")
    if about.get("chapter") not in find_chapters(root):
        raise BadInput(f"{notebook} is a run of {about.get('chapter')!r}, which the book at {root} does not have")
    chapter = load(root, about["chapter"])
    same = about.get("experiment") == prints.experiment(chapter)
    if not same or about["parameters"].keys() != chapter.parameters.keys():
        raise BadInput(f"{notebook}: the experiment of {chapter.name} changed since this run; run it again")
    if not is_of_today(about, chapter):
        raise BadInput(f"{notebook}: what {chapter.name} claims or shows changed since this run; run it again")
    kept = stored(notebook)
    if not (kept.numbers or kept.tables or run.claims):
        raise BadInput(f"{notebook}: nothing to record; a chapter stores by results.keep, results.show and claims.show")
    _path(notebook, chapter)
    return chapter


def is_of_today(about: Mapping[str, Any], chapter: Chapter) -> bool:
    """Return whether a run, from what its notebook says about it, computed by the code that its chapter has today.

    Claims count: a run keeps what its own claims measured.
    """
    return about.get("shown") == prints.experiment(chapter, shown=True)


def record(notebook: Path, root: Path, witness: Witness) -> Path:
    """Make the record of a finished run of a chapter of the book at `root`, and return its file.

    Raises:
        BadInput: it is not a finished run of a current chapter, or it stored no result, or a record of that name has
            other data.
        DataError: the file cannot be written.
    """
    chapter = recordable(notebook, root)
    (run,) = claims.read(notebook)
    about, kept = run.record, stored(notebook)
    path = _path(notebook, chapter)
    content = {
        **{name: about[name] for name in ("chapter", "profile")},
        "parameters": kept.parameters,
        "experiment": prints.experiment(chapter, shown=True),
        **{name: about[name] for name in ("commit", "versions", "platform")},
        "device": kept.device,
        "data": kept.data,
        **{name: about[name] for name in ("started", "seconds", "resumed")},
        "numbers": kept.numbers,
        "tables": kept.tables,
        "claims": run.claims.to_json(verdicts=False),
        "witness": witness.to_json(),
    }
    _require_same_data(path, kept.data)
    write(path, content)
    return path


def _require_same_data(path: Path, data: Iterable[Mapping[str, str | None]]) -> None:
    """Raise BadInput where a record to be replaced is of other data under the same names."""
    if not path.exists():
        return
    old = {item["name"]: item for item in read(path).data}
    for item in data:
        before = old.get(item["name"], item)
        if before["sha256"] and item["sha256"] and before["sha256"] != item["sha256"]:
            words = f"{data_words(before)}; this run is of {data_words(item)}"
            raise BadInput(f"{path} is of another data set of the same name, {words}: delete it to record this one")


def _path(notebook: Path, chapter: Chapter) -> Path:
    from nadkit.book.runner import read_record, run_name

    about = read_record(notebook)
    name = run_name(chapter, about["profile"], about["parameters"]).removesuffix(".ipynb")
    return chapter.root / "book" / "recorded" / f"{name}.json"


def _an_executed_notebook(path: Path) -> Path:
    if not path.is_file():
        raise BadInput(f"{path}: expected an executed notebook, found {'a folder' if path.is_dir() else 'nothing'}")
    return path


# ---- whether they hold ---------------------------------------------------------------------------


def _validity(record: Record, experiment: str, kept: Mapping[str, Any]) -> Validity:
    """Return what `verify` found of a record with today's code, or else whether its code is today's."""
    found = kept.get(record.key, {})
    here = found.get("state") != UNVERIFIABLE or found.get("at_hand") == _at_hand()
    if here and (found.get("experiment"), found.get("seal"), found.get("rules")) == (experiment, record.seal, _rules()):
        return Validity(found["state"], found["why"])
    if record.experiment == experiment:
        return Validity(CURRENT)
    return Validity(UNVERIFIED, "the code has changed since, and 'nadkit verify' has not looked yet")


def _kept(root: Path) -> dict[str, Any]:
    try:
        return json.loads((root / "book" / "recorded" / KEPT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BadInput(f"book/recorded/{KEPT} is damaged ({error}); delete it, 'nadkit verify' makes it anew") from None


def verify(
    root: Path,
    chapters: Iterable[str] | None = None,
    *,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> list[Record]:
    """Run the witnesses of all records, or of some chapters', whose code has changed; return the records.

    Findings are kept by the checksum of the code. A witness whose finding is known is not run again unless `again`.

    Raises:
        BadInput: there is no such chapter, or a record is damaged.
    """
    names = [load(root, name).name for name in chapters] if chapters else find_chapters(root)
    found, runs = [], {}
    for name in names:
        for record in recorded(name, root):
            if again or record.validity.state == UNVERIFIED:
                record = replace(record, validity=_verified(record, load(root, name), runs, say))
                if record.validity.state != UNVERIFIED:
                    _keep(root, record, prints.experiment(load(root, name), shown=True), say)
            found.append(record)
    return found


def _verified(record: Record, chapter: Chapter, runs: dict[str, Witness], say: Callable[[str], None]) -> Validity:
    try:
        values = witnesses.parameters(chapter, record.witness.parameters)
        size = f"{chapter.name} {json.dumps(values, sort_keys=True)}"
        if size not in runs:
            say(f"{chapter.name}: running the witness")
            runs[size] = witnesses.observe(chapter, values)
    except BadInput as error:  # a value that is no longer possible
        return Validity(UNVERIFIABLE, str(error))
    except WitnessFailed as error:  # perhaps for a passing reason: not kept, so the next look tries again
        return Validity(UNVERIFIED, str(error))
    return validity_of(record, runs[size], prints.commit(chapter.root))


def validity_of(record: Record, today: Witness, now: str | None = None) -> Validity:
    """Return whether today's run of a record's witness says that the record holds; `now` names today's commit."""
    comparison = witnesses.compare(record.witness, today)
    if comparison.agrees:
        of = f"commit {short_commit(now)} gives the numbers of {short_commit(record.commit)}"
        return Validity(VERIFIED, f"{of}; {comparison.words}")
    if missing := _missing(record.witness, today):
        named = ", ".join(missing[:2]) + (f" and {len(missing) - 2} more" if len(missing) > 2 else "")
        return Validity(UNVERIFIABLE, f"its witness was made with {named}, which are not at hand")
    return Validity(DIFFERS if comparison.differing else UNVERIFIABLE, comparison.words)


def _missing(then: Witness, now: Witness) -> list[str]:
    """Return the published files and the sources of data that a witness had and today's run has not."""
    had, has = ({_source(item) for item in witness.data} | set(witness.at_hand) for witness in (then, now))
    return sorted(had - has)


def _source(data: Mapping[str, str | None]) -> str:
    """Return what a data set is and where it is from, without its size, seed and checksum."""
    return f"{data['name']}: {str(data['kind']).partition(',')[0]}"


@functools.cache
def _rules() -> str:
    """Return a checksum of how witnesses are made and compared: what was found by other rules does not count."""
    return hashlib.sha256(bare(Path(witnesses.__file__).read_text(encoding="utf-8")).encode()).hexdigest()[:16]


def _at_hand() -> str:
    """Return a checksum of the names of the published files at hand."""
    return hashlib.sha256(repr(prints.published_at_hand()).encode()).hexdigest()


def _keep(root: Path, record: Record, experiment: str, say: Callable[[str], None]) -> None:
    """Keep what `verify` found, in the order of the records' names; a book that cannot be written to goes without."""
    about = {"experiment": experiment, "seal": record.seal, "rules": _rules()}
    entry = about | {"state": record.validity.state, "why": record.validity.why}
    if record.validity.state == UNVERIFIABLE:  # here; with other data it may be verifiable
        entry["at_hand"] = _at_hand()
    known = {key: kept for key, kept in _kept(root).items() if (root / "book" / "recorded" / f"{key}.json").exists()}
    try:
        with files.atomic_write(root / "book" / "recorded" / KEPT) as part:
            lines = _lines(dict(sorted((known | {record.key: entry}).items())))
            part.write_text("".join([*lines, "\n"]), encoding="utf-8")
    except files.DataError as error:
        say(f"{record.key}: {record.validity.state}, but that cannot be kept: {error}")


def renew(
    record: Record,
    root: Path,
    given: Mapping[str, Any] | None = None,
    *,
    chapter: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Make the witness of a record anew, with the code of the commit that it names, and write the record again.

    It has today's size, so a witness that told too little tells more once the profile is larger. Parameters that the
    chapter no longer has stay as they were. `given` are parameters to run it with; `chapter` is the chapter's name at
    that commit, if it was another.

    Raises:
        BadInput: the commit does not hold all that the record was made with, or is not there.
        WitnessFailed: the chapter of that commit does not run.
    """
    if not record.commit or record.commit.endswith("+"):
        raise BadInput(f"{record.key}: no commit holds all that it was made with ({short_commit(record.commit)})")
    content = json.loads(record.path.read_text(encoding="utf-8"))
    size = {**record.witness.parameters, **witnesses.parameters(load(root, record.chapter))}
    made = witnesses.make_at(record.commit, root, chapter or record.chapter, say, given, size)
    rest = {name: value for name, value in content.items() if name not in ("version", "seal")}
    write(record.path, rest | {"witness": made.to_json()})
