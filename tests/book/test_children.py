"""Commands in processes of their own: what they answer, and how they end."""

import os
import sys

import pytest
from toy import make_notebook

from nadkit.book import children, witness
from nadkit.book.chapters import load
from nadkit.book.children import Child

INTERRUPTS = """\
import json, os, pathlib, signal, sys
def save(*_):
    pathlib.Path(os.environ["SAVED"]).touch()
    print(json.dumps({"error": "interrupted"}))
    sys.exit()
signal.signal(signal.SIGTERM, save)
os.kill(os.getppid(), signal.SIGINT)
while True:
    signal.pause()
"""


def test_an_interrupt_lets_a_witness_end_as_after_ctrl_c(make_book, monkeypatch, tmp_path):
    monkeypatch.setattr(children, "NADKIT", [sys.executable, "-c", INTERRUPTS])
    monkeypatch.setenv("SAVED", str(tmp_path / "saved"))
    chapter = load(make_book(one=make_notebook()), "one")
    with pytest.raises(KeyboardInterrupt):
        witness.observe(chapter, witness.parameters(chapter))
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("silent", [True, False])
def test_a_process_that_ends_without_an_answer_says_how(monkeypatch, silent):
    monkeypatch.setattr(children, "NADKIT", [sys.executable, "-c", "print('no', file=2 / 0)"])
    answer = Child("run", "one", environment=dict(os.environ), silent=silent).answer()
    assert answer["code"] == 1
    head, *more = answer["error"].splitlines()
    why = ": ZeroDivisionError: division by zero" if silent else ""
    assert head == f"one: its process ended with code 1{why}"
    assert any("Traceback" in line for line in more) is silent
