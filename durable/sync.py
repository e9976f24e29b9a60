"""``engine.sync``: the client for synchronous code, such as Django and Flask views, scripts, and tasks in threads.

One event loop in a thread of its own serves all callers of a process. It executes no workflows, and has its own
connections: what belongs to an event loop is not shared with another.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, Unpack, overload

from durable.client import Page
from durable.codec import MISSING
from durable.errors import ConfigurationError
from durable.handle import RunHandle
from durable.messenger import Messenger
from durable.model import Run, RunSummary, State
from durable.newruns import ChildOptions, TriggerOptions
from durable.workflow import Workflow

In = TypeVar("In")
Out = TypeVar("Out")
Out_co = TypeVar("Out_co", covariant=True)
T = TypeVar("T")

_FAREWELL = 2.0
"""Seconds that the end of the process waits for the connections to be closed."""


class SyncRunHandle(Generic[Out_co]):
    """A run that was triggered, for synchronous code.

    Attributes:
        run_id: The run's id.
        created: Whether this trigger created it; False when the key or run id existed already.
    """

    def __init__(self, handle: RunHandle[Out_co], call: Callable[[Callable[[], Awaitable[Any]]], Any]) -> None:
        self.run_id = handle.run_id
        self.created = handle.created
        self._handle = handle
        self._call = call

    def status(self) -> State:
        """As ``RunHandle.status``."""
        state: State = self._call(self._handle.status)
        return state

    def result(self, timeout: float | timedelta | None = None) -> Out_co:
        """As ``RunHandle.result``: blocks this thread until the run has ended."""
        result: Out_co = self._call(lambda: self._handle.result(timeout))
        return result

    def cancel(self, *, reason: str = "", by: str = "") -> bool:
        """As ``RunHandle.cancel``."""
        applied: bool = self._call(lambda: self._handle.cancel(reason=reason, by=by))
        return applied

    def __repr__(self) -> str:
        return f"<run {self.run_id}>"


class SyncClient:
    """The blocking client of an engine. Its methods may be called from any thread without a running event loop.

    It connects at the first call, and again in a process that was forked off. Callbacks of ``engine.on`` do not hear of
    what is done here.

    Args:
        connected: Makes a client and connects it, on the event loop on which it is then used.
    """

    def __init__(self, connected: Callable[[], AbstractAsyncContextManager[Messenger]]) -> None:
        self._connected = connected
        self._lock = threading.Lock()
        self._process = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Messenger | None = None
        self._closing: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    # -- what can be done -------------------------------------------------------------------------

    @overload
    def trigger(
        self, workflow: Workflow[In, Out], input: In = ..., *, connection: Any = None, **options: Unpack[TriggerOptions]
    ) -> SyncRunHandle[Out]: ...
    @overload
    def trigger(
        self, workflow: str, input: Any = ..., *, connection: Any = None, **options: Unpack[TriggerOptions]
    ) -> SyncRunHandle[Any]: ...
    def trigger(
        self,
        workflow: Any,
        input: Any = MISSING,  # noqa: A002
        *,
        connection: Any = None,
        **options: Unpack[TriggerOptions],
    ) -> SyncRunHandle[Any]:
        """As ``Engine.trigger``; ``connection`` is a blocking one, used in this thread."""
        if connection is None:
            return self._handle(self._call(lambda client: client.trigger(workflow, input, **options)))

        async def prepared(client: Messenger) -> Any:
            return client.prepared(workflow, input, connection, options)

        create, finish = self._call(prepared)
        return self._handle(finish(create()))

    @overload
    def trigger_many(
        self,
        workflow: Workflow[In, Out],
        inputs: Sequence[In],
        *,
        keys: Sequence[str] | None = None,
        **options: Unpack[ChildOptions],
    ) -> list[SyncRunHandle[Out]]: ...
    @overload
    def trigger_many(
        self,
        workflow: str,
        inputs: Sequence[Any],
        *,
        keys: Sequence[str] | None = None,
        **options: Unpack[ChildOptions],
    ) -> list[SyncRunHandle[Any]]: ...
    def trigger_many(
        self,
        workflow: Any,
        inputs: Sequence[Any],
        *,
        keys: Sequence[str] | None = None,
        **options: Unpack[ChildOptions],
    ) -> list[SyncRunHandle[Any]]:
        """As ``Engine.trigger_many``."""
        handles = self._call(lambda client: client.trigger_many(workflow, inputs, keys=keys, **options))
        return [self._handle(handle) for handle in handles]

    @overload
    def handle(
        self, workflow: Workflow[Any, Out], *, run_id: str | None = None, key: str | None = None
    ) -> SyncRunHandle[Out]: ...
    @overload
    def handle(self, workflow: str, *, run_id: str | None = None, key: str | None = None) -> SyncRunHandle[Any]: ...
    def handle(self, workflow: Any, *, run_id: str | None = None, key: str | None = None) -> SyncRunHandle[Any]:
        """As ``Engine.handle``."""
        return self._handle(self._call(lambda client: client.handle(workflow, run_id=run_id, key=key)))

    def signal(
        self, run_id: str, name: str, payload: Any = None, *, signal_id: str | None = None, connection: Any = None
    ) -> None:
        """As ``Engine.signal``; ``connection`` is a blocking one, used in this thread."""
        if connection is None:
            self._call(lambda client: client.signal(run_id, name, payload, signal_id=signal_id))
        else:
            send, finish = self._call(
                lambda client: client.prepared_signal(run_id, name, payload, signal_id, connection)
            )
            finish(send())

    def cancel(self, run_id: str, *, reason: str = "", by: str = "") -> bool:
        """As ``Engine.cancel``."""
        return self._call(lambda client: client.cancel(run_id, reason=reason, by=by))

    def get_run(self, run_id: str) -> Run:
        """As ``Engine.get_run``."""
        return self._call(lambda client: client.get_run(run_id))

    def list_runs(
        self,
        *,
        workflow: str | None = None,
        version: str | None = None,
        state: State | str | None = None,
        tags: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        queue: str | None = None,
        parent: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[RunSummary]:
        """As ``Engine.list_runs``."""
        return self._call(
            lambda client: client.list_runs(
                workflow=workflow,
                version=version,
                state=state,
                tags=tags,
                created_after=created_after,
                created_before=created_before,
                queue=queue,
                parent=parent,
                limit=limit,
                cursor=cursor,
            )
        )

    def close(self) -> None:
        """Close the connections and end the thread; the next call connects again."""
        with self._lock:
            thread, loop, closing = self._thread, self._loop, self._closing
            self._thread = self._loop = self._client = None
            mine = self._process == os.getpid()
        if mine and thread is not None and loop is not None and closing is not None:
            with suppress(RuntimeError):  # its loop has ended by itself
                loop.call_soon_threadsafe(closing.set)
            thread.join(_FAREWELL)

    # -- the loop ---------------------------------------------------------------------------------

    def _handle(self, handle: RunHandle[Out]) -> SyncRunHandle[Out]:
        return SyncRunHandle(handle, lambda make: self._call(lambda _: make()))

    def _call(self, make: Callable[[Messenger], Awaitable[T]]) -> T:
        """``await make(client)`` on the background loop; this thread waits for it.

        Raises:
            ConfigurationError: This thread runs an event loop, which would stand still meanwhile.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ConfigurationError("engine.sync blocks, and this thread runs an event loop: await the engine itself")
        client, loop = self._started()
        future = asyncio.run_coroutine_threadsafe(_awaited(make, client), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> tuple[Messenger, asyncio.AbstractEventLoop]:
        with self._lock:
            if self._client is None or self._loop is None or self._process != os.getpid():  # a fork has no threads
                self._start()
            assert self._client is not None
            assert self._loop is not None
            return self._client, self._loop

    def _start(self) -> None:
        started: list[BaseException | None] = []
        ready = threading.Event()

        async def serve() -> None:
            try:
                async with self._connected() as client:
                    self._client, self._loop, self._closing = client, asyncio.get_running_loop(), asyncio.Event()
                    started.append(None)
                    ready.set()
                    await self._closing.wait()
            except BaseException as error:
                if ready.is_set():
                    raise
                started.append(error)
                ready.set()

        if self._process == 0:
            atexit.register(self.close)
        self._process = os.getpid()
        self._thread = threading.Thread(target=asyncio.run, args=(serve(),), name="durable sync", daemon=True)
        self._thread.start()
        ready.wait()
        if started[0] is not None:
            self._thread = self._client = self._loop = None
            raise started[0]


async def _awaited(make: Callable[[Messenger], Awaitable[T]], client: Messenger) -> T:
    return await make(client)
