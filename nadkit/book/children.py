"""Commands of nadkit that run in a process of their own, and what they answer."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

NADKIT = [sys.executable, "-m", "nadkit"]
GRACE = 120.0
"""Seconds that a command has to save its work when it is stopped."""
LAST_LINES = 12


class Child:
    """`nadkit COMMAND CHAPTER`, begun in a process of its own.

    Only the parent receives Ctrl-C, and passes it on once. What the command says on stderr goes to the terminal unless
    it is `silent`.
    """

    def __init__(
        self,
        command: str,
        chapter: str,
        *options: str,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        silent: bool = False,
        nice: int = 0,
    ) -> None:
        self._chapter = chapter
        self._process = subprocess.Popen(
            [*NADKIT, command, chapter, *options, "--json"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if silent else None,
            text=True,
            start_new_session=True,
            preexec_fn=(lambda: os.nice(nice)) if nice else None,
        )

    def answer(self, seconds: float | None = None) -> dict[str, Any]:
        """Wait until it ends, and return what it printed; `code` is there only where it ended without an answer.

        If the wait is interrupted, the command ends as after Ctrl-C, which leaves its checkpoints. It also does if it
        takes longer than `seconds`; then `subprocess.TimeoutExpired` is raised.
        """
        try:
            output, errors = self._process.communicate(timeout=seconds)
        except BaseException:
            self._stop()
            raise
        with suppress(ValueError):
            return json.loads(output)
        code, last = self._process.returncode, (errors or "").splitlines()[-LAST_LINES:]
        head = ": ".join([self._chapter, f"its process ended with code {code}", *last[-1:]])
        error = "\n".join([head, *last[:-1]])
        return {"status": "failed", "notebook": None, "error": error, "code": code}

    def end(self) -> None:
        """Let it end as after Ctrl-C, and do not wait; a shell's background jobs ignore SIGINT."""
        self._process.terminate()

    def _stop(self) -> None:
        self.end()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=GRACE)
        finally:  # also after another Ctrl-C
            self._process.kill()
            self._process.wait()
