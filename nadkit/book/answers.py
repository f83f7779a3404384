"""Answers: how a run answers the questions of its chapter, in words computed from its numbers.

A chapter ends in "What we found" with one call, `show([answer(...), ...], recorded)`. A rerun gives its own answers.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nadkit.book import results
from nadkit.book.claims import parse_bound, within
from nadkit.names import with_error

if TYPE_CHECKING:  # statistics take a second to import
    from nadkit.book.records import Record
    from nadkit.stats import Measured

YES, NO, OPEN, UNMEASURED = "yes", "no", "not clear", "not measured"


def answer(
    question: str,
    found: "Measured | float | str | None",
    yes_if: str = "",
    *,
    measure: str = "",
    words: tuple[str, str, str] = (YES, NO, OPEN),
) -> dict[str, str]:
    """Return a question, its answer, and the number behind it.

    `found` is a number, of the kind that `measure` names and with its uncertainty if it has one; None if nothing could
    be measured; or the answer itself, in words. `yes_if` is a bound such as "> 0" (`claims.parse_bound`). The answer is
    the first of the `words` if the whole interval is within the bound, the second if none of it is, else the third. If
    the second word is not "no" (such as "better" and "worse"), a value of exactly 0 gets the third. Without a bound the
    number is the answer.

    Raises:
        ValueError: the question has no question mark, or the bound cannot be read.
    """
    if not question.endswith("?"):
        raise ValueError(f"question: expected one with a question mark at its end, got {question!r}")
    if isinstance(found, str):
        return {"question": question, "answer": found, "measured": ""}
    value, error = getattr(found, "value", found), getattr(found, "error", 0.0)
    if value is None or not math.isfinite(value) or not math.isfinite(error):
        return {"question": question, "answer": UNMEASURED, "measured": measure}
    number = with_error(value, error)
    if not yes_if:
        return {"question": question, "answer": number, "measured": measure}
    verdict = within(value, error, yes_if)
    if value == error == 0 and words[1] != NO:
        verdict = 2
    return {
        "question": question,
        "answer": words[verdict],
        "measured": f"{measure}: {number}" if measure else number,
    }


def weakest(found: Sequence["Measured"], bound: str) -> "Measured":
    """Return the one of several measurements that decides whether all of them are within a bound, such as "> 0".

    That is one that lies outside the bound, if there is one; else one that lies partly outside. Of several such, it is
    the one whose interval reaches furthest towards the wrong side.
    """
    order = {1: 0, 2: 1, 0: 2}  # the values of `within`: outside, partly, inside
    tests = parse_bound(bound)

    def key(one: "Measured") -> tuple[int, float]:
        room = min(test.room(one.value, one.error) for test in tests)
        return order[within(one.value, one.error, bound)], room

    return min(found, key=key)


def show(answers: Sequence[dict[str, str]], recorded: Sequence["Record"] = ()) -> None:
    """Store and display answers as the table `results.ANSWERS`; in tabs beside it those of recorded runs."""
    import pandas as pd

    alt = "The questions of this chapter, the answers, and the numbers behind them, with their errors."
    table = pd.DataFrame(answers, columns=["question", "answer", "measured"])
    results.show(results.ANSWERS, table, alt=alt, recorded=recorded)
