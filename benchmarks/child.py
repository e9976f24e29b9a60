"""The process in which a contestant works: `python -m benchmarks.child`, started by the lab and ended by it.

It is told what to do, says that it is ready when everything is imported, begins when it is told to, and says what it
measured: each as one line of JSON. (No arguments: the address has a password, which every process could read there.)
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks import actions
from benchmarks.contestants import CONTESTANTS
from durable.collector import sparing_collector


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def measured(spec: dict[str, Any]) -> None:
    contestant = CONTESTANTS[spec["contestant"]](spec["url"], spec["in_flight"])
    action: Callable[..., Awaitable[Any]] = getattr(actions, spec["action"])
    say({"ready": True})
    await asyncio.to_thread(sys.stdin.readline)
    await action(contestant, say, **spec["arguments"])


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    try:
        import uvloop
    except ImportError:  # Windows
        factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner, sparing_collector():
        runner.run(measured(spec))


if __name__ == "__main__":
    main()
