"""Running one chapter through papermill."""

import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import joblib
import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError, strip_color
from traitlets.config import Config

from nadkit import files
from nadkit.book import kernel, outside
from nadkit.book.chapters import QUICK, Chapter, cell_source, cell_tags, profile_values
from nadkit.book.parameters import Value
from nadkit.book.prints import code_print, commit, experiment, fingerprint, records_print, result_print, versions
from nadkit.book.slots import kill_marked
from nadkit.names import did_you_mean

FINISHED, FAILED, UNCHANGED = "finished", "failed", "unchanged"
TRACEBACK_LINES = 12
# The variable that tells a chapter where its checkpoints go.
CHECKPOINTS = "NADKIT_CHECKPOINTS"
# In the environment of every process that a run starts.
RUN = "NADKIT_RUN"
END = 32_768  # bytes at the end of a notebook that hold its metadata, nearly always


class RunFailed(RuntimeError):
    """A chapter or the book could not be finished; `notebook` is what was kept of the chapter."""

    def __init__(self, message: str, notebook: Path | None = None) -> None:
        super().__init__(message)
        self.notebook = notebook


class KernelDied(RunFailed):
    """The kernel died while it ran a chapter, perhaps for lack of memory: another try may succeed."""


class CannotWrite(RunFailed):
    """The result of a run cannot be stored, perhaps because the disk is full."""


# ---- one chapter ---------------------------------------------------------------------------------


def execute(
    chapter: Chapter,
    values: Mapping[str, Any],
    out: Path,
    *,
    profile: str = QUICK,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    live: bool | None = None,
) -> dict[str, Any]:
    """Run a chapter with validated values, put the executed notebook at `out`, and return its record.

    Progress shows on stderr where `live`, by default where that is a terminal. The record (chapter, parameters,
    fingerprint, versions, commit, seconds, ...) is also the notebook's `nadkit` metadata. The chapter can also import
    modules from `folder` (default: the current one); it sees the variables of `environment`. After Ctrl-C only the
    chapter's own checkpoints are left, from which the next try of the same run goes on.

    Raises:
        KernelDied: its kernel died during the run.
        CannotWrite: the result cannot be stored.
        RunFailed: the run failed otherwise; `out` is as it was before, and what ran is kept beside it as
            `NAME.failed.ipynb`.
    """
    out = out.absolute()
    kept = out.with_name(f"{out.stem}.failed.ipynb")
    checkpoints = out.with_name(f".{out.stem}.checkpoints")
    clock = time.perf_counter()
    try:
        with environment_of(folder or Path.cwd(), environment or {}), files.atomic_write(out) as part:
            record, code = _new_record(chapter, values, profile), code_print(chapter)
            named = outside.checksums(chapter, values)
            own = checkpoints / record["result_print"][:16]
            os.environ[CHECKPOINTS] = str(own)
            record["resumed"] = own.exists()
            with _line_to_kernel() as line, _no_process_left():
                problem, cause = _run(chapter, values, part, sys.stderr.isatty() if live is None else live, line)
            # Only after the run, because a chapter may fetch published data.
            record["fingerprint"] = fingerprint(chapter, values, code, named)
            notebook = nbformat.read(part, as_version=4)
            problem = problem or _incomplete(notebook)
            record["seconds"] = round(time.perf_counter() - clock, 1)
            record["status"] = FAILED if problem else FINISHED
            _finish(notebook, record)
            nbformat.write(notebook, part)
            if problem:
                os.replace(part, kept)
                raise cause(f"{chapter.name}: {problem}\nWhat ran is kept in {kept}", notebook=kept)
    except files.DataError as error:  # no space left, or no folder to write to
        raise CannotWrite(f"{chapter.name}: {error}") from error
    kept.unlink(missing_ok=True)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return record


def _new_record(chapter: Chapter, values: Mapping[str, Any], profile: str) -> dict[str, Any]:
    known = experiment(chapter)
    return {
        "chapter": chapter.name,
        "profile": profile,
        "parameters": dict(values),
        "experiment": known,
        "shown": experiment(chapter, shown=True),
        "result_print": result_print(chapter, values, known),
        "recorded": records_print(chapter),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(chapter.root),
        "platform": platform.platform(),
        "cpus": joblib.cpu_count(),
    }


def up_to_date(out: Path, fingerprint: str) -> bool:
    """Return whether `out` holds a finished run with this fingerprint."""
    record = read_record(out)
    return record.get("status") == FINISHED and record.get("fingerprint") == fingerprint


def has_result(out: Path, result_print: str) -> bool:
    """Return whether `out` holds a finished run whose numbers are those of this `prints.result_print`."""
    record = read_record(out)
    return record.get("status") == FINISHED and record.get("result_print") == result_print


def run_name(chapter: Chapter, profile: str, values: Mapping[str, Any]) -> str:
    """Return the file that a run is kept in: `CHAPTER/PROFILE[,name=value...].ipynb`.

    Only what differs from the profile is named, so that one result has one name.
    """
    usual = profile_values(chapter, profile)
    changed = {name: values[name] for name in chapter.parameters if values[name] != usual[name]}
    return f"{chapter.name}/{file_name(changed, profile)}.ipynb"


def file_name(values: Mapping[str, Value], *before: str) -> str:
    """Return words and `name=value` pairs as the stem of a file name, with a checksum where they do not fit."""
    words = {name: _words(value) for name, value in values.items()}
    exact = ",".join([*before, *(f"{name}={'+'.join(w)}" for name, w in words.items())])
    plain = all(re.fullmatch(r"[\w.-]+", word, re.ASCII) for w in words.values() for word in w)
    if plain and len(exact) <= 100:
        return exact
    mark = hashlib.sha256(json.dumps(dict(values)).encode()).hexdigest()[:10]
    return f"{re.sub(r'[^0-9A-Za-z_.,=+-]', '_', exact)[:80]}~{mark}"


def _words(value: Value) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def read_record(out: Path) -> dict[str, Any]:
    """Return the record of the executed notebook at `out`; an empty one if there is no notebook or it is damaged.

    nbformat writes the metadata after the cells: it is enough to read the end of a file.
    """
    try:
        with open(out, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            for length in (END, size):
                file.seek(max(0, size - length))
                _, found, metadata = file.read().rpartition(b'\n "metadata": {')
                if found:
                    return json.loads(b'{"metadata": {' + metadata)["metadata"]["nadkit"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _run(
    chapter: Chapter, values: Mapping[str, Any], part: Path, live: bool, line: Config
) -> tuple[str | None, type[RunFailed]]:
    """Run the chapter into `part` and return what went wrong, if anything, and what to raise then."""
    # Papermill reports every failure to its log as well: we report it once, in our words.
    # And after Ctrl-C asyncio may still report a kernel that died.
    for log in ("papermill", "asyncio"):
        logging.getLogger(log).setLevel(logging.CRITICAL)
    try:
        _execute(chapter, values, part, live, line)
    except PapermillExecutionError as error:
        return _describe_error(error), RunFailed
    except DeadKernelError:
        return f"the kernel died (out of memory?) in {_last_started(part)}", KernelDied
    except NoSuchKernel as error:
        installed = KernelSpecManager().find_kernel_specs()
        problem = (
            f"the notebook asks for the Jupyter kernel {error.name!r}, which is not installed: "
            f"{did_you_mean(error.name, installed)} Chapters use 'python3', the environment that "
            "nadkit itself runs in"
        )
        return problem, RunFailed
    except RuntimeError as error:
        return f"the kernel did not start: {error}", RunFailed
    except KeyboardInterrupt:
        # Python warns of a coroutine that Ctrl-C met before its first step, when the last reference to it goes.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        raise
    return None, RunFailed


class _Engine(NBClientEngine):
    """Papermill's engine, which writes the notebook when its run ends, however it ends.

    Papermill writes it before and after every cell. With many figures in it, that took up to a third of the run.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **options: object) -> None:
        path, nb_man.output_path = nb_man.output_path, None
        try:
            super().execute_managed_notebook(nb_man, kernel_name, **options)
        finally:
            nb_man.output_path = path


papermill_engines.register("nadkit", _Engine)


def _execute(chapter: Chapter, values: Mapping[str, Any], part: Path, live: bool, line: Config, tries: int = 3) -> None:
    """Let papermill run the chapter into `part`; start its kernel again if it does not answer.

    On a busy machine it may not, and none of the chapter has run then.
    """
    spec = chapter.notebook["metadata"].get("kernelspec", {})
    try:
        papermill.execute_notebook(
            _readable(chapter.path),
            _literal(part),
            parameters={n: v for n, v in values.items() if v != chapter.parameters[n].default},
            engine_name="nadkit",
            kernel_name=spec.get("name", "python3"),
            language="python",
            cwd=chapter.path.parent,
            progress_bar={"desc": chapter.name, "leave": False, "disable": not live},
            stderr_file=sys.stderr if live else None,
            # The kernel's own log goes to the terminal, not into the notebook, and says nothing useful.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL", f"--config={kernel.__file__}"],
            config=line,
        )
    except RuntimeError as error:
        if tries == 1 or not any(said in str(error) for said in ("didn't respond", "died before replying")):
            raise
        _execute(chapter, values, part, live, line, tries - 1)


@contextmanager
def _line_to_kernel() -> Iterator[Config]:
    """Let a kernel be spoken to by sockets in a folder of its own, where the system has such.

    Two kernels that start at the same moment may pick the same ports; one of them then ends with a traceback.
    """
    # A kernel that is killed while it starts may still make a socket while the folder goes.
    with TemporaryDirectory(prefix="nadkit-", ignore_cleanup_errors=True) as folder:
        path = f"{folder}/kernel"
        yield Config(KernelManager={"transport": "ipc", "ip": path} if _holds_socket(f"{path}-5") else {})


def _holds_socket(path: str) -> bool:
    """Return whether a socket can be at a path: not everywhere, not in every file system, and not if it is too long."""
    with suppress(AttributeError, OSError), socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
        os.unlink(path)
        return True
    return False


@contextmanager
def environment_of(folder: Path, more: Mapping[str, str]) -> Iterator[None]:
    """Let the kernels that start in the block find the modules in `folder` and the data that we find."""
    given = dict(os.environ)
    os.environ.update(more)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [given.get("PYTHONPATH"), str(folder)]))
    if data := os.environ.get("NADKIT_DATA"):
        os.environ["NADKIT_DATA"] = str(folder.joinpath(files.expanded(data)).absolute())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(given)


@contextmanager
def _no_process_left() -> Iterator[None]:
    """End what the block started and left running, such as a kernel that Ctrl-C met while it started.

    A kernel that died leaves behind what it had started, which is no child of ours any more.
    """
    os.environ[RUN] = mark = secrets.token_hex(8)
    this = psutil.Process()
    before = this.children(recursive=True)
    try:
        yield
    finally:
        for process in set(this.children(recursive=True)).difference(before):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        kill_marked(RUN, mark)


def _readable(path: Path) -> str | nbformat.NotebookNode:
    """Return what papermill takes for a notebook: its path or, where a byte order mark stands before it, the rest."""
    text = path.read_text(encoding="utf-8")
    return nbformat.reads(text[1:], as_version=4) if text.startswith("\ufeff") else _literal(path)


def _literal(path: Path) -> str:
    # Papermill treats its paths as format strings.
    return str(path).replace("{", "{{").replace("}", "}}")


def _describe_error(error: PapermillExecutionError) -> str:
    lines = strip_color("\n".join(error.traceback)).splitlines()[-TRACEBACK_LINES:]
    headline = f"cell [{error.exec_count}] failed: {error.ename}: {error.evalue}"
    return "\n".join([headline, *(f"    {line}" for line in lines)])


def _last_started(part: Path) -> str:
    cells = nbformat.read(part, as_version=4).cells
    started = [c for c in cells if c.metadata.get("papermill", {}).get("start_time")]
    first_lines = cell_source(started[-1]).strip().splitlines()[:3] if started else []
    return "\n".join(["this cell:", *(f"    {line}" for line in first_lines)])


def _incomplete(notebook: nbformat.NotebookNode) -> str | None:
    # Papermill's own record calls cells completed that never ran: look at what they left behind.
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if any(output.output_type == "error" for output in cell.outputs):
            return f"cell {number} of the notebook holds an error"
        if cell.execution_count is None:
            return f"cell {number} of the notebook did not run"
    return None


def _finish(notebook: nbformat.NotebookNode, record: dict[str, Any]) -> None:
    """Put our record, with each cell's seconds, into the notebook in place of papermill's; fold the injected cell."""
    notebook.metadata.pop("papermill", None)
    durations = {cell.id: cell.metadata.get("papermill", {}).get("duration") for cell in notebook.cells if "id" in cell}
    record["cells"] = {id: round(seconds, 1) for id, seconds in durations.items() if seconds and seconds >= 0.1}
    notebook.metadata["nadkit"] = dict(record)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell_tags(cell):
            cell.metadata.tags.append("hide-input")
        if cell.cell_type == "code":
            cell.outputs = _last_frames(cell.outputs)


def _last_frames(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Keep of progress bars what a terminal would show in the end; thousands of frames would swell the notebook."""
    streams = [output for output in outputs if output.get("name") == "stderr"]
    if not streams:
        return outputs
    lines = "".join(stream.text for stream in streams).split("\n")
    streams[0].text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return [output for output in outputs if output.get("name") != "stderr" or output is streams[0]]
