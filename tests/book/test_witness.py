"""Witnesses: how two runs of one size are compared, and what tells rounding from other code."""

import math
from dataclasses import replace

import pytest
from toy import make_notebook

from nadkit.book import witness
from nadkit.book.chapters import BadInput, load
from nadkit.book.witness import Series, Witness, WitnessFailed, compare, distance


def a_witness(processor: str = "one", **series: Series) -> Witness:
    return Witness({}, {"torch": "2.11.0"}, processor, [], [], series)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([0.0], [0.5], 1),
        ([1, None, "a", True], [1, None, "a", True], 0),
        ([1.0], [1.0, 1.0], math.inf),
        ([1.0], [None], math.inf),
        (["a"], ["b"], math.inf),
        ([True], [False], math.inf),
        ([], [], 0),
    ],
)
def test_the_distance_of_two_series(one, other, expected):
    assert distance(one, other) == distance(other, one) == expected


def test_on_the_same_processor_every_digit_counts():
    then = a_witness(a=Series([1.0]), b=Series([5.0], None), gone=Series([1.0]))
    assert compare(then, then).words == "all 2 series of numbers agree to the last digit"
    comparison = compare(then, a_witness(a=Series([1.00001]), b=Series([6.0]), new=Series([2.0])))
    assert (comparison.exact, comparison.compared, list(comparison.differing)) == (True, 1, ["a"])
    assert not comparison.agrees
    fewer = compare(then, a_witness(a=Series([1.0])))
    assert fewer.agrees
    assert "1 are no longer computed" in fewer.words


def test_on_the_same_processor_chaos_repeats():
    """What rounding amplifies tells of other code all the same, but times do not repeat."""
    then = a_witness(accuracy=Series([0.5], 0.3, repeats=True), seconds=Series([0.5], None))
    now = {"accuracy": Series([0.6]), "seconds": Series([0.7])}
    assert list(compare(then, a_witness(**now)).differing) == ["accuracy"]
    assert compare(then, a_witness(**now | {"accuracy": Series([0.5])})).agrees
    elsewhere = compare(then, a_witness("another", **now))
    assert (elsewhere.of, elsewhere.differing) == (0, {})


def test_the_order_of_a_sum_is_no_other_experiment():
    sums = 0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1
    then, now, other = (a_witness(**{"claim c": Series([1.0, x])}) for x in (*sums, 0.6 + 1e-9))
    assert then != now
    assert compare(then, now).agrees
    assert not compare(then, other).agrees


@pytest.mark.parametrize(
    ("spread", "value", "agrees"),
    [(0, 1.00001, True), (0, 1.0001, False), (0.001, 1.002, True), (0.001, 1.004, False)],
)
def test_elsewhere_rounding_is_allowed_as_far_as_it_was_measured(spread, value, agrees):
    then = a_witness(a=Series([1.0], spread), chaotic=Series([1.0], 0.5), words=Series(["x"], None))
    now = a_witness("another", a=Series([value]), chaotic=Series([9.0]), words=Series(["y"]))
    comparison = compare(then, now)
    assert (comparison.exact, comparison.compared, comparison.agrees) == (False, 1, agrees)
    assert (not comparison.differing) is agrees


@pytest.mark.parametrize(
    ("processor", "values", "agrees"),
    [
        ("another", {"a": 1.01}, True),
        ("another", {"a": 1.03}, False),  # more than any series may
        ("another", {"a": 1.01, "b": 1.01}, False),  # more than one in ten
        ("one", {"a": 1.01}, False),  # where nothing may
    ],
)
def test_elsewhere_one_series_in_ten_may_jump(processor, values, agrees):
    """Rounding may put one image into another class, in few of the series."""
    names = "abcdefghij"
    then = a_witness(**{name: Series([1.0]) for name in names})
    now = a_witness(processor, **{name: Series([values.get(name, 1.0)]) for name in names})
    comparison = compare(then, now)
    assert comparison.agrees is agrees
    assert set(comparison.differing) == (set() if agrees else set(values))
    assert comparison.jumped == agrees
    assert agrees == ("1 of them by more than rounding did" in comparison.words)


def test_nothing_to_compare_is_no_agreement():
    words = Series(["x", None])
    comparison = compare(a_witness(a=Series([1.0]), words=words), a_witness(b=Series([1.0]), words=words))
    assert not comparison.agrees
    assert "none of the 1 series of numbers" in comparison.words


def test_a_witness_comes_back_as_it_was():
    then = replace(a_witness(a=Series([1.0, None, "x"], None)), parameters={"n": [1]})
    assert Witness.from_json(then.to_json()) == then


KEEPS = "from nadkit.book import results\nresults.keep(double=2 * n, scaled=n * scale)\nif n == 13: 1 / 0"


def test_the_size_is_smoke_then_witness_then_what_is_given(make_book):
    profiles = {
        "smoke": {"one": {"n": 2, "scale": 0.1, "method": "sum"}},
        "witness": {"one": {"n": 4, "method": "mean"}},
    }
    chapter = load(make_book(profiles, one=make_notebook(code=(KEEPS,))), "one")
    assert witness.parameters(chapter) == {"n": 4, "scale": 0.1, "method": "mean", "sizes": [1, 2]}  # a default, too
    given = witness.parameters(chapter, {"scale": 0.2, "of_old": 1})
    assert given == {"n": 4, "scale": 0.2, "method": "mean", "sizes": [1, 2]}
    with pytest.raises(BadInput, match="expected a value in the range"):
        witness.parameters(chapter, {"n": 1000})


def test_a_witness_holds_what_the_chapter_stores(make_book, short_witness, monkeypatch):
    monkeypatch.chdir(make_book({"smoke": {"one": {"n": 2}}}, one=make_notebook(code=(KEEPS,))))
    said = []
    made = witness.make(load(witness.Path.cwd(), "one"), said.append)
    assert made.series == {"number double": Series([4], 0.0, True), "number scaled": Series([1.0], 0.0, True)}
    assert made.parameters["n"] == 2
    assert made.processor == witness.prints.processor()
    assert said == ["one: making the witness, 3 runs at smoke size"]


def test_what_does_not_repeat_is_known(make_book, short_witness, monkeypatch):
    keeps = "import time\nfrom nadkit.book import results\nresults.keep(n=n, now=time.time_ns() % 10**6)"
    monkeypatch.chdir(make_book(one=make_notebook(code=(keeps,))))
    made = witness.make(load(witness.Path.cwd(), "one"), print)
    assert {name: series.repeats for name, series in made.series.items()} == {"number n": True, "number now": False}


def test_a_chapter_that_does_not_run_is_named(make_book):
    chapter = load(make_book(one=make_notebook(code=(KEEPS,))), "one")
    with pytest.raises(WitnessFailed, match=r"one does not run at the size of the witness: .*ZeroDivisionError"):
        witness.observe(chapter, witness.parameters(chapter, {"n": 13}))


ANSWERS = """\
from nadkit.book import answers, results
import pandas as pd
results.show("numbers", pd.DataFrame({"x": [1, 2]}), alt="Numbers.")
answers.show([answers.answer("Is there more?", None, "> 0")])
"""


def test_answers_are_no_numbers_of_their_own(make_book):
    root = make_book({}, one=make_notebook("One", code=(ANSWERS,)))
    chapter = load(root, "one")
    assert list(witness.observe(chapter, witness.parameters(chapter)).series) == ["table numbers, x"]


PICTURE = """\
from nadkit.book import results
from nadkit import plots
import pandas as pd
def draw(frame):
    raise RuntimeError("drawn")
results.show("numbers", pd.DataFrame({"x": [1, 2]}), draw, alt="Numbers.")
"""


def test_nothing_is_drawn_for_a_witness(make_book):
    """Nobody looks at it."""
    root = make_book({}, one=make_notebook("One", code=(PICTURE,)))
    chapter = load(root, "one")
    assert witness.observe(chapter, witness.parameters(chapter)).series["table numbers, x"].values == [1, 2]
