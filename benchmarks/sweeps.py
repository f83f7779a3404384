"""Sweeps: what a run costs above papermill alone, and how long 10,000 points take to check and look up.

    python -m benchmarks.sweeps [--runs 4] [--rounds 5] [--points 10000]

Both contenders run the same nearly empty notebook in the same worker process, one run after the other.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import nbformat
import papermill

from benchmarks.timing import in_turns
from nadkit.book import sweep
from nadkit.book.chapters import Chapter, load
from nadkit.book.prints import result_printer
from nadkit.book.slots import Slots


def make_book(root: Path) -> Chapter:
    """Write a book of one nearly empty chapter and return that."""
    parameters = nbformat.v4.new_code_cell("n: int = 0  # of what [0..]", metadata={"tags": ["parameters"]})
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell("n")], metadata=spec)
    (root / "book").mkdir()
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/one\n")
    nbformat.write(notebook, root / "book" / "one.ipynb")
    return load(root, "one")


def alone(source: Path, out: Path, n: int) -> None:
    """Run the notebook by papermill and nothing else."""
    quiet = {"progress_bar": False, "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"]}
    papermill.execute_notebook(source, out, parameters={"n": n}, kernel_name="python3", **quiet)


def overhead(chapter: Chapter, folder: Path, runs: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a run by papermill alone, and in a sweep."""
    fresh = itertools.count()
    with Slots(1) as slots:

        def by_papermill() -> None:
            for n in range(runs):
                slots.submit(alone, chapter.path, folder / "alone.ipynb", n).result()

        def by_sweep() -> None:
            plan = sweep.make_plan(chapter, {"n": range(runs)}, out=folder / f"sweep-{next(fresh)}")
            done = sweep.run(plan, slots)
            assert done.counts == {"finished": runs}, done.counts

        seconds = in_turns({"papermill alone": by_papermill, "in a sweep": by_sweep}, rounds)
    return {name: time / runs for name, time in seconds.items()}


def look_up(chapter: Chapter, folder: Path, points: int) -> tuple[float, float]:
    """Return the seconds that a plan takes when no point is finished, and when all are."""
    axes = {"n": range(points)}
    start = time.perf_counter()
    plan = sweep.make_plan(chapter, axes, out=folder / "many")
    first = time.perf_counter() - start
    mark = result_printer(chapter)
    about = {"chapter": chapter.name, "profile": plan.profile, "fixed": {}, "swept": ["n"]}
    plan.folder.mkdir()
    (plan.folder / sweep.PLAN).write_text(json.dumps(about))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x" * 20_000)], metadata={"nadkit": "RECORD"})
    text = nbformat.writes(notebook)
    for point in plan.points:
        record = {"status": "finished", "result_print": mark(point.values)}
        point.out.write_text(text.replace('"RECORD"', json.dumps(record)))
    start = time.perf_counter()
    again = sweep.make_plan(chapter, axes, out=plan.folder)
    assert again.counts == {"unchanged": points}, again.counts
    return first, time.perf_counter() - start


def main() -> None:
    """Run the benchmark the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (root := Path(folder) / "book").mkdir()
        chapter = make_book(root)
        seconds = overhead(chapter, Path(folder), options.runs, options.rounds)
        for name, each in seconds.items():
            print(f"{name:<16} {1000 * each:7.0f} ms a run")
        print(f"{'overhead':<16} {1000 * (seconds['in a sweep'] - seconds['papermill alone']):7.0f} ms a run")
        none, every = look_up(chapter, Path(folder), options.points)
        print(f"{options.points:,} points: {none:.2f} s if none is finished, {every:.2f} s if all are")


if __name__ == "__main__":
    main()
