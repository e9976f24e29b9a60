"""LISTEN and NOTIFY: hints between processes, on two connections of their own.

A hint may be lost with a connection or a process, and through a transaction pooler none arrives: polling is the
correct path, so nothing here ever fails a caller.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress

import psycopg

from durable.cancelling import cancelled
from durable.errors import DurableError, without_password
from durable.store import Hint
from durable.stores.postgres.connections import Async, Server

_log = logging.getLogger("durable.stores.postgres")

_COALESCE = 0.010
"""Seconds into which notifications that follow one another are folded. One inside each of 32 writers' commits
cost 4× there; a NOTIFY takes a lock that all commits of the database share."""
_SELF_TEST = 1.0  # seconds in which the first notification to oneself should be back
_RETRY_FIRST, _RETRY_MAX = 0.1, 2.0  # seconds between two attempts to listen again, doubling
_FAREWELL = 1.0  # seconds for the last notification when the store closes

_LETTERS = {Hint.WORK: "W", Hint.ENDED: "E", Hint.REQUEST: "R", Hint.SCHEDULE: "S"}
_EVERYTHING = Hint.WORK | Hint.ENDED | Hint.REQUEST | Hint.SCHEDULE


class Hints:
    """One process's ear and voice on the channel of a schema.

    Args:
        server: How to connect.
        channel: The schema's name.
        notify: The statement with channel and payload.
    """

    def __init__(self, server: Server, channel: str, notify: bytes) -> None:
        self._server = server
        self._channel = channel
        self._notify = notify
        self._me = secrets.token_hex(8)
        self._subscribers: dict[object, Callable[[Hint], None]] = {}
        self._pending = Hint(0)
        self._greeting = False
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted, self._listening, self._heard_myself = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def open(self) -> None:
        """Begin to listen, on the running loop, which need not be that of an earlier opening."""
        self._closing = False
        self._wanted, self._listening, self._heard_myself = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loops = (self._listen_always(), self._notify_always(), self._test_myself())
        self._tasks = [asyncio.get_running_loop().create_task(loop) for loop in loops]

    async def close(self) -> None:
        self._closing = True
        self._wanted.set()
        listening, notifying, testing = self._tasks
        await asyncio.wait([notifying], timeout=_FAREWELL)
        await cancelled(listening, notifying, testing)
        self._tasks = []

    def subscribe(self, callback: Callable[[Hint], None]) -> Callable[[], None]:
        token = object()
        self._subscribers[token] = callback

        def end() -> None:
            self._subscribers.pop(token, None)

        return end

    def announce(self, hint: Hint) -> None:
        self._pending |= hint
        self._wanted.set()

    # -- ear --------------------------------------------------------------------------------------

    async def _listen_always(self) -> None:
        pause, reopened = _RETRY_FIRST, False
        while True:
            try:
                async with await self._server.connect() as connection:
                    await connection.execute(f'LISTEN "{self._channel}"'.encode())
                    if reopened:  # something may have been said meanwhile
                        self._deliver(_EVERYTHING)
                    pause, reopened = _RETRY_FIRST, True
                    self._listening.set()
                    async for notification in connection.notifies():
                        self._on_notification(notification.payload)
            except (psycopg.Error, OSError, DurableError) as error:
                _log.info("not listening, trying again in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETRY_MAX)

    def _on_notification(self, payload: str) -> None:
        letters, _, sender = payload.partition(" ")
        if sender == self._me:
            self._heard_myself.set()
            return
        hint = Hint(0)
        for flag, letter in _LETTERS.items():
            if letter in letters:
                hint |= flag
        if hint:
            self._deliver(hint)

    def _deliver(self, hint: Hint) -> None:
        for callback in list(self._subscribers.values()):
            try:
                callback(hint)
            except Exception:
                _log.exception("a subscriber to hints failed")

    # -- voice ------------------------------------------------------------------------------------

    async def _notify_always(self) -> None:
        connection: Async | None = None
        try:
            while not self._closing or self._pending:
                await self._wanted.wait()
                self._wanted.clear()
                hint, self._pending = self._pending, Hint(0)
                if not hint and not self._greeting:
                    continue
                self._greeting = False
                try:
                    if connection is None or connection.closed:
                        connection = await self._server.connect()
                    await connection.execute(self._notify, [self._channel, self._payload(hint)])
                except (psycopg.Error, OSError, DurableError) as error:
                    _log.info("a hint is lost, others find the work by polling: %s", error)
                    if connection is not None:
                        await connection.close()
                await asyncio.sleep(_COALESCE)
        finally:
            if connection is not None:
                with suppress(psycopg.Error):
                    await connection.close()

    def _payload(self, hint: Hint) -> str:
        return "".join(letter for flag, letter in _LETTERS.items() if flag in hint) + " " + self._me

    async def _test_myself(self) -> None:
        """Through a transaction pooler LISTEN is accepted and never hears anything: say so once."""
        await self._listening.wait()
        self._greeting = True
        self._wanted.set()
        try:
            await asyncio.wait_for(self._heard_myself.wait(), _SELF_TEST)
        except TimeoutError:
            _log.warning(
                "notifications do not arrive on %s (a transaction pooler?): others' work is found by polling",
                without_password(self._server.url),
            )
