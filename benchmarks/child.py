"""The process in which a contestant works: `python -m benchmarks.child <JSON>`, started by the lab and ended by it.

It says that it is ready when everything is imported, begins when it is told to, and says what it measured: each as one
line of JSON.
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
    spec = json.loads(sys.argv[1])
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
