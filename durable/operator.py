"""What an operator does with runs, from any process: cancel, pause, resume, retry, prune, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from durable.calendar import Calendar
from durable.durations import seconds
from durable.errors import InvalidArgument, RunFinished
from durable.ids import check_run_id
from durable.model import Queue, Rate, RunSummary, State, Verb
from durable.names import check_name

_PAGE = 1000
_PRUNE_BATCH = 500


class Operator(Calendar):
    """A client that also changes the fate of runs."""

    async def pause(self, run_id: str, *, reason: str = "", by: str = "") -> None:
        """Stop a run: the running step may end, then nothing executes until ``resume``.

        Deadlines go on meanwhile: a sleep that has ended by then ends at once, a timeout of the run applies.

        Raises:
            RunNotFound: There is no such run.
            RunFinished: It has ended, is being cancelled, or waits in its compensation.
        """
        await self._must_apply(run_id, Verb.PAUSE, reason or "paused by an operator", by)

    async def resume(self, run_id: str, *, reason: str = "", by: str = "") -> None:
        """Let a paused run go on: after an operator's pause, or when a deploy has removed the reason.

        Raises:
            RunNotFound: There is no such run.
            RunFinished: It is not paused.
        """
        await self._must_apply(run_id, Verb.RESUME, reason, by)

    async def retry(self, run_id: str, *, from_step: str | None = None, reason: str = "", by: str = "") -> None:
        """Run a ``failed`` or ``dead_letter`` run again: completed steps are kept, others are repeated.

        Args:
            from_step: A record key, such as ``charge`` or ``charge#2``: this step and all after it run again too.

        Raises:
            RunNotFound: There is no such run, or no such record.
            RunFinished: It is in another state.
        """
        await self._must_apply(run_id, Verb.RETRY, reason, by, from_step)

    async def retry_compensation(self, run_id: str, *, reason: str = "", by: str = "") -> None:
        """Make the failed compensations of a ``failed`` run again; those that succeeded are not repeated.

        Raises:
            RunNotFound: There is no such run.
            RunFinished: It is in another state, or has no failed compensation.
        """
        await self._must_apply(run_id, Verb.RETRY_UNDO, reason, by)

    async def retry_all(
        self,
        *,
        state: State | str = State.DEAD_LETTER,
        workflow: str | None = None,
        tags: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        dry_run: bool = False,
        reason: str = "",
        by: str = "",
    ) -> int:
        """Retry every run that meets the conditions.

        Args:
            state: ``failed`` or ``dead_letter`` (default).
            dry_run: Only count them.

        Returns:
            How many runs were retried, or would be.

        Raises:
            InvalidArgument: An argument is out of its range.
        """
        if state not in (State.FAILED, State.DEAD_LETTER):
            raise InvalidArgument(f"only failed and dead_letter runs can be retried, not {state!r}")
        count = 0
        async for run in self._all_runs(
            workflow=workflow, state=state, tags=tags, created_after=created_after, created_before=created_before
        ):
            if dry_run or await self._request(run.id, Verb.RETRY, reason, by) is not None:
                count += 1
        return count

    async def set_limits(self, *queues: Queue) -> None:
        """Store the limits of these queues, for all workers; those of other queues stay as they are.

        A ``Queue`` without limits lifts them. They hold for what is claimed from then on.

        Raises:
            InvalidArgument: It is no ``Queue``, or a name or a limit is out of its range.
        """
        self._check_connected()
        await self._store.put_queues(check_queues(queues))

    async def limits(self) -> list[Queue]:
        """The limits that are stored, by the name of the queue."""
        self._check_connected()
        return await self._store.queues()

    async def prune(self, older_than: float | timedelta) -> int:
        """Delete the terminal runs that ended longer ago than this, with everything that belongs to them.

        In batches of 500, so that no transaction is long. It frees their keys.

        Args:
            older_than: Seconds or timedelta, on the store's clock.

        Returns:
            How many runs were deleted.
        """
        self._check_connected()
        before = self._store.clock.now() - timedelta(seconds=seconds(older_than, "older_than"))
        total = 0
        while pruned := await self._store.prune(before, _PRUNE_BATCH):
            total += pruned
        return total

    async def delete(self, run_id: str) -> None:
        """Erase one terminal run with everything that belongs to it; its key is free again.

        Raises:
            RunNotFound: There is no such run.
            RunFinished: It has not ended: cancel it first.
        """
        self._check_connected()
        if not await self._store.delete(check_run_id(run_id)):
            state = (await self.get_run(run_id)).state
            raise RunFinished(f"run {run_id} is {state}: only a run that has ended can be deleted")

    async def _must_apply(self, run_id: str, verb: Verb, reason: str, by: str, step: str | None = None) -> None:
        if await self._request(run_id, verb, reason, by, step) is None:
            await self._refused(run_id, verb)

    async def _refused(self, run_id: str, verb: Verb) -> None:
        run = await self.get_run(run_id)
        note = " and asked to be cancelled" if run.requested is not None and run.requested.verb is Verb.CANCEL else ""
        raise RunFinished(f"run {run_id} is {run.state}{note}: {verb} does not apply")

    async def _all_runs(self, **where: Any) -> AsyncIterator[RunSummary]:
        cursor = None
        while True:
            page = await self.list_runs(**where, limit=_PAGE, cursor=cursor)
            for run in page.items:
                yield run
            if (cursor := page.next_cursor) is None:
                return


def check_queues(queues: Iterable[Queue]) -> tuple[Queue, ...]:
    """The queues; one whose name or limits are out of their range is refused.

    Raises:
        InvalidArgument: Which, and why.
    """
    if not isinstance(queues, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"queues must be a list of Queue objects, not {type(queues).__name__}")
    checked = tuple(queues)
    for queue in checked:
        _check_queue(queue)
    return checked


def _check_queue(queue: Queue) -> None:
    if not isinstance(queue, Queue):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(
            f"limits are given as Queue objects, such as Queue('mail', concurrency=5), not {type(queue).__name__}"
        )
    check_name(queue.name, "queue")
    for what, count in (("concurrency", queue.concurrency), ("per_key", queue.per_key)):
        if count is not None and (type(count) is not int or count < 1):
            raise InvalidArgument(f"queue {queue.name!r}: {what} must be a whole number of at least 1, not {count!r}")
    for what, rate in (("rate", queue.rate), ("rate_per_key", queue.rate_per_key)):
        if rate is not None:
            _check_rate(rate, f"queue {queue.name!r}: {what}")


def _check_rate(rate: Rate, what: str) -> None:
    if not isinstance(rate, Rate):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"{what} must be a Rate, such as Rate(10, per=60.0), not {type(rate).__name__}")
    if type(rate.limit) is not int or rate.limit < 1:
        raise InvalidArgument(f"{what}: limit must be a whole number of at least 1, not {rate.limit!r}")
    if seconds(rate.per, f"{what}: per") <= 0:
        raise InvalidArgument(f"{what}: per must be more than 0 s")
