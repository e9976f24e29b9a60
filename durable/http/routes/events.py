"""What happens, as server-sent events: the timeline of one run, and the log of what all runs emit.

How a stream is kept up is ``sse``'s; here is what is new since a client's ``Last-Event-ID``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Header, Query, Request, Response
from pydantic_core import to_json

from durable.errors import RunNotFound
from durable.http.problems import Problem, also
from durable.http.routes.runs import RunId, timeline_item
from durable.http.runtime import Runtime
from durable.http.security import Here, Principal, guarded_router, requires
from durable.http.sse import Event, EventStream, Look, stream
from durable.messenger import EmittedEvent
from durable.model import Run, TimelineEntry
from durable.reports import Scope
from durable.states import TERMINAL

router = guarded_router("events")

_ID = re.compile(r"(\d{1,15})\.(\d{1,15})")
_PAGE = 200
_BEGINNING = (-1, 0)

Reader = Annotated[Principal, requires(Scope.READ)]
LastEventId = Annotated[
    str | None,
    Header(max_length=200, description="The `id` of the last event that was received; only later ones come."),
]
After = Annotated[str | None, Query(max_length=200, description="The same, for the first connection.")]

_EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {
        "id": {"type": "string", "description": "Sent back as `Last-Event-ID` to go on after it."},
        "event": {"type": "string", "description": "`end` for the last one of a run."},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events, until the client goes, the stream is over, or its time has passed (an hour).",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
    204: {"description": "Nothing will come any more: do not connect again."},
}


@router.get(
    "/runs/{run_id}/events",
    status_code=200,
    response_class=EventStream,
    response_model=None,
    responses=_STREAM | also(404),
)
async def run_events(
    request: Request, here: Here, who: Reader, run_id: RunId, last_event_id: LastEventId = None, after: After = None
) -> Response:
    """The run's timeline, as it grows. The last event, `end`, has the state in which the run ended."""
    return await stream(request, _Timeline(here, who.sees_payloads, run_id, _position(last_event_id or after)))


@router.get("/events", status_code=200, response_class=EventStream, response_model=None, responses=_STREAM)
async def events(
    request: Request, here: Here, who: Reader, last_event_id: LastEventId = None, after: After = None
) -> Response:
    """What runs emit with `ctx.emit`, from the beginning of the log or after an event of it, without end."""
    return await stream(request, _Log(here, who.sees_payloads, last_event_id or after or None))


def _position(event_id: str | None) -> tuple[int, int]:
    if not event_id:
        return _BEGINNING
    found = _ID.fullmatch(event_id)
    if found is None:
        raise Problem(422, "invalid-request", f"no event of a run has the id {event_id!r}")
    return int(found[1]), int(found[2])


class _Timeline:
    """Looks for new entries of one run's timeline.

    An entry's position is its record's ``seq`` and its place among the entries of that record: nothing is ever put in
    before another one, but for what a look sees of a run that changes under it; then it is passed over.
    """

    def __init__(self, here: Runtime, shown: bool, run_id: str, position: tuple[int, int]) -> None:
        self._here = here
        self._shown = shown
        self._run_id = run_id
        self._seen = position
        self._begun = False

    async def __call__(self) -> Look:
        engine = self._here.engine
        try:
            entries = await engine.timeline(self._run_id)
            run = await engine.get_run(self._run_id)  # afterwards: it is at least as new as the entries
        except RunNotFound:
            if not self._begun:
                raise
            return Look((), over=True)  # deleted meanwhile
        self._begun = True
        ended = run.state in TERMINAL
        if not _whole(entries, run, ended):
            return Look(())
        placed = _placed(entries)
        found = [Event(_text(position), self._item(entry)) for position, entry in placed if position > self._seen]
        (seq, place), _ = placed[-1]
        if ended and (seq, place + 1) > self._seen:
            found.append(Event(_text((seq, place + 1)), {"state": run.state}, "end"))
        self._seen = max(self._seen, (seq, place))
        return Look(found, over=ended)

    def _item(self, entry: TimelineEntry) -> dict[str, Any]:
        return timeline_item(self._here, self._shown, entry).model_dump(mode="json")


def _whole(entries: list[TimelineEntry], run: Run, ended: bool) -> bool:
    """Whether the entries, whose run was read before its records, have all that stands before their last one."""
    if ended:
        return entries[-1].kind == run.state and entries[-1].at == run.ended_at
    return run.started_at is None or any(entry.kind == "running" for entry in entries[:2])


def _placed(entries: list[TimelineEntry]) -> list[tuple[tuple[int, int], TimelineEntry]]:
    placed: list[tuple[tuple[int, int], TimelineEntry]] = []
    seq, place = -1, 0
    for entry in entries:
        seq, place = (seq, place + 1) if entry.seq == seq else (entry.seq, 0)
        placed.append(((seq, place), entry))
    return placed


def _text(position: tuple[int, int]) -> str:
    return f"{position[0]}.{position[1]}"


class _Log:
    """Looks for new entries of the log of ``ctx.emit``."""

    def __init__(self, here: Runtime, shown: bool, after: str | None) -> None:
        self._here = here
        self._shown = shown
        self._after = after

    async def __call__(self) -> Look:
        page = await self._here.engine.events(after=self._after, limit=_PAGE)
        self._after = page.next_cursor
        return Look([Event(entry.cursor, self._item(entry)) for entry in page.items])

    def _item(self, entry: EmittedEvent) -> dict[str, Any]:
        data = self._here.payload("data", to_json(entry.data).decode()) if self._shown else None
        return {"run_id": entry.run_id, "key": entry.key, "at": entry.at, "data": data}
