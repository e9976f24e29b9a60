"""Server-sent events: how a growing list is followed by a client that may lose its connection at any time.

What is followed is said by a function that looks for what is new; this module asks it again and again, and writes what
it finds. It knows no engine. Looking is polling: events are committed by any process, and hints of them can be lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.sse import format_sse_event
from pydantic_core import to_json
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from durable.errors import StoreUnavailable
from durable.http.limits import allow
from durable.http.problems import Problem
from durable.http.runtime import HttpOptions

_FIRST, _MOST = 0.05, 1.0
"""Seconds between two looks: at once after something came, then doubling."""

_SHARE = 20
"""A stream that looks at a long history looks less often: it spends one part in so many on looking."""

_KEEP_ALIVE = 15.0
"""Seconds without an event after which a comment is sent, so that nobody in between takes the connection for dead."""

_GOODBYE = 10.0
"""Seconds more in which a client that does not read has to take what was written."""

_RETRY = 1000
"""Milliseconds after which a client that lost its connection comes again."""


class Event(NamedTuple):
    """One event. ``id`` comes back as ``Last-Event-ID``; ``data`` is a JSON value."""

    id: str
    data: Any
    name: str | None = None


class Look(NamedTuple):
    """What is new, and whether there can be more."""

    events: Sequence[Event]
    over: bool = False


Source = Callable[[], Awaitable[Look]]
"""Looks for what came since it was called before."""


class Streams:
    """The event streams of one application.

    Args:
        options: ``max_streams`` and ``stream_timeout``.
    """

    def __init__(self, options: HttpOptions) -> None:
        self._most = options.max_streams
        self.lifetime = options.stream_timeout
        self._open = 0
        self._closing = asyncio.Event()

    @classmethod
    def of(cls, app: FastAPI) -> Streams:
        """Those of ``app``."""
        found: Streams | None = getattr(app.state, "streams", None)
        if found is None:
            found = app.state.streams = cls(app.state.durable.options)
        return found

    def close(self) -> None:
        """End all of them: a server that stops would wait for their clients."""
        self._closing.set()

    @contextmanager
    def opened(self) -> Generator[None]:
        """The place of one stream."""
        if self._closing.is_set():
            raise Problem(503, "stopping", "the server is stopping", headers={"Retry-After": "1"})
        if self._open >= self._most:
            raise Problem(429, "too-many-streams", f"{self._most} event streams are open", headers={"Retry-After": "5"})
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def closing(self, within: float) -> bool:
        """Wait so many seconds; True as soon as the streams are to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._closing.wait()
        return self._closing.is_set()


async def stream(request: Request, source: Source) -> Response:
    """The answer that follows ``source``: 204 when a client comes again to what is over, so that it stays away."""
    first = await source()  # what cannot be followed is an error with a status of its own
    if first.over and not first.events:
        return Response(status_code=204)
    streams = Streams.of(request.app)
    allow(request, streams.lifetime + _GOODBYE)
    return EventStream(streams, first, source)


class EventStream(StreamingResponse):
    """An event stream; it has its place from the first byte to the last."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, first: Look, source: Source) -> None:
        # Proxies must not keep what comes until there is more of it.
        super().__init__(
            _follow(streams, first, source), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.opened():
            await super().__call__(scope, receive, send)


async def _follow(streams: Streams, first: Look, source: Source) -> AsyncIterator[bytes]:
    ends = time.monotonic() + streams.lifetime
    yield format_sse_event(comment="durable", retry=_RETRY)
    look, pause, cost, spoke = first, _FIRST, 0.0, time.monotonic()
    while True:
        for event in look.events:
            yield format_sse_event(data_str=to_json(event.data).decode(), event=event.name, id=event.id)
        if look.over:
            return
        pause = _FIRST if look.events else min(pause * 2, _MOST)
        started = time.monotonic()
        if look.events:
            spoke = started
        elif started - spoke >= _KEEP_ALIVE:
            yield format_sse_event(comment="still here")
            spoke = started
        if started >= ends or await streams.closing(max(pause, min(cost * _SHARE, _KEEP_ALIVE))):
            return
        started = time.monotonic()
        try:
            look = await source()
            cost = time.monotonic() - started
        except StoreUnavailable:  # the stream outlives an outage: what came meanwhile is found after it
            look = Look(())
