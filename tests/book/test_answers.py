"""Answers of a chapter: the words follow from the numbers."""

import pytest

from nadkit.book import answers
from nadkit.book.answers import answer
from nadkit.stats import Measured


@pytest.mark.parametrize(
    ("found", "yes_if", "said", "measured"),
    [
        (Measured(0.5, 0.1), "> 0", "yes", "AUC: 0.50 ± 0.10"),
        (Measured(-0.5, 0.1), "> 0", "no", "AUC: -0.50 ± 0.10"),
        (Measured(0.05, 0.1), "> 0", "not clear", "AUC: 0.05 ± 0.10"),
        (Measured(2.0, 0.1), "between 0 and 1", "no", "AUC: 2.00 ± 0.10"),
        (0.25, "<= 0.25", "yes", "AUC: 0.25"),
        (Measured(0.5, 0.1), "", "0.50 ± 0.10", "AUC"),
        ("16 networks", "", "16 networks", ""),
        (None, "> 0", "not measured", "AUC"),
        (float("nan"), "", "not measured", "AUC"),
        (Measured(0.5, float("inf")), "> 0", "not measured", "AUC"),
    ],
)
def test_an_answer_follows_from_the_number(found, yes_if, said, measured):
    given = answer("Is it so?", found, yes_if, measure="AUC")
    assert given == {"question": "Is it so?", "answer": said, "measured": measured}


def test_an_answer_in_other_words():
    words = ("more", "less", "no difference beyond the error")
    given = [answer("More?", Measured(v, 1), "> 0", words=words)["answer"] for v in (2, -2, 0)]
    assert given == list(words)


def test_exactly_nothing_is_not_worse():
    nothing = Measured(0.0, 0.0)
    assert answer("Better?", nothing, "> 0", words=("better", "worse", "no difference"))["answer"] == "no difference"
    assert answer("Is it more?", nothing, "> 0")["answer"] == "no"
    assert answer("Is it at least as good?", nothing, ">= 0")["answer"] == "yes"


def test_the_weakest_says_whether_all_are_within_a_bound():
    yes, nearer, unclear, no = Measured(5, 1), Measured(2, 1), Measured(1, 9), Measured(-1, 0.5)
    assert answers.weakest([yes, nearer, unclear, no], "> 0") == no
    assert answers.weakest([yes, unclear, nearer], "> 0") == unclear
    assert answers.weakest([yes, nearer], "> 0") == nearer


def test_the_weakest_of_an_upper_bound_reaches_highest():
    far, near, wide = Measured(0.01, 0.001), Measured(0.04, 0.001), Measured(0.03, 0.015)
    assert answers.weakest([far, near, wide], "<= 0.05") == wide
    assert answers.weakest([far, near], "<= 0.05") == near
    negative = Measured(-0.045, 0.001)
    assert answers.weakest([far, near, negative], "within 0.05") == negative
    assert answers.weakest([Measured(0.2), Measured(0.9), Measured(0.4)], "between 0 and 1") == Measured(0.9)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"question": "It is so."}, "question mark"), ({"yes_if": "large"}, "holds_if: expected")]
)
def test_bad_questions_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        answer(**{"question": "Is it?", "found": 1.0, "yes_if": "> 0"} | wrong)


def test_answers_are_a_table_of_the_run(capsys):
    answers.show([answer("Is it so?", 1.0, "> 0"), answer("How many?", "16")])
    assert "Is it so?" in capsys.readouterr().out
