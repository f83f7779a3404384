"""Witnesses: how many numbers of the records leave their tolerances on this machine, and how many with another seed.

    python -m benchmarks.witnesses [CHAPTER ...] [--root .]

A witness tells rounding from another experiment if the first count is small and the second large. On the kind of
processor that a witness was made on, all must agree, and only the second count says something. The published data must
be at hand that the witnesses were made with (NADKIT_DATA).
"""

import argparse
import functools
import json
import math
from pathlib import Path

from nadkit.book import prints, records, witness
from nadkit.book.chapters import find_chapters, load


@functools.lru_cache(maxsize=4)  # records of a chapter mostly have witnesses of one size
def run(root: Path, name: str, values: str) -> witness.Witness:
    """Run a chapter with the values of a JSON object."""
    return witness.observe(load(root, name), json.loads(values))


def left(record: records.Record, root: Path, seed: int = 0) -> str:
    """Say how many series of a record's witness left their tolerances, with the seed raised by `seed`."""
    values = witness.parameters(load(root, record.chapter), record.witness.parameters)
    if seed and "seed" not in values:
        return "no seed"
    changed = values | ({"seed": values["seed"] + seed} if seed else {})
    found = witness.compare(record.witness, run(root, record.chapter, json.dumps(changed)))
    largest = max(found.differing.values(), default=found.largest)
    by = f"by {100 * largest:.2g} %" if math.isfinite(largest) else "other words"
    return f"{found.jumped + len(found.differing):3d} of {found.compared:3d} ({by})"


def main() -> None:
    """Run the benchmark the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER")
    parser.add_argument("--root", type=Path, default=Path())
    options = parser.parse_args()
    print(f"this processor: {prints.processor()}")
    print("series that left their tolerances, of those compared, and the largest difference: here; with another seed")
    for name in options.chapters or find_chapters(options.root):
        for record in records.recorded(load(options.root, name).name, options.root):
            here, other = left(record, options.root), left(record, options.root, seed=1)
            print(f"{record.key[:50]:<50} {record.witness.processor}: {here}; {other}", flush=True)


if __name__ == "__main__":
    main()
