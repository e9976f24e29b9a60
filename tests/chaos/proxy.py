"""A TCP link to a Postgres that is as bad as it is told to be: slow, silent, half-open, forgetful, or cut."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Self
from urllib.parse import urlsplit

from durable.testing._servers import url_with

_CHUNK = 1 << 16
_COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"  # CommandComplete


class Link:
    """Relays connections to the server of ``url``.

    Attributes:
        url: The same database, through the link.
        latency: Seconds that each piece is on its way, in either direction.
        swallow: Probability that an answer with a COMMIT in it is lost, and its connection with it.
        passed, swallowed: Answers with a COMMIT in them that arrived, and that did not.
    """

    url: str

    def __init__(self, url: str, seed: int = 0) -> None:
        parts = urlsplit(url)
        self._given, self._login = url, parts.netloc.rpartition("@")[0]
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 5432
        self.latency = 0.0
        self.swallow = 0.0
        self.passed = self.swallowed = 0
        self._random = Random(seed)
        self._audible = asyncio.Event()
        self._audible.set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._ends: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}  # client → server
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = url_with(self._given, netloc=f"{self._login}@127.0.0.1:{port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.latency = 0.0
        self.listen()
        self.reset()  # which ends the relays: one that is cancelled would be reported by the loop
        await asyncio.gather(*self._tasks)

    def silence(self) -> None:
        """From now on no piece arrives; nobody is told. What was on its way waits."""
        self._audible.clear()

    def listen(self) -> None:
        """The link is well again."""
        self._audible.set()

    def leave_half_open(self) -> int:
        """Whatever is connected now never hears anything again, nor is it told; new ones are well. Returns how many."""
        self._dead |= set(self._ends)
        return len(self._ends)

    def reset(self) -> int:
        """Cut every connection, with a reset to the client where the system sends one; returns how many."""
        ends = dict(self._ends)
        for client, server in ends.items():
            client.transport.abort()
            server.transport.abort()
        return len(ends)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError):
                answers, server = await asyncio.open_connection(self._host, self._port)
                self._ends[writer] = server
                await self._both_ways(reader, writer, answers, server)
        finally:
            self._ends.pop(writer, None)
            self._dead.discard(writer)
            for end in (writer, server):
                if end is not None:
                    end.transport.abort()
            self._tasks.discard(task)

    async def _both_ways(
        self,
        requests: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        ways = [
            asyncio.create_task(self._copy(requests, server, client, answering=False)),
            asyncio.create_task(self._copy(answers, client, client, answering=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _copy(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        *,
        answering: bool,
    ) -> None:
        """Pieces keep their order, and each its own delay, as on a long line."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def deliver() -> None:
            while True:
                due, data = await line.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._audible.wait()
                if not data:
                    return
                if client in self._dead:
                    continue
                if answering and self._lost(data):
                    return
                writer.write(data)
                await writer.drain()

        async def collect() -> None:
            while data := await reader.read(_CHUNK):
                line.put_nowait((loop.time() + self.latency, data))
            line.put_nowait((loop.time() + self.latency, b""))

        with suppress(OSError):
            collecting = asyncio.ensure_future(collect())
            try:
                await deliver()
            finally:
                collecting.cancel()
                await asyncio.gather(collecting, return_exceptions=True)

    def _lost(self, data: bytes) -> bool:
        if _COMMITTED not in data:
            return False
        lost = self._random.random() < self.swallow
        self.swallowed += lost
        self.passed += not lost
        return lost
