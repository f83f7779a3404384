"""Sweeps: a chapter run at every point of a grid of parameters, on any executor.

The unit of truth is the finished notebook of a point. Finished points are not run again, so a sweep that was
interrupted or killed goes on where it stopped when the same command is given again.
"""

import itertools
import json
import math
import os
import queue
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nadkit import files
from nadkit.book import executors, runner
from nadkit.book.chapters import QUICK, BadInput, Chapter, convert, load, profile_values, require_outside, validate
from nadkit.book.clusters import is_killed_worker
from nadkit.book.parameters import Value
from nadkit.book.prints import result_print, result_printer
from nadkit.book.runner import FAILED, FINISHED, UNCHANGED, CannotWrite, KernelDied, RunFailed
from nadkit.book.slots import TRIES, WorkerDied
from nadkit.names import did_you_mean
from nadkit.parallel import WAKING

TO_RUN = "to run"
PLAN = "sweep.json"
SECONDS_TO_APPEAR = 90.0  # a network folder may show a new file late
SHARED = (
    "workers on other machines need the book and the folder of the sweep under the same paths, on a shared file system"
)
MOST_POINTS = 100_000
MOST_PROBLEMS = 10
_RANGE = re.compile(r"([-+]?\d+):([-+]?\d+)(?::([1-9]\d*))?")


class SweepStopped(RuntimeError):
    """A sweep cannot go on, though points are left: what stopped one would stop all."""


class ChapterChanged(RuntimeError):
    """A worker's chapter, library, modules, images or versions are not those that the sweep began with."""


# ---- the grid ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its values on the grid's axes, all its values, and what became of it."""

    swept: Mapping[str, Value]
    values: Mapping[str, Value]
    out: Path
    result_print: str
    status: str = TO_RUN
    seconds: float | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """The values on the axes, for people."""
        return ", ".join(f"{name}={value}" for name, value in self.swept.items())

    def to_json(self) -> dict[str, Any]:
        """Return the point as plain data."""
        about = {"status": self.status, "seconds": self.seconds, "error": self.error}
        return {"parameters": dict(self.swept), "notebook": str(self.out), **about}


@dataclass(frozen=True)
class Plan:
    """A valid sweep: where its runs go, and its points, finished ones included."""

    chapter: Chapter
    profile: str
    fixed: Mapping[str, Value]
    swept: tuple[str, ...]
    folder: Path
    points: tuple[Point, ...] = field(repr=False)

    @property
    def counts(self) -> Counter[str]:
        """How many points have which status."""
        return Counter(point.status for point in self.points)


def parse_values(chapter: Chapter, name: str, text: str) -> list[Value]:
    """Return the values that a command line gives one parameter: `1,2,5`, `0:10`, `0:10:2` or `["a", "b"]`.

    For a parameter that is a list, one value is a list, so lists are separated by `;`: `lenet,vgg11;resnet18` is two
    lists.

    Raises:
        BadInput: there is no such parameter.
    """
    if name not in chapter.parameters:
        raise BadInput(f"{chapter.name}: {name}: no such parameter; {did_you_mean(name, chapter.parameters)}")
    kind = chapter.parameters[name].type
    if kind.startswith("list"):
        return text.split(";")
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except ValueError:
            raise BadInput(f'{chapter.name}: {name}: expected a list such as ["a", "b"], got {text!r}') from None
    values = []
    for word in text.split(","):
        if ":" in word and kind.startswith(("int", "float")):
            whole = kind.startswith("int")
            if not (found := whole and _range(word.strip())):
                form = "START:STOP or START:STOP:STEP, whole numbers that go up" if whole else "a list such as 0.1,0.2"
                raise BadInput(f"{chapter.name}: {name}: expected {form}, got {word!r}")
            values += found[: MOST_POINTS + 1]
        else:
            values.append(word.strip())
    return values


def _range(word: str) -> range:
    """Return the numbers of `START:STOP` or `START:STOP:STEP`; none if it is something else."""
    found = _RANGE.fullmatch(word)
    return range(int(found[1]), int(found[2]), int(found[3] or 1)) if found else range(0)


def make_plan(
    chapter: Chapter,
    axes: Mapping[str, Sequence[Value]],
    *,
    zipped: Mapping[str, Sequence[Value]] | None = None,
    fixed: Mapping[str, Value] | None = None,
    profile: str = QUICK,
    out: Path | None = None,
) -> Plan:
    """Return the sweep over all combinations of the values in `axes`, those in `zipped` going together.

    Every value is checked, and finished points are looked up. Nothing is written. By default the folder `out` lies in
    `sweeps/CHAPTER/` and is named by the profile, the fixed values and the axes.

    Raises:
        BadInput: the grid is empty or holds a wrong value, or the folder belongs to something else.
    """
    axes, zipped = dict(axes), dict(zipped or {})
    if both := [name for name in zipped if name in axes] + [name for name in fixed or {} if name in axes | zipped]:
        raise BadInput(f"{chapter.name}: {both[0]}: given twice; expected it once, swept, zipped or fixed")
    usual = profile_values(chapter, profile)
    base = validate(chapter, profile, fixed)
    fixed = {name: value for name, value in base.items() if name in (fixed or {}) and value != usual[name]}
    grid = _grid(_checked(chapter, axes), _checked(chapter, zipped))
    swept = tuple(name for name in chapter.parameters if name in axes | zipped)
    by = f"by={'+'.join(swept)}"
    folder = (out or Path("sweeps") / chapter.name / runner.file_name(fixed, profile, by)).absolute()
    _require_own(folder, _about(chapter.name, profile, fixed, swept), chapter.root)
    points = []
    mark = result_printer(chapter)
    for at in grid:
        at = {name: at[name] for name in swept}
        path = folder / f"{runner.file_name(at)}.ipynb"
        values = base | at
        print_ = mark(values)
        status = UNCHANGED if runner.has_result(path, print_) else TO_RUN
        points.append(Point(at, values, path, print_, status))
    return Plan(chapter, profile, fixed, swept, folder, tuple(points))


def _checked(chapter: Chapter, axes: Mapping[str, Sequence[Value]]) -> dict[str, list[Value]]:
    """Return the axes with values of their parameters' types; parameters are independent, so each is checked once."""
    checked, problems = {}, []
    for name, values in axes.items():
        checked[name] = []
        for value in values:
            try:
                checked[name].append(convert(chapter, {name: value})[name])
            except BadInput as error:
                problems.append(str(error))
        if twice := [v for v, n in Counter(map(repr, checked[name])).items() if n > 1]:
            problems.append(f"{chapter.name}: {name}: {twice[0]} is there twice")
        if not values:
            problems.append(f"{chapter.name}: {name}: no values: the grid is empty")
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"... and {len(problems) - MOST_PROBLEMS} more"]
    if problems:
        raise BadInput("\n".join(problems))
    return checked


def _grid(axes: Mapping[str, list[Value]], zipped: Mapping[str, list[Value]]) -> list[dict[str, Value]]:
    if not axes and not zipped:
        raise BadInput("expected several values for a parameter, such as -p seed=0:10; one run is made by 'nadkit run'")
    lengths = {name: len(values) for name, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise BadInput(f"--zip: expected as many values for each parameter, got {counts}")
    if (size := math.prod(map(len, axes.values())) * min(lengths.values(), default=1)) > MOST_POINTS:
        raise BadInput(f"the grid has {size:,} points or more; expected at most {MOST_POINTS:,}")
    together = [dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)] or [{}]
    return [
        dict(zip(axes, values, strict=True)) | row for values in itertools.product(*axes.values()) for row in together
    ]


# ---- its folder ----------------------------------------------------------------------------------


def _about(chapter: str, profile: str, fixed: Mapping[str, Value], swept: Sequence[str]) -> dict[str, Any]:
    return {"chapter": chapter, "profile": profile, "fixed": dict(fixed), "swept": list(swept)}


def _require_own(folder: Path, about: Mapping[str, Any], root: Path) -> None:
    """Raise BadInput unless `folder` is new, empty, or of a sweep over the same parameters."""
    require_outside(folder, root)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BadInput(f"--out {folder}: expected a folder, found a file")
    if not (folder / PLAN).exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise BadInput(f"--out {folder}: expected a new folder or one of this sweep, found other things in it")
        return
    try:
        found = json.loads((folder / PLAN).read_text())
        differ = [name for name in about if found[name] != about[name]]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"--out {folder}: its {PLAN} is damaged; choose another folder") from None
    if differ:
        lines = [f"    {name}: {found[name]} there, {about[name]} here" for name in differ]
        raise BadInput("\n".join([f"--out {folder}: it holds another sweep; choose another folder", *lines]))


@contextmanager
def _held(plan: Plan) -> Iterator[None]:
    """Make a sweep's folder, and keep it from other sweeps during the block."""
    folder, about = plan.folder, _about(plan.chapter.name, plan.profile, plan.fixed, plan.swept)
    busy = BadInput(f"{folder}: another sweep is at work there; wait for it, or choose another folder")
    with ExitStack() as stack:
        try:
            stack.enter_context(files.held(folder, busy))
            with files.atomic_write(folder / PLAN) as part:
                part.write_text(json.dumps(about, indent=2) + "\n")
        except (OSError, files.DataError) as error:
            raise SweepStopped(f"{folder} cannot be written to: {error}") from error
        yield


# ---- running it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a worker needs to know to run one point."""

    root: Path
    chapter: str
    profile: str
    values: Mapping[str, Value]
    out: Path
    result_print: str
    folder: Path
    environment: Mapping[str, str]


# A process has one environment, and a Dask worker that joins late may have threads.
_one_at_a_time = threading.Lock()


def run_point(task: Task) -> dict[str, Any]:
    """Run one point, in a worker, and return its record.

    Raises:
        ChapterChanged: what would run here is not what the sweep began with.
        RunFailed: as `runner.execute`.
    """
    with _one_at_a_time, runner.environment_of(task.folder, task.environment):
        chapter = load(task.root, task.chapter)
        if result_print(chapter, task.values) != task.result_print:
            raise ChapterChanged(
                f"on {socket.gethostname()} the code of the chapter, of the library or of a module of one's own, the "
                "images of a folder, or the versions of Python, torch, torchvision or numpy, are not those that the "
                "sweep began with"
            )
        if runner.has_result(task.out, task.result_print):  # left by a try that died after its last step
            return runner.read_record(task.out)
        return runner.execute(chapter, task.values, task.out, profile=task.profile, folder=task.folder, live=False)


def run(plan: Plan, executor: Executor, *, say: Callable[[str], None] | None = None, progress: bool = False) -> Plan:
    """Run what is left of a sweep and return it with the outcome of each point.

    A point whose kernel or worker died is tried again, `TRIES` times in all; one that fails otherwise is not, and
    stops no other. `say` is called once per finished point; `progress` shows a bar with an estimate.

    Raises:
        SweepStopped: what stopped one point would stop all: a full disk, a chapter that changed, a lost cluster.
        BadInput: another sweep is at work in the folder.
    """
    with _held(plan):
        points = list(plan.points)
        left: dict[Future, int] = {}
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        tries: Counter[int] = Counter()

        def submit(i: int) -> None:
            tries[i] += 1
            future = executor.submit(run_point, _task(plan, points[i]))
            left[future] = i
            future.add_done_callback(ended.put)

        for i, point in enumerate(points):
            if point.status == TO_RUN:
                submit(i)
        done = len(points) - len(left)
        with tqdm(total=len(points), initial=done, unit="run", disable=not progress) as bar:
            while left:
                # Popped, because a Dask cluster reruns a lost task as long as its future is held.
                future = _next(ended)
                i = left.pop(future)
                if tries[i] < TRIES and _deserves_another_try(future):
                    submit(i)
                    continue
                points[i] = _outcome(points[i], future)
                bar.update()
                if say:
                    say(f"{len(points) - len(left)}/{len(points)} {_sentence(points[i])}")
        files.remove_leftovers(plan.folder)
    return replace(plan, points=tuple(points))


def _next(ended: queue.SimpleQueue[Future]) -> Future:
    while True:
        with suppress(queue.Empty):
            return ended.get(timeout=WAKING)


def _task(plan: Plan, point: Point) -> Task:
    here = Path.cwd()
    environment = executors.in_environment(None, None, ())  # a run is not to be split as well
    data = os.environ.get("NADKIT_DATA")
    environment["NADKIT_DATA"] = str(files.expanded(data).absolute()) if data else ""
    return Task(
        root=plan.chapter.root,
        chapter=plan.chapter.name,
        profile=plan.profile,
        values=point.values,
        out=point.out,
        result_print=point.result_print,
        folder=here,
        environment=environment,
    )


def _deserves_another_try(future: Future) -> bool:
    """Return whether a point failed for what need not be its own fault."""
    error = None if future.cancelled() else future.exception()
    return isinstance(error, KernelDied) or is_killed_worker(error)


def _outcome(point: Point, future: Future) -> Point:
    """Return a point with what became of it; raise SweepStopped where the others would fare no better."""
    try:
        record = future.result()
    except BadInput as error:
        raise SweepStopped(f"a worker cannot read the chapter: {error}\n{SHARED}") from error
    except (CannotWrite, ChapterChanged, CancelledError) as error:
        raise SweepStopped(str(error) or "its tasks were cancelled: the cluster is gone") from error
    except Exception as error:
        if is_killed_worker(error):
            error = WorkerDied("its workers died on every attempt (out of memory?)")
        about = str(error) if isinstance(error, RunFailed | WorkerDied) else f"{type(error).__name__}: {error}"
        return replace(point, status=FAILED, error=about)
    if not _appears(point.out, record):
        raise SweepStopped(f"a worker finished {point.out}, but here there is no such file\n{SHARED}")
    return replace(point, status=FINISHED, seconds=record["seconds"])


def _appears(out: Path, record: Mapping[str, Any]) -> bool:
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not runner.has_result(out, record["result_print"]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _sentence(point: Point) -> str:
    if point.status == FAILED:
        return f"{point.name}: failed: {point.error}"
    return f"{point.name}: {point.status} in {point.seconds:.1f} s"
