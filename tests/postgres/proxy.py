"""A TCP relay in front of a Postgres that can lose an answer, as a network does."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Self
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

_CHUNK = 1 << 16
_COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"  # CommandComplete


class Proxy:
    """Relays every connection to the server of ``url``.

    Attributes:
        url: The same database, through the relay.
        swallowed: Set when an answer has been lost.
        pieces: How many pieces have come from clients, by connection.
    """

    url: str

    def __init__(self, url: str) -> None:
        self._target = {key: str(value) for key, value in conninfo_to_dict(url).items()}
        self._tasks: set[asyncio.Task[None]] = set()
        self._armed = False
        self._connections = 0
        self.pieces: Counter[int] = Counter()
        self._clients: set[asyncio.StreamWriter] = set()
        self.swallowed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user, password = quote(self._target["user"]), quote(self._target.get("password", ""))
        login = f"{user}:{password}" if password else user
        self.url = f"postgresql://{login}@127.0.0.1:{port}/{quote(self._target['dbname'])}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def swallow_next_commit(self) -> None:
        """The next answer to a COMMIT does not arrive: its connection is closed instead."""
        self._armed = True
        self.swallowed.clear()

    def hang_up(self) -> None:
        """Close every connection to a client; the server still has its own, and goes on."""
        for client in self._clients:
            client.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host, port = self._target.get("host", "localhost"), self._target.get("port", "5432")
        if host.startswith("/"):
            upstream = await asyncio.open_unix_connection(str(PurePosixPath(host) / f".s.PGSQL.{port}"))
        else:
            upstream = await asyncio.open_connection(host, int(port))
        self._clients.add(writer)
        try:
            self._connections += 1
            sending = asyncio.create_task(self._copy(self._connections, reader, upstream[1]))
            answering = asyncio.create_task(self._answer(upstream[0], writer))
            await asyncio.wait([sending, answering], return_when=asyncio.FIRST_COMPLETED)
            for one in (sending, answering):
                one.cancel()
            await asyncio.gather(sending, answering, return_exceptions=True)
        finally:
            for end in (writer, upstream[1]):
                end.close()
            self._clients.discard(writer)
            self._tasks.discard(task)

    async def _copy(self, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                self.pieces[connection] += 1
                writer.write(data)
                await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                if self._armed and _COMMITTED in data:
                    self._armed = False
                    self.swallowed.set()
                    return
                writer.write(data)
                await writer.drain()
