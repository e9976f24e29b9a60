"""Connections that no client library would make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

from durable.http import Server
from tests.http.serving import SOON


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Raw:
    """A connection: what is sent is sent as it stands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def post(self, length: int, path: str = "/v1/runs") -> None:
        """The head of a request with a body of so many bytes."""
        await self.send(_POST % (path.encode(), length))

    async def answer(self) -> Answer:
        async with asyncio.timeout(SOON):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(SOON):
            try:
                return await self._reader.read()
            except ConnectionResetError:  # it closed while we were sending
                return b""


_POST = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@asynccontextmanager
async def connection(server: Server) -> AsyncGenerator[Raw]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
