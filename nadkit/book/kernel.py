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
"""The niceness of a session: Linux may divide the processors among sessions; a process's niceness counts only within
one."""
SELDOM = (100_000, 10, 10)
"""Thresholds of Python's garbage collection: the new objects before a collection, then the collections before a larger
one, at last of all objects. Python's own 700 or 2,000 objects are few where a library like torch brings hundreds of
thousands that stay."""
CONTROL = "Control"
"""The name of ipykernel's thread that receives requests to shut down."""
PATIENCE = 1.0
"""Seconds that a kernel waits for that thread at its end; the thread does not end unless it was asked to."""


def prepare() -> None:
    """Prepare this process for a run that does not disturb other work, and for a quick end."""
    # When the kernel ends, its event loop may report a closed socket, with a traceback on the terminal and not in the
    # notebook.
    logging.getLogger("tornado").setLevel(logging.CRITICAL)
    # A kernel has a session of its own, which gets the niceness of the process that started it.
    if (niceness := os.nice(0)) > 0 and AUTOGROUP.exists():
        with suppress(OSError):  # a system may refuse; the run goes on
            AUTOGROUP.write_text(str(niceness))
    # At its end, Python searches all of torch for garbage several times, which takes a second per chapter. The function
    # registered first runs last, after all that the chapter and ipykernel registered.
    atexit.register(gc.freeze)
    gc.set_threshold(*SELDOM)
    # Python waits for this thread before it runs what was registered for its exit.
    threading.Thread(target=let_control_end).start()


def let_control_end() -> None:
    """Wait for the end of the main thread, then for that of the thread that was asked to end the kernel.

    At exit ipykernel closes the pipes of all its threads. If this thread is still sending on its pipe, libzmq aborts.
    """
    threading.main_thread().join()
    for thread in threading.enumerate():
        if thread.name == CONTROL:
            thread.join(PATIENCE)


if "get_config" in globals():  # ipykernel defines it; it is missing where this module is imported
    prepare()
