"""Building the book: running the chapters that changed, and making pages of their results."""

import filecmp
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import yaml
from papermill.exceptions import strip_color

from nadkit import files
from nadkit.book import (
    claims,
    excerpts,
    explorers,
    forecast,
    papers,
    plan,
    proofread,
    records,
    reference,
    scorecard,
    typeset,
)
from nadkit.book.chapters import (
    QUICK,
    BadInput,
    Chapter,
    find_chapters,
    listed_chapters,
    load,
    read_mapping,
    require_outside,
    validate,
)
from nadkit.book.children import Child
from nadkit.book.pages import duration
from nadkit.book.prints import fingerprint, records_print
from nadkit.book.runner import FAILED, FINISHED, TRACEBACK_LINES, UNCHANGED, read_record, up_to_date
from nadkit.book.typeset import Pictures
from nadkit.parallel import as_they_end

# More chapters than this at once compete for memory, or for the only GPU.
MOST_JOBS = 4
USUAL_SECONDS = 60.0
# What chapters took elsewhere: profile -> chapter -> seconds on one core.
SECONDS = "book/recorded/seconds.yml"
SCORECARD = "scorecard.json"
REPOSITORY = "NADKIT_REPOSITORY"
LAUNCH_BUTTONS = {
    "notebook_interface": "jupyterlab",
    "binderhub_url": "https://mybinder.org",
    "colab_url": "https://colab.research.google.com",
}
SCORECARD_PAGE = "book/practice/scorecard.md"


def build(
    root: Path,
    profile: str = QUICK,
    jobs: int | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the chapters that changed, `jobs` at a time, then build the pages in `out/_build/html`.

    `out` is `root` if not given. If `only` names chapters, the others keep the results of their last run, and those
    that never ran get pages without results. The returned `status`, `chapters`, `html` and `error` say what became of
    the chapters and of the pages. If anything fails, the pages stay as they were.

    Raises:
        BadInput: a parameter or a name is wrong, a chapter unsound (`proofread`), or a record damaged; nothing was run.
    """
    if importlib.util.find_spec("jupyter_book") is None:
        raise BadInput("jupyter-book is not installed: pip install -e '.[book]'")
    folder = (out or root).absolute() / "_build"
    require_outside(folder, root)
    listed = listed_chapters(root)
    for draft in find_chapters(root).keys() - set(listed):
        say(f"{draft}: left out, for _toc.yml does not list it")
    wanted = [load(root, name).name for name in only] or listed
    if drafts := [name for name in wanted if name not in listed]:
        raise BadInput(f"{drafts[0]}: _toc.yml does not list it, so it has no page")
    proofread.require_sound(root)
    places = {name: folder / "executed" / profile / f"{name}.ipynb" for name in listed}
    chosen = [(chapter, validate(chapter, profile)) for chapter in (load(root, name) for name in wanted)]
    busy = BadInput(f"{folder}: another build is at work there; wait for it, or choose another --out")
    with files.held(folder, busy):
        records.verify(root, wanted, say=say)
        planned = plan.read(root)
        todo = {
            chapter.name: places[chapter.name] for chapter, values in chosen if not _is_done(chapter, values, places)
        }
        for name in wanted:
            if name not in todo:
                say(f"{name}: unchanged")
        ran = _run_all(root, todo, profile, jobs, say)
        chapters = {
            name: ran.get(name, {"status": UNCHANGED, "notebook": str(place)}) for name, place in places.items()
        }
        result = {"status": FAILED, "chapters": {name: chapters[name] for name in wanted}, "html": None, "error": None}
        if failed := [name for name, result in chapters.items() if result["status"] == FAILED]:
            return result | {"error": f"failed: {', '.join(failed)}. The pages were not built"}
        executed = {name: place for name, place in places.items() if place.exists()}
        if unsound := [problem for name, place in executed.items() for problem in proofread.of_run(place, name)]:
            return result | {"error": "\n".join([*unsound, "The pages were not built"])}
        if without := [name for name in listed if name not in executed]:
            say(f"{len(without)} of {len(listed)} chapters never ran: their pages are without results")
        say("building the pages")
        try:
            pictures, cited = Pictures(folder / "pictures"), papers.read(root)
            rows = _scorecard_rows(root, executed, planned.waits_for(), cited)
            made = _typeset(root, listed, executed, rows, planned.notes(), cited or {}, pictures, folder / "pages")
            made |= _make_scorecard(root, rows, folder, cited or {})
            made |= excerpts.make(root, listed, executed, rows, folder, pictures)
            made |= _make_parameters(root, listed, folder) | _make_config(root, folder)
            made |= explorers.make(root, executed, folder)
            beside = {f"notebooks/{name}.ipynb": load(root, name).path for name in listed} | pictures.made
            error = _update_pages(root, made, folder, beside)
        except BadInput as problem:
            error = str(problem)
        if error:
            return result | {"error": error}
        return result | {"status": FINISHED, "html": str(folder / "html" / "index.html")}


def _is_done(chapter: Chapter, values: Mapping[str, Any], places: Mapping[str, Path]) -> bool:
    """Return whether a chapter has run with these values, and its page shows the records that there are."""
    notebook = places[chapter.name]
    shown = read_record(notebook).get("recorded")
    return up_to_date(notebook, fingerprint(chapter, values)) and shown == records_print(chapter)


def _run_all(
    root: Path,
    todo: Mapping[str, Path],
    profile: str,
    jobs: int | None,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Run chapters side by side, say how far they are, and return what became of each."""
    jobs = max(1, min(jobs or min(joblib.cpu_count(), MOST_JOBS), len(todo)))
    runs, ended = _Runs(root, profile, jobs, say), {}
    # What each took last time; for a chapter that never ran here, what it took elsewhere, or a guess.
    elsewhere = (read_mapping(root / SECONDS).get(profile) or {}) if (root / SECONDS).exists() else {}
    seconds = {
        name: read_record(place).get("seconds") or elsewhere.get(name, USUAL_SECONDS) for name, place in todo.items()
    }
    with ThreadPoolExecutor(jobs) as pool:
        try:
            # The longest first, so that no core waits for the last one.
            order = sorted(todo, key=lambda name: -seconds[name])
            futures = {pool.submit(runs.run, name, todo[name]): name for name in order}
            for future in as_they_end(futures):
                name, result = futures[future], future.result()
                ended[name] = result
                took = f" in {result['seconds']:.0f} s" if "seconds" in result else ""
                left = sum(seconds[name] for name in todo if name not in ended) / jobs
                far = f"{len(ended)} of {len(todo)} chapters" + (f", about {duration(left)} left" if left else "")
                told = jobs == 1 and "code" not in result  # by its own process
                error = None if told else result.get("error")
                say(f"{error or name + ': ' + result['status'] + took} ({far})")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runs.end()
            raise
    return ended


class _Runs:
    """Chapters that run side by side, each by a `nadkit run` of its own.

    Papermill is one to a process; and a chapter that takes its process down takes nothing else with it.
    """

    def __init__(self, root: Path, profile: str, jobs: int, say: Callable[[str], None]) -> None:
        self._options = ["--profile", profile, "--root", str(root)]
        # More threads than cores is slower than one thread each.
        self._threads = {"OMP_NUM_THREADS": str(max(1, joblib.cpu_count() // jobs))} if jobs > 1 else {}
        # On the terminal, the progress bars of one chapter are useful; those of several would mix.
        self._silent = jobs > 1
        self._say = say
        self._children: list[Child] = []
        self._ended, self._starting = False, threading.Lock()

    def run(self, name: str, out: Path) -> dict[str, Any]:
        """Run a chapter and return what its command printed: its record, or what went wrong."""
        options, environment = ["--out", str(out), *self._options], self._threads | os.environ
        with self._starting:
            if self._ended:
                raise CancelledError
            self._say(f"{name}: running")
            child = Child("run", name, *options, environment=environment, silent=self._silent)
            self._children.append(child)
        return child.answer()

    def end(self) -> None:
        """End the chapters that run, and let no other start."""
        with self._starting:
            self._ended = True
        for child in self._children:
            child.end()


def _typeset(
    root: Path,
    listed: Sequence[str],
    executed: Mapping[str, Path],
    rows: Sequence[scorecard.Row],
    notes: Mapping[str, str],
    cited: Mapping[str, papers.Paper],
    pictures: Pictures,
    folder: Path,
) -> dict[str, Path]:
    """Write the pages of the chapters as notebooks below `folder`, and return where each belongs -> its file."""
    made = {}
    for name in listed:
        best = {row.claim.id: row.best for row in rows if row.chapter == name and row.best}
        said = {id: (record.words, claim) for id, (record, claim) in best.items()}
        found = records.recorded(name, root)
        content = typeset.chapter(load(root, name), executed.get(name), found, said, notes, pictures)
        start = "../" * name.count("/")
        if (root / SCORECARD_PAGE).exists():
            scorecard.link(content, start, cited)
        if (root / explorers.PAGE).exists():
            explorers.link(content, name, start)
        made[f"book/{name}.ipynb"] = copy = folder / f"{name}.ipynb"
        with files.atomic_write(copy) as part:
            part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return made


def _scorecard_rows(
    root: Path, executed: Mapping[str, Path], waits: Mapping[str, str], cited: Mapping[str, papers.Paper] | None
) -> list[scorecard.Row]:
    """Return the claims of the chapters that ran, live and recorded, and which planned runs they wait for.

    Raises:
        BadInput: a claim names a paper that is not in the bibliography, or a record is damaged.
    """
    found = [record for name in executed for record in records.recorded(name, root)]

    def judged(record: records.Record) -> Mapping[str, claims.Claim]:
        return forecast.judged(load(root, record.chapter), record.parameters, record.claims)

    rows = scorecard.rows([claims.read(path)[0] for path in executed.values()], found, waits, judged)
    if cited is not None:
        scorecard.require_cited(rows, cited)
    return rows


def _make_scorecard(
    root: Path, rows: Sequence[scorecard.Row], folder: Path, cited: Mapping[str, papers.Paper]
) -> dict[str, Path]:
    """Write the scorecard as Markdown and as JSON, and return where the first belongs; a book may be without."""
    if not (root / SCORECARD_PAGE).exists():
        return {}
    included = folder / "scorecard.md"
    data = json.dumps(scorecard.to_json(rows), indent=1) + "\n"
    for path, text in ((folder / SCORECARD, data), (included, scorecard.markdown(rows, cited))):
        with files.atomic_write(path) as part:
            part.write_text(text, encoding="utf-8")
    return {"book/practice/_generated/scorecard.md": included}


def _make_parameters(root: Path, listed: Sequence[str], folder: Path) -> dict[str, Path]:
    """Write the tables of all chapters' parameters, and return where they belong; a book may be without."""
    if not (root / "book" / "reference" / "parameters.md").exists():
        return {}
    included = folder / "parameters.md"
    with files.atomic_write(included) as part:
        part.write_text(reference.parameters(load(root, name) for name in listed), encoding="utf-8")
    return {"book/reference/_generated/parameters.md": included}


def _make_config(root: Path, folder: Path) -> dict[str, Path]:
    """Write the settings with buttons to the repository that the environment names, or none: then there are no buttons.

    Binder and Colab take notebooks from GitHub.
    """
    if not (url := os.environ.get(REPOSITORY)):
        return {}
    config = read_mapping(root / "_config.yml")
    config["repository"] = {"url": url, "branch": os.environ.get("NADKIT_BRANCH", "main")}
    config["html"] = (config.get("html") or {}) | {"use_repository_button": True, "use_issues_button": True}
    if url.startswith("https://github.com/"):
        config["launch_buttons"] = LAUNCH_BUTTONS
    with files.atomic_write(folder / "config.yml") as part:
        part.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return {"_config.yml": folder / "config.yml"}


def _update_pages(root: Path, made: Mapping[str, Path], folder: Path, beside: Mapping[str, Path]) -> str | None:
    """Bring the pages in `folder/html` up to date and return what Sphinx complained of, if anything.

    `made` are the files that are not as they stand in the sources: path in the staging folder -> file. What is `beside`
    the pages Sphinx does not see: path below `folder/html` -> file.

    Sphinx works in a folder of its own and goes on from what it left there, but only after a build
    that ended well: it does not read again a page that it warned of or was interrupted at.
    """
    kept, work = folder / "sphinx", folder / "sphinx.unfinished"
    shutil.rmtree(work, ignore_errors=True)
    if kept.exists():
        os.replace(kept, work)
    if _stage(root, made, folder / "stage"):
        # Sphinx renders only the pages that changed, with their sidebars.
        shutil.rmtree(work, ignore_errors=True)
    if error := _render(folder / "stage", work):
        return error
    _publish(work / "_build" / "html", folder, beside)
    os.replace(work, kept)
    return None


def _publish(pages: Path, folder: Path, beside: Mapping[str, Path]) -> None:
    """Put a copy of `pages`, their figures numbered, and what lies `beside` them in the place of `folder/html`."""
    html, new, old = (folder / name for name in ("html", "html.new", "html.old"))
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(pages, new)
    for page in (new / "book").rglob("*.html"):
        text, when = page.read_text(encoding="utf-8"), page.stat()
        page.write_text(typeset.numbered(text), encoding="utf-8")
        os.utime(page, ns=(when.st_atime_ns, when.st_mtime_ns))
    if (folder / SCORECARD).exists():
        beside = {SCORECARD: folder / SCORECARD, **beside}
    for name, path in beside.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, new / name)
    shutil.rmtree(old, ignore_errors=True)
    if html.exists():
        os.replace(html, old)
    os.replace(new, html)
    shutil.rmtree(old, ignore_errors=True)


def _stage(root: Path, made: Mapping[str, Path], stage: Path) -> bool:
    """Bring the staging folder up to date and return whether the sidebar, thus every page, changed.

    Only what changed is touched: Sphinx reads only that.
    """
    book = root / "book"
    wanted = {name: root / name for name in ("_config.yml", "_toc.yml")}
    for path in book.rglob("*"):
        parts = path.relative_to(book).parts
        hidden = any(part.startswith(".") for part in parts) or parts[0] in ("profiles", "recorded")
        if path.is_file() and path.suffix != ".ipynb" and not hidden:
            wanted[path.relative_to(root).as_posix()] = path
    wanted |= made
    old = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    for name in old - wanted.keys():
        (stage / name).unlink()
    sidebar = old != wanted.keys()
    for name, path in wanted.items():
        copy = stage / name
        if name in old and filecmp.cmp(path, copy, shallow=False):
            continue
        if name in old:
            sidebar |= name.startswith("_") or _heading(path) != _heading(copy)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return sidebar


def _heading(page: Path) -> bytes | None:
    """Return the first heading of a Markdown file or notebook, as it stands there; a picture may seem to have one."""
    found = re.search(rb"^\W*# .*$", page.read_bytes(), flags=re.MULTILINE)
    return found and found[0]


def _render(stage: Path, out: Path) -> str | None:
    """Build the pages of the folder `stage` in `out/_build/html` and return what Sphinx complained of, if anything."""
    # Sphinx keeps nearly every object that it makes: garbage collection finds little and takes long. And Jupyter Book
    # imports jsonschema, which `nadkit.book` keeps from compiling a grammar.
    jupyter_book = "import gc; gc.disable(); import nadkit.book; from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", jupyter_book, "build"]
    strict = ["-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(
        [*command, str(stage), "--path-output", str(out), *strict],
        cwd=stage,  # where the settings' own paths start
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    # Messages name the source, which the reader knows, and not our copy of it.
    lines = strip_color(done.stderr).replace(f"{stage}{os.sep}", "").splitlines()
    warnings = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL", line)]
    return "\n".join(["Sphinx warns:", *(warnings or lines[-TRACEBACK_LINES:])])
