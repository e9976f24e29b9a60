"""Keeps worker processes alive: starts them, restarts what dies, tells them to drain, and sums up what they do.

It loads none of the user's code and opens no database: what goes wrong there takes a process with it, never this one.
Children stand in sessions of their own, so that Ctrl-C in a terminal reaches this process alone, which tells them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from typing import Any

from durable.cli.process import DRAIN, MISCONFIGURED, STATUS, UNAVAILABLE, Done, Order

_log = logging.getLogger("durable.supervisor")

GAVE_UP = 70
"""Exit code: processes kept dying, or one had to be killed at the end (``EX_SOFTWARE`` of ``sysexits.h``)."""

_GRACE = 5.0
"""Seconds beyond its drain timeout after which a process that was told to stop is killed. It promises one."""

_UNKNOWN_DRAIN = 30.0
"""Seconds that a process is granted which was told to stop before it said how long it takes."""

_STEADY = 60.0
"""Seconds: a process that has lived so long did not die of its start."""

_MOST_DEATHS = 5
"""In a row, none of which lived so long: the next one would die too."""

_LONGEST_PAUSE = 30.0
"""Seconds between two tries to start while the database does not answer."""

_LAST_WORDS = 1.0
"""Seconds in which the socket of a process that has ended is read to its end; one that it forked may hold it open."""

_PATIENCE = 5.0
"""Seconds in which a process answers, even one that is busy."""


class Child:
    """A supervised process. Made by ``start``."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: asyncio.StreamWriter) -> None:
        self.began = time.monotonic()
        self.up: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        """What it said when it was up; cancelled when it ends before."""
        self._process = process
        self._lifeline = lifeline
        self._answer: asyncio.Future[Done] | None = None
        self._before = Done()
        self._told = False

    @classmethod
    async def start(cls, order: Order) -> Child:
        """A process that is on its way."""
        ours, theirs = socket.socketpair()
        with theirs:
            argument = json.dumps(asdict(replace(order, lifeline=theirs.fileno())))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "durable.cli.process", argument),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, writer)
        child._hearing = asyncio.get_running_loop().create_task(child._hear(reader), name="durable lifeline")
        return child

    _hearing: asyncio.Task[None]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def was_up(self) -> bool:
        """Whether it said that it works."""
        return self.up.done() and not self.up.cancelled()

    async def ended(self) -> int:
        """Its exit code, once it has ended; negative: the signal that ended it."""
        code = await self._process.wait()
        await asyncio.wait([self._hearing], timeout=_LAST_WORDS)
        self._hearing.cancel()
        self.up.cancel()
        self._lifeline.close()
        return code

    async def finished(self) -> int:
        """Tell it to drain, and wait for its end; what takes longer than it promised is killed."""
        self._say(DRAIN)
        drain = self.up.result()["drain"] if self.was_up else _UNKNOWN_DRAIN
        try:
            async with asyncio.timeout(drain + _GRACE):
                await self._process.wait()
        except TimeoutError:
            _log.error("process %d did not end within %g s: it is killed", self.pid, drain + _GRACE)
            self.signal(signal.SIGKILL)
        return await self.ended()

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def news(self) -> Done | None:
        """What it has done since it was asked last; None: it does not answer."""
        self._answer = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_PATIENCE):
                self._say(STATUS)
                now = await self._answer
        except (TimeoutError, OSError, asyncio.CancelledError):
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return None
        before, self._before = self._before, now
        return Done(*(a - b for a, b in zip(astuple(now), astuple(before), strict=True)))

    def _say(self, what: bytes) -> None:
        if not self._lifeline.is_closing():
            self._lifeline.write(what)

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            async for line in reader:
                message = json.loads(line)
                if "up" in message:
                    self.up.set_result(message["up"])
                elif self._answer is not None and not self._answer.done():
                    self._answer.set_result(Done(**message["done"]))
        if self._answer is not None:
            self._answer.cancel()


class Stop:
    """The wish of whoever runs this process that it ends: the first signal asks, the second one insists."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()
        self.code = 0
        """The exit code; one above 128: the signal that insisted."""
        self._loop = asyncio.get_running_loop()
        self._numbers = [
            number
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup
        ]
        for number in self._numbers:
            self._loop.add_signal_handler(number, self._on_signal, number)

    def close(self) -> None:
        """Heed signals no more."""
        for number in self._numbers:
            self._loop.remove_signal_handler(number)

    def give_up(self, code: int) -> None:
        """End, with this code."""
        self.code = self.code or code
        self.asked.set()

    def _on_signal(self, number: signal.Signals) -> None:
        if self.asked.is_set():
            self.code = 128 + number
            self.insisted.set()
        else:
            _log.info("%s: draining; once more ends at once", signal.Signals(number).name)
        self.asked.set()


class Supervisor:
    """So many processes of one order, until it is told to stop.

    Args:
        order: What each of them does.
        processes: How many.
        status_every: Seconds between two status lines; 0: none.
    """

    def __init__(self, order: Order, processes: int, status_every: float) -> None:
        self._order = order
        self._processes = processes
        self._status_every = status_every
        self._live: set[Child] = set()
        self._restarts = 0

    async def run(self) -> int:
        """The exit code: 0 after a drain that was asked for.

        The first process goes ahead: when it cannot start, its message stands there once, and nothing is restarted.
        """
        self._stop = Stop()
        self._proven = asyncio.Event()
        task = asyncio.get_running_loop().create_task
        insisting, proven = task(self._insist()), task(self._proven.wait())
        places = [task(self._keep())]
        await asyncio.wait([*places, proven], return_when=asyncio.FIRST_COMPLETED)
        proven.cancel()
        if self._proven.is_set():
            places += [task(self._keep()) for _ in range(1, self._processes)]
        status = task(self._report())
        await asyncio.gather(*places)
        status.cancel()
        insisting.cancel()
        self._stop.close()
        return self._stop.code

    async def _keep(self) -> None:
        """One place: a process, and another one whenever it dies."""
        tries = deaths = 0
        while not self._stop.asked.is_set():
            child = await Child.start(self._order)
            self._live.add(child)
            code = await self._lived(child)
            self._live.discard(child)
            if self._stop.asked.is_set():
                self._drained(child, code)
                return
            if not self._proven.is_set():
                self._stop.give_up(code if code in (MISCONFIGURED, UNAVAILABLE) else GAVE_UP)
                return
            if time.monotonic() - child.began >= _STEADY:
                tries = deaths = 0
            tries, deaths = tries + 1, deaths + (code != UNAVAILABLE)
            if deaths > _MOST_DEATHS:
                _log.error("process %d %s, as %d before it: giving up", child.pid, how_it_ended(code), _MOST_DEATHS)
                self._stop.give_up(GAVE_UP)
                return
            await self._pause(child, code, tries)

    def _drained(self, child: Child, code: int) -> None:
        if code and child.was_up and not self._stop.insisted.is_set():
            _log.error("process %d %s while it drained: its runs wait for their leases", child.pid, how_it_ended(code))
            self._stop.give_up(GAVE_UP)

    async def _pause(self, child: Child, code: int, tries: int) -> None:
        self._restarts += 1
        pause = 0.0 if tries == 1 else min(2.0 ** (tries - 2), _LONGEST_PAUSE)
        _log.warning(
            "process %d %s: starting another one%s", child.pid, how_it_ended(code), f" in {pause:g} s" if pause else ""
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._stop.asked.wait()

    async def _lived(self, child: Child) -> int:
        """Its exit code, once it has ended by itself or was told to."""
        loop = asyncio.get_running_loop()
        ended, asked = loop.create_task(child.ended()), loop.create_task(self._stop.asked.wait())
        child.up.add_done_callback(self._on_up)
        try:
            await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
            return await ended if ended.done() else await child.finished()
        finally:
            asked.cancel()
            ended.cancel()

    def _on_up(self, up: asyncio.Future[dict[str, Any]]) -> None:
        if not up.cancelled():
            self._proven.set()

    async def _insist(self) -> None:
        await self._stop.insisted.wait()
        for child in self._live:
            child.signal(signal.SIGKILL)

    async def _report(self) -> None:
        while self._status_every:
            await asyncio.sleep(self._status_every)
            children = list(self._live)
            heard = await asyncio.gather(*(child.news() for child in children))
            silent = [child.pid for child, news in zip(children, heard, strict=True) if news is None]
            _log.info("%s", self._line([news for news in heard if news is not None], silent))

    def _line(self, heard: Sequence[Done], silent: Sequence[int]) -> str:
        total = Done(*map(sum, zip(*map(astuple, heard), strict=True)))
        parts = [
            f"{len(heard)} of {self._processes} worker processes answer",
            f"in {self._status_every:g} s {total.claimed:,} runs were claimed, {total.steps:,} steps ended"
            + (f" ({total.failed:,} failed)" if total.failed else ""),
        ]
        if total.commits:
            parts.append(f"{total.commits:,} commits of {total.committing / total.commits * 1000:.1f} ms")
        if total.unrenewed:
            parts.append(f"failed renewals: {total.unrenewed:,}")
        if silent:
            parts.append(f"no answer from {', '.join(map(str, silent))}")
        if self._restarts:
            parts.append(f"restarts since the start: {self._restarts:,}")
        return "; ".join(parts)


def how_it_ended(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
