"""The command `nadkit`: list, show, check, run and build the chapters, and read what they claim.

The runner imports papermill, and the library PyTorch. Each is imported only by the commands that need it, so that
`nadkit --help` answers at once.
"""

import argparse
import gc
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nadkit import __version__, files
from nadkit.book import chapters, kernel
from nadkit.book.chapters import QUICK, BadInput
from nadkit.names import did_you_mean

if TYPE_CHECKING:
    from nadkit.book.plan import Row
    from nadkit.book.sweep import Plan

MOST_ROWS = 40
RUNS = Path("runs")
OK, FAILED, BAD_INPUT, CLAIM_FAILS, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = """exit codes:
  0    all is well
  1    a run or a build failed, or a record differs
  2    bad input, nothing was run
  3    'nadkit claims' read a claim that fails
  130  interrupted"""


@dataclass(frozen=True)
class Answer:
    """The result of a command: text for people, data for programs, and its exit code."""

    text: str
    data: Any
    code: int = OK


Command = Callable[[argparse.Namespace], Answer]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # A batch system ends its jobs by SIGTERM: shut kernels down then, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.set_threshold(*kernel.SELDOM)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal may not know every letter
        sys.stdout.reconfigure(errors="replace")
    try:
        options = _parse(argv)
        with redirect_stdout(sys.stderr):  # what the user's own module prints must not mix with the answer
            answer = options.run(options)
    except BadInput as error:
        answer = _problem(str(error), BAD_INPUT)
    except (OSError, files.DataError) as error:
        answer = _problem(str(error), FAILED)
    except KeyboardInterrupt:
        answer = _problem("interrupted; finished results are as they were, and checkpoints are kept", INTERRUPTED)
    try:
        if "--json" in argv:
            print(json.dumps(answer.data, indent=2), flush=True)
        elif answer.text:
            print(answer.text, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe: keep Python's last flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _problem(f"cannot write the answer: {error.strerror}", FAILED).code
    return answer.code


def _say(message: str) -> None:
    """Report progress, which must not mix with the answer on stdout."""
    # In one piece: chapters that run side by side report from threads.
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def _problem(message: str, code: int, **more: object) -> Answer:
    _say(f"nadkit: {message}")
    return Answer("", {"status": "failed", "error": message, **more}, code)


# ---- commands ------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> Answer:
    root = _root(options)
    found = [chapters.load(root, name) for name in chapters.find_chapters(root)]
    data = [{"chapter": c.name, "title": c.title, "parameters": len(c.parameters), "file": str(c.path)} for c in found]
    rows = [[c.name, c.title, f"{len(c.parameters)} parameters"] for c in found]
    return Answer(_table(rows) or f"no chapters below {root / 'book'}", data)


def _show(options: argparse.Namespace) -> Answer:
    data = chapters.describe(chapters.load(_root(options), options.chapter))
    head = ["parameter", "type", *data["profiles"], "allowed", "meaning"]
    rows = [
        [
            entry["name"],
            entry["type"],
            *(json.dumps(entry["values"][profile]) for profile in data["profiles"]),
            chapters.allowed(entry),
            entry["help"],
        ]
        for entry in data["parameters"]
    ]
    table = _table([head, *rows]) if rows else "no parameters"
    return Answer(f"{data['title']}\n{data['chapter']}\n\n{table}", data)


def _check(options: argparse.Namespace) -> Answer:
    from nadkit.book import plan, proofread

    found = proofread.problems(_root(options), options.chapters)
    if not found:
        plan.read(_root(options))  # which raises if something is wrong with it
    if found:
        return _problem("\n".join(found), BAD_INPUT, problems=found)
    return Answer("nothing is wrong", {"status": "sound", "problems": []})


def _run(options: argparse.Namespace) -> Answer:
    chapter = chapters.load(_own_root(options), options.chapter)
    values = chapters.validate(chapter, options.profile, _overrides(options))

    from nadkit.book import claims, runner

    out = _notebook(options, chapter, values)
    try:
        record = _execute(options, chapter, values, out)
    except runner.RunFailed as error:
        notebook = str(error.notebook) if error.notebook else None
        return _problem(str(error), FAILED, chapter=chapter.name, notebook=notebook)
    made = claims.read(out)[0].claims
    text = f"{chapter.name} finished in {record['seconds']} s: {out}"
    data = {**record, "notebook": str(out.absolute()), "claims": made.to_json()}
    return Answer(f"{text}\n\n{made}" if made else text, data)


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters that the options set."""
    names = [name for name, _ in options.p]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"-p {twice[0]}: given twice; several values are for 'nadkit sweep'")
    return (chapters.read_mapping(options.params) if options.params else {}) | dict(options.p)


def _notebook(options: argparse.Namespace, chapter: chapters.Chapter, values: Mapping[str, Any]) -> Path:
    """Return where the executed notebook of a run goes."""
    from nadkit.book import runner

    out = options.out
    if out.suffix != ".ipynb":
        out /= runner.run_name(chapter, options.profile, values)
    chapters.require_outside(out, chapter.root)
    return out


def _execute(options: argparse.Namespace, chapter: chapters.Chapter, values: Mapping[str, Any], out: Path) -> dict:
    """Run a chapter, which splits its work over the workers that the options name."""
    from nadkit.book import executors, runner

    where = (options.cluster, options.workers, options.gpus)
    executors.require(*where)
    if options.cluster:
        with executors.connect(*where):  # otherwise the chapter would fail late
            pass
    return runner.execute(chapter, values, out, profile=options.profile, environment=executors.in_environment(*where))


def _collect(options: argparse.Namespace) -> Answer:
    from nadkit.book import collect

    table = collect.collect(options.folder)
    if options.out:
        collect.write(table, options.out)
        text = f"{len(table)} runs with {len(table.columns)} columns: {options.out}"
    else:
        text = table.to_csv(index=False).strip()
    return Answer(text, collect.to_json(table))


def _figures(options: argparse.Namespace) -> Answer:
    from nadkit.book import collect

    root = _root(options)
    built = (options.build or root) / "_build" / "executed" / options.profile
    found = {name: built / f"{name}.ipynb" for name in chapters.find_chapters(root)}
    names = [chapters.resolve(name, found)[0] for name in options.chapters]
    names = names or [name for name, path in found.items() if path.exists()]
    if not names:
        known = ", ".join(sorted(path.name for path in built.parent.glob("*"))) or "no profile"
        raise BadInput(f"profile {options.profile} was never built here ({known} was): 'nadkit build' makes it")
    if missing := [name for name in names if not found[name].exists()]:
        raise BadInput(f"{missing[0]} is not in the last build of profile {options.profile}: 'nadkit build' makes it")
    data = []
    for name in names:
        made = collect.write_drawings(found[name], options.folder / name)
        data += [{"chapter": name, "figure": drawing.name, "pdf": drawing.pdf is not None} for drawing in made]
    lines = [f"{len(data)} figures of {len(names)} chapters: {options.folder}"]
    if old := list(dict.fromkeys(entry["chapter"] for entry in data if not entry["pdf"])):
        lines.append(f"without PDF, for their last run kept none: {', '.join(old)}; a new run keeps them")
    return Answer("\n".join(lines), data)


def _pdf(options: argparse.Namespace) -> Answer:
    try:
        from nadkit.book import pdf
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name.partition('.')[0]} is not installed: pip install -e '.[book,pdf]'") from None
    pages = pdf.write(_root(options), options.file, options.build, say=_say)
    return Answer(f"{pages} pages of the book: {options.file}", {"file": str(options.file), "pages": pages})


def _record(options: argparse.Namespace) -> Answer:
    from nadkit.book import records, runner, witness

    if options.plan:
        return _record_plan(options)
    if not options.chapter:
        raise BadInput("expected a CHAPTER to record a run of, or --plan for all runs wanted")
    if options.device or options.minutes or options.threads or options.dry_run:
        raise BadInput("--device, --minutes, --threads and --dry-run are for --plan")
    root = _own_root(options)
    chapter = chapters.load(root, options.chapter)
    try:
        notebook = _given_run(options, chapter) if options.run_file else _own_run(options, chapter)
    except runner.RunFailed as error:
        return _problem(str(error), FAILED, chapter=chapter.name)
    except KeyboardInterrupt:
        return _problem("interrupted; the same command goes on from the last checkpoint", INTERRUPTED)
    try:
        records.recordable(notebook, root)  # first, or the witness might run in vain
        path = records.record(notebook, root, witness.make(chapter, _say))
    except (BadInput, witness.WitnessFailed) as error:
        code = BAD_INPUT if options.run_file and isinstance(error, BadInput) else FAILED
        return _problem(str(error), code, chapter=chapter.name, notebook=str(notebook))
    text = f"recorded in {path}"
    if (runner.read_record(notebook).get("commit") or "+").endswith("+"):
        text += "\nit names no commit that holds all it was made with: commit first to record where it came from"
    return Answer(text, {"chapter": chapter.name, "notebook": str(notebook), "record": str(path)})


def _given_run(options: argparse.Namespace, chapter: chapters.Chapter) -> Path:
    """Return the executed notebook that --from names."""
    from nadkit.book import runner

    if options.p or options.params or options.profile or options.cluster or options.workers or options.gpus:
        raise BadInput("--from: the run is made, and has its parameters; expected no other options")
    if (of := runner.read_record(options.run_file).get("chapter", chapter.name)) != chapter.name:
        raise BadInput(f"--from {options.run_file}: it is a run of {of}, not of {chapter.name}")
    return options.run_file


def _own_run(options: argparse.Namespace, chapter: chapters.Chapter) -> Path:
    """Return the executed notebook of the run that the options name, which runs unless today's code already did."""
    from nadkit.book import prints, records, runner

    options.profile = options.profile or QUICK
    values = chapters.validate(chapter, options.profile, _overrides(options))
    notebook = _notebook(options, chapter, values)
    finished = runner.has_result(notebook, prints.result_print(chapter, values))
    if finished and records.is_of_today(runner.read_record(notebook), chapter):
        _say(f"{notebook} is finished already")
    else:
        _execute(options, chapter, values, notebook)
    return notebook


def _record_plan(options: argparse.Namespace) -> Answer:
    """Work through the plan of records, or show it."""
    from nadkit.book import plan

    if options.chapter or options.run_file or options.p or options.params or options.profile:
        raise BadInput("--plan: what to run stands in the plan; expected no chapter and no parameters")
    if options.workers or options.gpus or options.cluster or options.out != RUNS:
        raise BadInput(
            "--plan: a run goes to 'runs', one at a time on this machine; expected no --workers, --gpus, "
            "--cluster and --out"
        )
    root = _own_root(options)
    devices, ended = ([options.device] if options.device else plan.DEVICES), []
    if not options.dry_run:
        here = [device for device in devices if device in plan.at_hand()]
        if not here:
            raise BadInput("--device gpu: no GPU is at hand; --dry-run shows what waits for one")
        minutes = options.minutes or math.inf
        for row, problem in plan.work(root, here, minutes=minutes, threads=options.threads, say=_say):
            _say(f"{row.name}: {problem or 'recorded'}")
            ended.append({"run": row.name, "recorded": not problem, "problem": problem})
    found = plan.read(root)
    wanted = [row for row in found.rows if row.device in devices]
    left, failed = found.todo(devices), any(entry["problem"] not in ("", plan.STOPPED) for entry in ended)
    data = {"ended": ended, "left": [row.name for row in left], "runs": [found.facts(row) for row in wanted]}
    return Answer(_plan_text(data, wanted, left), data, FAILED if failed else OK)


def _plan_text(data: Mapping[str, Any], rows: Sequence["Row"], left: Sequence["Row"]) -> str:
    """Return the table of a plan, the runs that are left in their order first, and what is left in a line."""
    facts = {entry["run"]: entry for entry in data["runs"]}
    lines = [["run", "device", "minutes", "claims", "undecided", "state"]]
    for row in [*left, *(row for row in rows if row not in left)]:
        known, minutes = facts[row.name], f"{row.minutes:g} {row.how}"
        lines.append(
            [row.name, row.device, minutes, *(str(len(known[w])) for w in ("decides", "undecided")), row.state]
        )
    claims = {claim for row in left for claim in facts[row.name]["undecided"]}
    minutes = {device: sum(row.minutes for row in left if row.device == device) for device in ("cpu", "gpu")}
    takes = " and ".join(f"{m:g} minutes on the {device.upper()}" for device, m in minutes.items() if m)
    if not left:
        return f"{_table(lines)}\n\nnothing is left to run"
    return f"{_table(lines)}\n\nleft: {len(left)} runs, {takes}, for {len(claims)} claims that no record decides"


def _verify(options: argparse.Namespace) -> Answer:
    from nadkit.book import records, witness

    root = _own_root(options)
    if options.p and not options.renew:
        raise BadInput("-p: parameters are for --renew; a witness runs with those that it was made with")
    failed = []
    if options.renew:
        for name in options.chapters or chapters.find_chapters(root):
            for record in records.recorded(name, root):
                try:
                    records.renew(record, root, dict(options.p), say=_say)
                except (BadInput, witness.WitnessFailed) as error:
                    failed.append(f"{record.key}: its witness is as it was: {error}")
    found = records.verify(root, options.chapters, again=options.again, say=_say)
    rows = [[record.key, record.validity.state, record.validity.why] for record in found]
    data = [{"record": key, "state": state, "why": why} for key, state, why in rows]
    for problem in failed:
        _say(problem)
    wrong = [r for r in found if not r.counts or r.validity.state == records.UNVERIFIED]  # its witness does not run
    return Answer(_table(rows) or "no records", data, FAILED if wrong or failed else OK)


def _build(options: argparse.Namespace) -> Answer:
    from nadkit.book import builder

    root, only = _own_root(options), options.chapters
    data = builder.build(root, options.profile, options.jobs, options.out, say=_say, only=only)
    if data["error"]:
        return _problem(data["error"], FAILED, **{k: v for k, v in data.items() if k != "error"})
    return Answer(f"the book is at {data['html']}", data)


def _sweep(options: argparse.Namespace) -> Answer:
    from nadkit.book import executors, sweep

    plan = _plan(options)
    executors.require(options.cluster, options.workers, options.gpus)
    if options.dry_run:
        return _sweep_answer(plan, "nothing was run")
    live = sys.stderr.isatty()
    try:
        if plan.counts[sweep.TO_RUN]:
            logs = plan.folder / ".logs"
            with executors.connect(options.cluster, options.workers, options.gpus, logs) as executor:
                plan = sweep.run(plan, executor, say=None if live else _say, progress=live)
    except sweep.SweepStopped as error:
        return _problem(f"the sweep stopped: {error}\n{_how_to_resume(plan)}", FAILED, folder=str(plan.folder))
    except KeyboardInterrupt:
        return _problem(f"interrupted\n{_how_to_resume(plan)}", INTERRUPTED, folder=str(plan.folder))
    last = f"to read them as one table: nadkit collect {plan.folder}"
    if plan.counts[sweep.FAILED]:
        last = f"the same command tries the failed ones again; {last}"
    return _sweep_answer(plan, last)


def _plan(options: argparse.Namespace) -> "Plan":
    """Return the sweep that the options ask for: axes by -p with several values and by --zip, the rest fixed."""
    from nadkit.book import sweep

    chapter = chapters.load(_own_root(options), options.chapter)
    names = [name for name, _ in options.p + options.zip]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{twice[0]}: given twice")
    from_file = chapters.read_mapping(options.params) if options.params else {}
    fixed = {name: value for name, value in from_file.items() if name not in names}
    axes: dict[str, list] = {}
    for name, text in options.p:
        values = sweep.parse_values(chapter, name, text)
        if values == [text.strip()]:
            fixed[name] = text
        else:
            axes[name] = values
    zipped = {name: sweep.parse_values(chapter, name, text) for name, text in options.zip}
    return sweep.make_plan(chapter, axes, zipped=zipped, fixed=fixed, profile=options.profile, out=options.out)


def _how_to_resume(plan: "Plan") -> str:
    return f"finished runs are in {plan.folder}; the same command runs what is missing"


def _sweep_answer(plan: "Plan", last: str) -> Answer:
    """Return the table of a sweep: every point, or of many the failed ones, or if none failed the first."""
    from nadkit.book.runner import FAILED as POINT_FAILED

    failed = [point for point in plan.points if point.status == POINT_FAILED]
    chosen = plan.points if len(plan.points) <= MOST_ROWS else (failed or plan.points)[:MOST_ROWS]
    rows = [
        [
            *(_words(value) for value in point.swept.values()),
            point.status,
            "" if point.seconds is None else f"{point.seconds:.1f} s",
            (point.error or "").partition("\n")[0],
        ]
        for point in chosen
    ]
    head = [*plan.swept, "status", "time", "error" if failed else ""]
    counts = ", ".join(f"{n} {status}" for status, n in plan.counts.items())
    more = f"... and {len(plan.points) - len(rows)} points more\n" if len(rows) < len(plan.points) else ""
    text = f"{_table([head, *rows])}\n{more}\n{plan.chapter.name}: {counts}; in {plan.folder}\n{last}"
    data = {
        "chapter": plan.chapter.name,
        "profile": plan.profile,
        "folder": str(plan.folder),
        "counts": dict(plan.counts),
        "points": [point.to_json() for point in plan.points],
    }
    return Answer(text, data, FAILED if failed else OK)


def _claims(options: argparse.Namespace) -> Answer:
    from nadkit.book import claims

    runs = [run for path in options.runs for run in claims.read(path, failed=options.failed)]
    texts = [f"{run.path}\n{run.claims or 'no claims'}" for run in runs]
    data = [{"notebook": str(run.path), "run": dict(run.record), "claims": run.claims.to_json()} for run in runs]
    fails = any(claim.verdict == claims.FAILS for run in runs for claim in run.claims)
    return Answer("\n\n".join(texts), data, CLAIM_FAILS if fails else OK)


def _student(options: argparse.Namespace) -> Answer:
    from dataclasses import asdict

    from nadkit.book import student

    made = student.write(_root(options), options.folder, options.chapters)
    head = ["assignment", "exercises with a check", "with an answer to read"]
    table = _table([head, *([a.name, str(a.checked), str(a.by_hand)] for a in made)])
    steps = (
        f"next, for nbgrader to make the students' version: cd {options.folder} && nbgrader generate_assignment NAME"
    )
    return Answer(f"{table}\n\n{steps}", {"folder": str(options.folder), "assignments": [asdict(a) for a in made]})


def _notebooks(options: argparse.Namespace) -> Answer:
    from nadkit.book import launch

    paths = launch.write(_root(options), options.folder, options.chapters)
    said = (
        f"{len(paths)} notebooks in {options.folder}, for a branch of the repository; NADKIT_BRANCH names it to 'build'"
    )
    return Answer(said, {"folder": str(options.folder), "notebooks": list(map(str, paths))})


def _root(options: argparse.Namespace) -> Path:
    return chapters.find_root(options.root or Path.cwd())


def _own_root(options: argparse.Namespace) -> Path:
    """Return the folder of a book whose chapters are to run, or to be held against the code."""
    from nadkit.book import prints

    root = _root(options)
    prints.require_own_library(root)
    return root


def _words(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([f"{c:{w}}" for c, w in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


# ---- the command line ----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are BadInput, and which knows its flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.flags: list[str] = []
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:  # noqa: ANN401
        action = super().add_argument(*args, **kwargs)
        self.flags += action.option_strings
        return action

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}\n{self.format_usage().strip()}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    named = next((word for word in argv if not word.startswith("-")), None)
    first = argv[0].partition("=")[0] if argv else ""
    if named and first not in parser.flags and any(first in command.flags for command in commands.values()):
        raise BadInput(f"unknown argument {first!r}: put it after the command, as in 'nadkit list {argv[0]}'")
    if named is not None and named not in commands:
        raise BadInput(
            f"no command is called {named!r}: {did_you_mean(named, commands)}\n{parser.format_usage().strip()}"
        )
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        hint = did_you_mean(unknown[0].partition("=")[0], options.parser.flags)
        raise BadInput(f"unknown argument {unknown[0]!r}: {hint}")
    return options


COMMANDS: Mapping[str, tuple[Command, str]] = {
    "list": (_list, "the chapters of the book"),
    "show": (_show, "a chapter's parameters, and their values per profile"),
    "check": (_check, "find what is wrong with chapters and the plan, without running them"),
    "run": (_run, "run one chapter"),
    "sweep": (_sweep, "run one chapter at every point of a grid of parameters"),
    "build": (_build, "run the chapters that changed, then build the book's pages"),
    "collect": (_collect, "one table of many runs: parameters, measured values, claims, provenance"),
    "figures": (_figures, "the figures of the last build as PDF and PNG, for slides"),
    "pdf": (_pdf, "the pages of the last build as one PDF"),
    "record": (_record, "run a chapter, or take a finished run, and keep its results in the book"),
    "verify": (_verify, "whether today's code still gives the numbers of the recorded runs"),
    "student": (_student, "write chapters as assignments for nbgrader, with exercises to solve"),
    "notebooks": (
        _notebooks,
        "write chapters as notebooks that install the library of $NADKIT_REPOSITORY, for Colab",
    ),
    "claims": (_claims, "what executed chapters claim, and whether it holds"),
}
Subparsers = Mapping[str, argparse.ArgumentParser]


def _parser() -> tuple[argparse.ArgumentParser, Subparsers]:
    """Return the parser of the command line, and those of its commands."""
    parser = _Parser(
        prog="nadkit",
        description="Run the chapters of the book, build it, and read what they claim.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (run, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        sub.set_defaults(run=run, parser=sub)
    for add in (_add_the_book, _add_parameters, _add_workers, _add_records, _add_places, _add_chapters):
        add(commands.choices)
    return parser, commands.choices


def _add_the_book(of: Subparsers) -> None:
    """Add which book, which one chapter of it, and which profile."""
    for name in COMMANDS.keys() - {"collect", "claims"}:  # they read runs
        of[name].add_argument("--root", type=Path, metavar="DIR", help="the folder of the book")
    for name in ("show", "run", "sweep", "record"):
        number = "?" if name == "record" else None  # with --plan, all
        of[name].add_argument("chapter", nargs=number, metavar="CHAPTER", help="its name, as 'nadkit list' prints it")
    for name in ("run", "sweep", "record", "build", "figures"):
        default = None if name == "record" else QUICK  # a finished run has its own
        of[name].add_argument("--profile", default=default, help="a set of parameters (default: quick)")


def _add_parameters(of: Subparsers) -> None:
    """Add parameters of a chapter."""
    one = "one parameter; lists as 1,2,3; beats --params, which beats --profile"
    many = (
        "values of one parameter: 1,2,5 or, if whole, 0:10 or 0:10:2; ';' separates lists; a single one is for all runs"
    )
    together = "as -p, but the values of all --zip go together: first with first, second with second"
    renewed = "with --renew: one parameter of the witnesses, such as one that is a constant today"
    for name, flag, form, text in (
        ("run", "-p", "NAME=VALUE", one),
        ("record", "-p", "NAME=VALUE", one),
        ("verify", "-p", "NAME=VALUE", renewed),
        ("sweep", "-p", "NAME=VALUES", many),
        ("sweep", "--zip", "NAME=VALUES", together),
    ):
        of[name].add_argument(flag, type=_pair, action="append", default=[], metavar=form, help=text)


def _add_workers(of: Subparsers) -> None:
    """Add where the commands that run a chapter do so, and where its notebooks go."""
    where = "where the executed notebook goes, a folder or NAME.ipynb (default: runs)"
    for name in ("run", "record"):
        of[name].add_argument("--out", type=Path, default=RUNS, metavar="DIR", help=where)
    below = "where the notebooks go (default: a folder of its own below 'sweeps')"
    of["sweep"].add_argument("--out", type=Path, metavar="DIR", help=below)
    of["sweep"].add_argument("--dry-run", action="store_true", help="check everything, show the points, run nothing")
    for name, work in (("run", "parts of the work"), ("sweep", "runs"), ("record", "parts of the work")):
        sub = of[name]
        sub.add_argument("--params", type=Path, metavar="FILE", help="parameters in YAML or JSON")
        usual = "at most 4; with --gpus one a GPU; on slurm 10" if name == "sweep" else "one after the other"
        sub.add_argument("--workers", type=_jobs, metavar="N", help=f"{work} to do at the same time (default: {usual})")
        sub.add_argument(
            "--gpus", type=_gpus, default=(), metavar="0,1", help="GPUs of this machine, one per worker, in turn"
        )
        sub.add_argument(
            "--cluster", metavar="WHERE", help="a Dask cluster, tcp://HOST:PORT or tls://HOST:PORT, or slurm"
        )


def _add_records(of: Subparsers) -> None:
    """Add what is to be recorded and verified."""
    record, verify = of["record"], of["verify"]
    record.add_argument(
        "--from", dest="run_file", type=Path, metavar="NAME.ipynb", help="a finished run to take instead of a new one"
    )
    record.add_argument("--plan", action="store_true", help="make all records that book/recorded/plan.yml wants")
    record.add_argument(
        "--device", choices=("cpu", "gpu"), help="with --plan: only the runs for this device (default: both)"
    )
    record.add_argument(
        "--minutes", type=_jobs, metavar="N", help="with --plan: stop after N minutes; the next call goes on"
    )
    record.add_argument(
        "--threads", type=_jobs, metavar="N", help="with --plan: threads of each run (default: one per core)"
    )
    record.add_argument("--dry-run", action="store_true", help="with --plan: show the runs, their claims and state")
    verify.add_argument("--again", action="store_true", help="run the witnesses even if the code did not change")
    verify.add_argument("--renew", action="store_true", help="first make the witnesses again, at the records' commits")


def _add_places(of: Subparsers) -> None:
    """Add what the other commands read and where they write."""
    made = "where the build is: the folder given to 'nadkit build' as --out"
    for name in ("figures", "pdf"):
        of[name].add_argument("--build", type=Path, metavar="DIR", help=made)
    for name, text in (
        ("figures", "where the figures go, in one folder per chapter"),
        ("student", "a new folder for the course"),
        ("notebooks", "a new folder for the notebooks"),
        ("collect", "a folder of finished runs, such as a sweep's"),
    ):
        of[name].add_argument("folder", type=Path, metavar="DIR", help=text)
    of["pdf"].add_argument("file", type=Path, metavar="FILE", help="the PDF to write")
    table = "a file .csv or .parquet (default: CSV to the terminal)"
    of["collect"].add_argument("-o", dest="out", type=Path, metavar="TABLE", help=table)
    of["build"].add_argument("--jobs", type=_jobs, metavar="N", help="chapters to run at the same time")
    of["build"].add_argument("--out", type=Path, metavar="DIR", help="where _build goes (default: the book's folder)")
    of["claims"].add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="notebooks or folders")
    of["claims"].add_argument("--failed", action="store_true", help="read failed runs, too")


def _add_chapters(of: Subparsers) -> None:
    """Add which chapters of the book."""
    all_listed = "all that _toc.yml lists"
    for name, what, usual in (
        ("check", "to check", all_listed),
        ("verify", "whose records to look at", "all"),
        ("build", "to run", all_listed),
        ("figures", "whose figures to write", "all that were built"),
        ("student", "to write", f"{all_listed} that have exercises"),
        ("notebooks", "to write", all_listed),
    ):
        of[name].add_argument("chapters", nargs="*", metavar="CHAPTER", help=f"chapters {what} (default: {usual})")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name.strip(), value


def _gpus(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"expected numbers of GPUs such as 0,1, got {text!r}")
    return tuple(map(int, numbers))


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text!r}")
    return int(text)
