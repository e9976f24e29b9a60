"""Ties a child process to its parent: when the parent is gone, however it ended, the child ends too.

The parent holds the write end of the child's standard input. The system closes it with the parent, even after a
SIGKILL, and the child reads its end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def on_parent_exit(end: Callable[[], None]) -> None:
    """Call ``end``, in a thread, when standard input ends. A terminal is left alone: Ctrl-C works there."""
    if os.isatty(0):
        return

    def watch() -> None:
        # Not sys.stdin: a thread that holds its lock at the interpreter's end makes that end an abort.
        while os.read(0, 4096):
            pass
        end()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
