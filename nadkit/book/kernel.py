"""What happens in a chapter's kernel before the chapter: ipykernel executes this file as its configuration.

It needs nothing but Python, and runs before ipykernel has opened anything.
"""

import atexit
import gc
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")
"""The niceness of a session: Linux may share the processors out by session, and a process's counts only within one."""
SELDOM = (100_000, 10, 10)
"""After so many new objects, and so many of these looks, Python is to look for garbage, at last among all objects. Its
own 700 or 2,000 are few where a library like torch brings hundreds of thousands that stay."""
CONTROL = "Control"
"""ipykernel's name of its thread that hears requests to end."""
PATIENCE = 1.0
"""Seconds that a kernel's end waits for that thread, which does not end where nobody asked it to."""


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
    # Python waits for such a thread before it does what was registered for its exit.
    threading.Thread(target=let_control_end).start()


def let_control_end() -> None:
    """Wait for the end of the main thread, then for that of the thread that was asked to end the kernel.

    At exit ipykernel closes the pipes of all its threads. Where this one still sends on its own, libzmq aborts.
    """
    threading.main_thread().join()
    for thread in threading.enumerate():
        if thread.name == CONTROL:
            thread.join(PATIENCE)


if "get_config" in globals():  # put there by ipykernel; not so where this module is imported
    prepare()
