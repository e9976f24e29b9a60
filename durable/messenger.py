"""What any process tells runs: signals to one, events to all that wait; and the log that runs write for others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar, Unpack

from durable.client import Client, Page
from durable.codec import Codec, codec_for
from durable.committer import Sender
from durable.durations import seconds
from durable.errors import InvalidArgument, RunFinished, RunNotFound
from durable.handle import RunHandle
from durable.ids import check_run_id, new_id
from durable.model import NewSignal, Published, Sent
from durable.names import check_key, check_name
from durable.newruns import TriggerOptions
from durable.store import Hint, Store
from durable.workflow import Workflow

In = TypeVar("In")
Out = TypeVar("Out")

_READ_MOST = 1000

_AS_DATA = "plain data, such as model_dump(mode='json') or dataclasses.asdict()"
_SIGNAL = Codec(hint=f"send {_AS_DATA}, or register the workflow here and declare the type: @workflow(signals=…)")
_EVENT = Codec(hint=f"publish {_AS_DATA}")


@dataclass(frozen=True, slots=True)
class EmittedEvent:
    """An entry of the log of ``ctx.emit``."""

    cursor: str
    """Where the log goes on after it."""
    run_id: str
    key: str
    """The record key: the name given to ``emit``, with its occurrence."""
    at: datetime
    data: Any
    """The emitted JSON value."""


class Messenger(Client):
    """A client that also sends signals and events."""

    def __init__(self, store: Store, workflows: Iterable[Workflow[Any, Any]]) -> None:
        super().__init__(store, workflows)
        self._signals = Sender(store.send_signals)
        self._publisher = Sender(self._publish)

    async def signal(
        self, run_id: str, name: str, payload: Any = None, *, signal_id: str | None = None, connection: Any = None
    ) -> None:
        """Send a signal to a run. When this returns, it is committed.

        It is kept until a ``ctx.wait_for`` of this name consumes it; signals of one name are consumed in the order of
        their arrival.

        Args:
            name: What the run waits for.
            payload: A JSON value, or a value of the type that the workflow declares for this signal
                (``@workflow(signals=…)``), when the workflow is registered here.
            signal_id: Two signals to a run with the same id are one; up to 512 bytes.
            connection: As in ``trigger``: the signal is sent when you commit.

        Raises:
            RunNotFound: There is no such run.
            RunFinished: It has ended.
            PayloadError: The payload does not fit.
            StoreUnavailable: The store did not answer; sending it again with the same ``signal_id`` is safe.
        """
        if connection is not None:
            send, finish = await self.prepared_signal(run_id, name, payload, signal_id, connection)
            answer = send()
            finish(await answer if inspect.isawaitable(answer) else answer)
            return
        sent = await self._signals.send(await self._signal(run_id, name, payload, signal_id))
        self._tell()
        _check_sent(run_id, sent)

    async def prepared_signal(
        self, run_id: str, name: str, payload: Any, signal_id: str | None, connection: Any
    ) -> tuple[Callable[[], Any], Callable[[Sent], None]]:
        """A signal on a connection of the user's own in two parts: what sends it there, in whatever thread the
        connection is used in, and what looks at the answer."""
        signal = await self._signal(run_id, name, payload, signal_id)
        return partial(self._on_connection(connection).signal, connection, signal), partial(_check_sent, run_id)

    async def signal_with_start(
        self,
        workflow: Workflow[In, Out],
        input: In,  # noqa: A002
        name: str,
        payload: Any = None,
        *,
        signal_id: str | None = None,
        **options: Unpack[TriggerOptions],
    ) -> RunHandle[Out]:
        """Send a signal to the run that has the ``key``; create it first, with this input, when there is none.

        Both in one transaction: there is never a run without its signal.

        Args:
            input: Of the run, if it is created. An existing run may have another one.
            name, payload, signal_id: As in ``signal``.
            options: As in ``trigger``. ``key`` is needed; debounce is not to be had.

        Raises:
            RunFinished: The run with this key has ended.
            InvalidArgument, UnknownWorkflow, PayloadError, StoreUnavailable: As ``trigger``.
        """
        if options.get("key") is None or options.get("debounce") is not None:
            raise InvalidArgument("signal_with_start needs a key, and does not debounce")
        found, new = self._new_run(workflow, input, options)
        codec = _declared(found, check_name(name, "signal name"))
        signal = self._new_signal(new.id, name, payload, signal_id, codec)
        created, sent = await self._store.create_with_signal(new, signal)
        if created.conflict is not None:  # it stands, with another input: it is there to be told
            sent = await self._signals.send(replace(signal, run_id=created.run_id))
        if created.created:
            self._hooks.emit("run_triggered", run_id=created.run_id, workflow=new.workflow)
        self._tell()
        _check_sent(created.run_id, sent)
        return self._handle(found, created.run_id, created.created)

    async def publish(
        self, topic: str, payload: Any = None, *, key: str = "", retention: float | timedelta = 3600.0
    ) -> None:
        """Publish an event: every run that waits for it with ``ctx.wait_for_event`` gets it.

        Args:
            topic: 1 to 200 printable characters.
            payload: A JSON value.
            key: Only runs that wait for this key get it; up to 512 bytes.
            retention: Seconds or timedelta for which runs that begin to wait later still can get it. Default an hour.

        Raises:
            PayloadError: The payload has no exact JSON form.
            StoreUnavailable: The store did not answer; it may have been published.
        """
        self._check_connected()
        text, _ = _EVENT.round_trip(payload, f"the payload of event {topic!r}")
        event = Published(
            new_id(self._store.clock.now()),
            check_name(topic, "topic"),
            check_key(key, "event key") if key else "",
            text,
            seconds(retention, "retention"),
        )
        await self._publisher.send(event)
        self._tell()

    async def events(self, *, after: str | None = None, limit: int = 100) -> Page[EmittedEvent]:
        """What runs have emitted, in the order of the log, after a cursor.

        No entry is ever added before a cursor that was handed out, so a consumer that stores ``next_cursor`` with its
        own work sees each entry once. An entry is pruned with its run.

        Args:
            after: ``next_cursor`` of the page before, or the ``cursor`` of an entry; None: from the beginning.
            limit: At most so many, 1 to 1,000.

        Returns:
            A page whose ``next_cursor`` is never None once something was read: new entries will come after it.

        Raises:
            InvalidArgument: ``limit`` is out of its range, or ``after`` is no cursor.
        """
        self._check_connected()
        if not 1 <= limit <= _READ_MOST:
            raise InvalidArgument(f"limit must be a whole number from 1 to {_READ_MOST}, not {limit!r}")
        if after is not None and not isinstance(after, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"after must be a cursor, which is a str, not {type(after).__name__}")
        found = await self._store.emitted(after, limit)
        plain = codec_for(Any)
        items = [
            EmittedEvent(entry.cursor, entry.run_id, entry.key, entry.at, plain.decode(entry.data, "what was emitted"))
            for entry in found
        ]
        return Page(items, items[-1].cursor if items else after)

    # -- ours -------------------------------------------------------------------------------------

    async def _publish(self, events: list[Published]) -> list[None]:
        await self._store.publish(events)
        return [None] * len(events)

    async def _codec_of(self, run_id: str, name: str) -> Codec:
        """The declared type of a signal; looked up only where some workflow here declares the name."""
        if not any(name in workflow.signals for workflow in self._workflows.values()):
            return _SIGNAL
        run = await self.get_run(run_id)
        return _declared(self._workflows.get((run.workflow, run.version)), name)

    async def _signal(self, run_id: str, name: str, payload: Any, signal_id: str | None) -> NewSignal:
        self._check_connected()
        run_id = check_run_id(run_id)
        codec = await self._codec_of(run_id, check_name(name, "signal name"))
        return self._new_signal(run_id, name, payload, signal_id, codec)

    def _new_signal(self, run_id: str, name: str, payload: Any, signal_id: str | None, codec: Codec) -> NewSignal:
        text, _ = codec.round_trip(payload, f"the payload of signal {name!r}")
        made = new_id(self._store.clock.now()) if signal_id is None else check_key(signal_id, "signal_id")
        return NewSignal(run_id, made, name, text)

    def _tell(self) -> None:
        self._poke()
        self._store.announce(Hint.WORK)


def _declared(workflow: Workflow[Any, Any] | None, name: str) -> Codec:
    codec = None if workflow is None else workflow.signals.get(name)
    return _SIGNAL if codec is None or codec.unknown is not None else codec


def _check_sent(run_id: str, sent: Sent) -> None:
    if sent is Sent.NOT_FOUND:
        raise RunNotFound(f"no run has the id {run_id}")
    if sent is Sent.FINISHED:
        raise RunFinished(f"run {run_id} has ended: a signal would reach nobody")
