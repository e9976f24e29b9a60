"""Every kind of write that a worker can send about a run it has claimed: what the fence has to stop, and what
sending again must not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from durable import states
from durable.model import ClaimedRun, Kind, RunWrite, State
from durable.testing.conformance.harness import AT, NEVER, Worker, record

ERROR = '{"error_type": "ValueError", "message": "no such card"}'


@dataclass(frozen=True)
class WriteKind:
    """One kind of write.

    ``undoing``: it is sent about a run in compensation, whose history holds one record then.
    """

    make: Callable[[ClaimedRun], RunWrite]
    undoing: bool = False


def _park(run: ClaimedRun, *, waiting: bool = False, state: State = State.RUNNING) -> RunWrite:
    return RunWrite(run.ref, change=states.park(state, ready_at=NEVER, wakes=run.wakes, waiting=waiting))


_R, _C = State.RUNNING, State.COMPENSATING

WRITES: dict[str, WriteKind] = {
    "step": WriteKind(lambda run: RunWrite(run.ref, [record(1, "charge", data='"receipt"', compensable=True)])),
    "failed step": WriteKind(lambda run: RunWrite(run.ref, [record(1, "charge", data=ERROR, failed=True, attempt=3)])),
    "attempt": WriteKind(
        lambda run: RunWrite(
            run.ref, [record(1, "charge/attempt/1", Kind.ATTEMPT, ERROR, failed=True, due_at=NEVER, duration=0.25)]
        )
    ),
    "sleep": WriteKind(lambda run: RunWrite(run.ref, [record(1, "nap", Kind.SLEEP, None, due_at=NEVER)])),
    "woke": WriteKind(lambda run: RunWrite(run.ref, [record(1, "nap/woke", Kind.WOKE, None)])),
    "several records": WriteKind(lambda run: RunWrite(run.ref, [record(1), record(2), record(3)])),
    "park to sleep": WriteKind(_park),
    "park to wait": WriteKind(lambda run: _park(run, waiting=True)),
    "record and park": WriteKind(
        lambda run: RunWrite(
            run.ref,
            [record(1, "nap", Kind.SLEEP, None, due_at=NEVER)],
            states.park(_R, ready_at=AT, wakes=run.wakes),
        )
    ),
    "release": WriteKind(lambda run: RunWrite(run.ref, change=states.release(_R))),
    "pause": WriteKind(lambda run: RunWrite(run.ref, change=states.pause(_R, "the code does not fit"))),
    "complete": WriteKind(lambda run: RunWrite(run.ref, change=states.complete(_R, '{"ok": true}'))),
    "record and complete": WriteKind(lambda run: RunWrite(run.ref, [record(1)], states.complete(_R, "null"))),
    "fail": WriteKind(lambda run: RunWrite(run.ref, change=states.fail(_R, ERROR))),
    "cancelled": WriteKind(lambda run: RunWrite(run.ref, change=states.cancelled(_R, ERROR))),
    "try again": WriteKind(
        lambda run: RunWrite(
            run.ref,
            [
                record(1, "charge", data=ERROR, failed=True),
                record(2, "/attempt/1", Kind.RUN_ATTEMPT, ERROR, failed=True),
            ],
            states.try_again(_R, NEVER),
        )
    ),
    "compensate": WriteKind(lambda run: RunWrite(run.ref, [record(1)], states.compensate(_R, ERROR))),
    "undo": WriteKind(lambda run: RunWrite(run.ref, [record(2, "s1/undo", Kind.UNDO, "null")]), undoing=True),
    "park in compensation": WriteKind(lambda run: _park(run, state=_C), undoing=True),
    "release in compensation": WriteKind(lambda run: RunWrite(run.ref, change=states.release(_C)), undoing=True),
    "pause in compensation": WriteKind(lambda run: RunWrite(run.ref, change=states.pause(_C, "why")), undoing=True),
    "compensated": WriteKind(lambda run: RunWrite(run.ref, change=states.compensated(_C, ERROR)), undoing=True),
    "cancelled in compensation": WriteKind(
        lambda run: RunWrite(run.ref, change=states.cancelled(_C, ERROR)), undoing=True
    ),
    "fail in compensation": WriteKind(lambda run: RunWrite(run.ref, change=states.fail(_C, ERROR)), undoing=True),
}


async def prepare(kind: WriteKind, worker: Worker, run: ClaimedRun) -> None:
    """Bring the claimed run to where a write of this kind is sent."""
    if kind.undoing:
        await worker.apply(run, record(1, compensable=True), change=states.compensate(_R, ERROR))
