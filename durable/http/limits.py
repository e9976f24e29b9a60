"""What one request may use: the size of its parts, the time it takes, and its share of the server.

An ASGI middleware, so that it stands before routing and before anything that reads the body. It knows no route; one
that takes longer by design, a long poll or an event stream, says so with ``allow``. What a client does before its
headers are complete only the server sees: see ``durable.http.server``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable.http.outage import Allowance, Outage
from durable.http.problems import Problem
from durable.http.runtime import HttpOptions

_TARGET = 8 * 1024
"""Bytes of a path with its query: what is asked for is in the path, what is long belongs into the body."""

_BODIES = 8
"""Bodies of the largest size that all requests together may hold in memory while they are handled."""

_AGAIN = {"Retry-After": "1"}
_ALLOWANCE = "durable.allowance"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def allow(request: Request, seconds: float) -> None:
    """Let this request take ``seconds`` from now on, whatever ``request_timeout`` says.

    Args:
        request: The one that is being handled.
        seconds: What a long poll waits, or an event stream lasts, and a little more to say goodbye.
    """
    allowance: Allowance | None = request.scope.get(_ALLOWANCE)
    if allowance is not None:
        allowance.patient = True
        allowance.extend(seconds)


def too_deep(body: bytes | bytearray, limit: int) -> bool:
    """Whether JSON is nested more than ``limit`` levels. It takes no longer than to parse it, and no stack."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > limit:
            return True
    return False


class _Answer:
    """What goes to the client: the application's answer, until a limit has something to say."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.problem: Problem | None = None

    async def __call__(self, message: Message) -> None:
        if self.problem is None or self.begun:
            self.begun = True
            await self._send(message)


class LimitsMiddleware:
    """Answers what goes beyond the limits, and hands everything else on; a body in one piece, once it is asked for.

    Args:
        app: What it stands before.
        options: ``max_body``, ``max_header``, ``max_depth``, ``max_requests``, ``body_timeout``, ``request_timeout``.
        ask: Returns when the store has answered: while it does not, requests end early. None: it is never asked.
    """

    def __init__(self, app: ASGIApp, options: HttpOptions, ask: Callable[[], Awaitable[object]] | None = None) -> None:
        self._app = app
        self._options = options
        self._outage = Outage(ask)
        self._handled = 0  # requests
        self._held = 0  # bytes of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            with self._share():
                await self._handle(scope, receive, answer)
        except Problem as error:
            answer.problem = answer.problem or error
        except asyncio.CancelledError:  # the server has waited for it long enough
            if not answer.begun:
                await Problem(503, "stopping", "the server is stopping", headers=_AGAIN).response()(
                    scope, receive, send
                )
            raise
        if answer.problem is not None and not answer.begun:
            await answer.problem.response()(scope, receive, send)

    @contextmanager
    def _share(self) -> Generator[None]:
        if self._handled >= self._options.max_requests:
            raise _busy("too many requests are being handled")
        self._handled += 1
        try:
            yield
        finally:
            self._handled -= 1

    async def _handle(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        length = self._length(scope)
        if length == 0:
            await self._within(scope, receive, answer)
            return
        body = bytearray()
        unread = True

        async def whole() -> Message:
            """The body, when it is asked for: who asks was looked at by then."""
            nonlocal unread
            if not unread:
                return await receive()
            unread = False
            try:
                if not await self._read(body, receive):
                    return {"type": "http.disconnect"}
                self._check(body)
            except Problem as error:
                answer.problem = error  # whatever the application makes of it
                raise
            scope[_ALLOWANCE].extend(scope[_ALLOWANCE].seconds)  # the time to send it was the client's own
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        try:
            await self._within(scope, whole, answer)
        finally:
            self._held -= len(body)

    def _length(self, scope: Scope) -> int | None:
        """The length that is announced, 0 without a body; None: that is seen when it comes."""
        options, size, length, chunked = self._options, 0, 0, False
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            if name == b"content-length" and value.isdigit():
                length = int(value[:20])
            chunked = chunked or name == b"transfer-encoding"
        if size > options.max_header:
            raise Problem(431, "headers-too-large", f"the headers take more than {options.max_header:,} bytes")
        if len(scope["path"]) + len(scope["query_string"]) > _TARGET:
            raise Problem(414, "target-too-long", f"path and query take more than {_TARGET:,} bytes")
        if length > options.max_body:
            raise self._too_large()
        return None if chunked else length

    async def _read(self, body: bytearray, receive: Receive) -> bool:
        """Read the whole body; False when the client has gone before."""
        try:
            async with asyncio.timeout(self._options.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    chunk: bytes = message.get("body", b"")
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > self._options.max_body:
                        raise self._too_large()
                    if self._held > _BODIES * self._options.max_body:
                        raise _busy("the bodies of the requests that are being handled are too large together")
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            seconds = self._options.body_timeout
            # The rest of the body would be read as the next request's beginning.
            close = {"Connection": "close"}
            raise Problem(408, "body-too-slow", f"the body took more than {seconds:g} s", headers=close) from None

    def _check(self, body: bytearray) -> None:
        """What every parser would refuse too, in its own words, or its own way of breaking down."""
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise Problem(400, "malformed-json", f"the body is not UTF-8: {error.reason} at {error.start}") from None
        if too_deep(body, self._options.max_depth):
            raise Problem(400, "malformed-json", f"the body is nested more than {self._options.max_depth} levels deep")

    async def _within(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Call the application within the time of a request."""
        over: asyncio.Timeout | None = None
        try:
            async with self._outage.within(self._options.request_timeout) as allowance:
                over, scope[_ALLOWANCE] = allowance.timeout, allowance
                await self._app(scope, receive, answer)
        except TimeoutError:
            if over is None or not over.expired() or answer.begun:
                raise  # too late to say why: the server closes the connection, and the client sees half an answer
            if self._outage.away:
                detail = "the store does not answer; whether this was carried out is unknown"
                raise Problem(503, "store-unavailable", detail, headers=_AGAIN) from None
            detail = "there was no answer in time; whether this was carried out is unknown"
            raise Problem(503, "timeout", detail, headers=_AGAIN) from None

    def _too_large(self) -> Problem:
        # The connection stays open: what is still coming is thrown away by the server, which closes it after a while.
        # Closing at once would reset it under a client that sends on, and that would never read this answer.
        return Problem(413, "body-too-large", f"the body takes more than {self._options.max_body:,} bytes")


def _busy(detail: str) -> Problem:
    return Problem(429, "too-many-requests", detail, headers=_AGAIN)
