"""Python's garbage collector in a process whose only purpose is to be a worker. It knows nothing of workers."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

_YOUNG = 10_000
"""New objects before the collector looks at them. A flush holds some thousand for a few milliseconds: with Python's 700
it looks at each of them several times, for nothing."""


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
