"""``serve``: the HTTP runtime on an address, in this process and on this event loop, until it is stopped.

It decides who may reach the application at all: the address, and how long a client may take to ask. It touches no
signals: the process that serves owns them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from enum import Enum, auto
from http import HTTPStatus
from types import TracebackType
from typing import Self, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from durable.engine import Engine
from durable.errors import ConfigurationError
from durable.http.app import create_app
from durable.http.problems import MEDIA_TYPE, problem
from durable.http.runtime import HttpOptions, Redact
from durable.http.sse import Streams

_KEEP_ALIVE = 30
"""Seconds for which a connection without a request is kept; longer than clients and proxies pause between two."""

_DRAIN = 5
"""Seconds for which a stopping server lets requests end."""

_BACKLOG = 2048
_LAST_PORT = 65_535

_SLACK = 4096
"""Bytes for what of a request's head is not its headers, so that the limits answer with a problem, not the parser."""


def _last_words(status: int, slug: str, detail: str) -> bytes:
    """An answer from beneath the application, after which the connection is closed."""
    body = bytes(problem(status, slug, detail).body)
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {MEDIA_TYPE}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


_TOO_SLOW = _last_words(408, "too-slow", "the head of the request took too long")
_MALFORMED = _last_words(400, "malformed-request", "this is not HTTP, or its head is too large")


class Server:
    """A server that runs; made by ``serve``.

    Attributes:
        host: The address that it listens on.
        port: The port; when 0 was asked for, the one that was found.
        app: The application.
    """

    def __init__(self, app: FastAPI, listener: socket.socket, options: HttpOptions, engine: AsyncExitStack) -> None:
        self.app = app
        self.host, self.port = listener.getsockname()[:2]
        self._engine = engine
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=_patient(options),
                ws="none",
                lifespan="off",  # the engine is connected, and stays so until the last request has ended
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_DRAIN,
            )
        )
        self._running = asyncio.create_task(self._run(listener), name="durable http")

    @property
    def url(self) -> str:
        """Where it can be reached: ``http://127.0.0.1:8000``."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def stop(self) -> None:
        """Accept nothing more, end event streams, let requests end within 5 s, and disconnect what was connected."""
        Streams.of(self.app).close()
        self._uvicorn.should_exit = True
        await self.wait()

    async def wait(self) -> None:
        """Return when it has stopped."""
        await asyncio.shield(self._running)

    async def started(self) -> None:
        """Return when it answers; ``serve`` has waited for it."""
        ready = asyncio.create_task(self._uvicorn.ready.wait())
        await asyncio.wait([ready, self._running], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._running.done():
            self._running.result()

    async def _run(self, listener: socket.socket) -> None:
        try:
            await self._uvicorn.serve([listener])
            if left := list(self._uvicorn.server_state.tasks):  # cancelled: they still use the engine
                await asyncio.wait(left, timeout=1)
        finally:
            await self._engine.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


async def serve(
    engine: Engine,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    worker: bool = False,
    options: HttpOptions | None = None,
    redact: Redact | None = None,
) -> Server:
    """Serve ``engine`` over HTTP; returns when connections are accepted.

    Args:
        engine: It is connected as a client as long as the server runs, unless it runs already.
        host: The address to listen on. Any other than a loopback address needs a token: see ``Engine.create_token``.
        port: 0 finds a free one: see ``Server.port``.
        worker: Start the engine, worker included, as long as the server runs. Only then ``/metrics`` has what a worker
            measures; an engine that runs already is not measured.
        options: Limits and openness.
        redact: As for ``create_app``.

    Raises:
        ConfigurationError: It cannot listen there, or must not without a token; or the engine does not start.
        StoreUnavailable: The database cannot be reached.
    """
    options = options or HttpOptions()
    app = create_app(engine, options=options, redact=redact)
    async with AsyncExitStack() as stack:
        # Before the engine starts: a worker would have claimed runs by then.
        listener = stack.enter_context(await _listener(engine, host, port))
        if not engine.connected:
            await stack.enter_async_context(engine if worker else engine.client())
        server = Server(app, listener, options, stack.pop_all())
        await server.started()
        return server


async def _listener(engine: Engine, host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    if not 0 <= port <= _LAST_PORT:
        raise ConfigurationError(f"cannot listen on {host}:{port}: ports are 0 to {_LAST_PORT}")
    try:
        [(family, _, _, _, address), *_] = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if not ipaddress.ip_address(address[0]).is_loopback and not await _tokens_exist(engine):
            raise ConfigurationError(
                f"refusing to listen on {host}: whoever reaches it could operate every run, since there is no token. "
                "Make one first (durable token create NAME --scope admin), or listen on 127.0.0.1"
            )
        listener = socket.create_server((address[0], port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    # Connections inherit it. asyncio sets it only where a socket's protocol is named, which that of `create_server` is
    # not: then the second part of an answer waited for the client's delayed ACK, 40 ms for each request.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


async def _tokens_exist(engine: Engine) -> bool:
    if engine.connected:
        return bool(await engine.tokens())
    async with engine.client():
        return bool(await engine.tokens())


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _patient(options: HttpOptions) -> type[HttpToolsProtocol]:
    limits = {"patience": options.body_timeout, "largest_head": 2 * options.max_header + _SLACK}
    return type("Patient", (_Patient,), limits)


class _Phase(Enum):
    HEAD = auto()  # of the request that comes next: nothing of it, or a part
    BODY = auto()
    DONE = auto()  # the whole request is there


class _Patient(HttpToolsProtocol):
    """Uvicorn's protocol, with limited patience for a request's head, and then for its body, and for the head's size.

    Its own has no limits. The other one it has, of h11, takes 0.2 ms more of the CPU for each request.
    """

    patience = 10.0  # seconds
    largest_head = 65_536  # bytes
    _phase = _Phase.HEAD
    _head = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self.patience)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._phase is _Phase.HEAD:
            self._head += len(data)
            if self._head > self.largest_head:
                self.send_400_response("")
        elif self._phase is _Phase.DONE and self._timer is None and self._idle and not self.timeout_keep_alive_task:
            self._wait(self.patience)  # the rest of a body that nobody wanted was the last that came

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    # What the parser tells. The time for a part begins when the part does; what drips in does not prolong it.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self._head = _Phase.HEAD, 0
        self._wait(self.patience)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._phase = _Phase.BODY
        self._wait(self.patience + 1)  # a body that is too slow is answered by the limits, first

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._phase = _Phase.DONE
        self._stop_waiting()

    # What is done about it.

    @property
    def _idle(self) -> bool:
        """No answer is being made."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            return
        if self._phase is _Phase.HEAD and self._head and self._idle:
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (uvicorn's own would be plain text)
        if self._idle or not self.cycle.response_started:
            self.transport.write(_MALFORMED)
        self.transport.close()
