"""What happens in a chapter's kernel before the chapter: ipykernel executes this file as its configuration.

It needs nothing but Python, and runs before ipykernel has opened anything.
"""

import atexit
import gc
import logging
import os
from contextlib import suppress
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
"""The niceness of a session: Linux may share the processors out by session, and a process's counts only within one."""
SELDOM = (100_000, 20, 100)
"""After so many new objects Python is to look for garbage. Its own 700 are far too few where libraries like torch bring
hundreds of thousands that stay: each look goes through them."""


def prepare() -> None:
    """Prepare this process for a run that disturbs nobody, and for a quick end."""
    # The loop below the kernel may tell, with a traceback that goes past the notebook to the terminal, that a socket
    # was closed when the kernel ended.
    logging.getLogger("tornado").setLevel(logging.CRITICAL)
    # A kernel has a session of its own, which is to be as nice as who started it.
    if (niceness := os.nice(0)) > 0 and AUTOGROUP.exists():
        with suppress(OSError):  # somebody else's system may refuse, and the run goes on
            AUTOGROUP.write_text(str(niceness))
    # Python ends by looking several times through all of torch for garbage, a second a chapter. What is registered
    # first runs last, after all that the chapter and ipykernel asked for.
    atexit.register(gc.freeze)
    gc.set_threshold(*SELDOM)


if "get_config" in globals():  # put there by ipykernel; not so where this module is imported
    prepare()
