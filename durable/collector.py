"""Python's garbage collector in a process whose only purpose is to be a worker. It knows nothing of workers."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

_YOUNG = 50_000
"""New objects before the collector looks at them. A run that executes is some forty, and leaves none behind: with five
hundred of them under way Python's 700 has each looked at several times for nothing, and 10,000 still costs a twentieth
of the time."""


@contextmanager
def sparing_collector() -> Generator[None]:
    """Let the collector leave alone what is there now, and look less often at what comes.

    Modules, types and plans stay as long as the process does, and a look at all of them takes 40 ms, in which no run
    goes on. Together that is a sixth of the time of a busy worker. What a run leaves behind needs no collector.

    For the main of a process alone: a library must not change a setting of the process that it is used in.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
