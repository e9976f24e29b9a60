"""The timeline as bars: which entries belong together, and where a bar begins and ends."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from durable.cli.timeline import Span, drawn, line, spans
from durable.failures import request_to_json
from durable.failures import to_json as failure_to_json
from durable.model import Failure, Request, TimelineEntry, Verb

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FAILURE = failure_to_json(Failure("builtins.ValueError", "no such card"))


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def entry(
    seconds: float, kind: str, name: str = "", attempt: int | None = None, data: str | None = None
) -> TimelineEntry:
    return TimelineEntry(1, at(seconds), kind, name, attempt, "worker-1", None, data)


BEGUN = [entry(0, "triggered", "order"), entry(5, "running", "order")]


def text(rows: list[Span], now: float, columns: int = 80) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=columns, markup=False, emoji=False, highlight=False).print(
        drawn(rows, at(now), columns=columns)
    )
    return screen.getvalue().splitlines()


def bar(row: str) -> tuple[int, int]:
    """The first and the last column that it covers."""
    covered = [column for column, sign in enumerate(row) if sign in "█▌▐▕▏▎▍▋▊▉◆"]
    return covered[0], covered[-1]


def test_a_run_that_has_not_started_is_pending() -> None:
    assert spans(BEGUN[:1]) == [Span("pending", at(0), None, "pending")]
    assert spans(BEGUN) == [], "once it has, the bars begin with what it does"


@pytest.mark.parametrize(
    ("begin", "end", "look"),
    [
        ("started", "completed", "completed"),
        ("started", "retrying", "retrying"),
        ("started", "failed", "failed"),
        ("sleeping", "woke", "sleeping"),
        ("waiting", "received", "waiting"),
        ("waiting", "wait timed out", "failed"),
        ("child started", "child ended", "child"),
        ("undo started", "undo completed", "undone"),
        ("undo started", "undo retrying", "retrying"),
        ("undo started", "undo failed", "failed"),
    ],
)
def test_a_beginning_and_its_end_are_one_row(begin: str, end: str, look: str) -> None:
    data = '{"state": "completed"}' if end == "child ended" else None
    (row,) = spans([*BEGUN, entry(6, begin, "charge"), entry(8, end, "charge", data=data)])
    assert (row.began, row.ended, row.look) == (at(6), at(8), look)
    assert row.name == ("undo charge" if begin == "undo started" else "charge")


def test_attempts_are_rows_of_their_own_with_what_was_wrong() -> None:
    rows = spans(
        [
            *BEGUN,
            *(entry(6, "started", "charge", 1), entry(7, "retrying", "charge", 1, FAILURE)),
            *(entry(8, "started", "charge", 2), entry(9, "completed", "charge", 2)),
        ]
    )
    assert [(row.look, row.note) for row in rows] == [
        ("retrying", "ValueError: no such card"),
        ("completed", "attempt 2"),
    ]


def test_steps_beside_each_other_keep_their_own_ends() -> None:
    rows = spans(
        [
            *BEGUN,
            *(entry(6, "waiting", "first"), entry(7, "waiting", "second")),
            *(entry(8, "received", "second"), entry(9, "received", "first")),
        ]
    )
    assert [(row.name, row.began, row.ended) for row in rows] == [("first", at(6), at(9)), ("second", at(7), at(8))]


def test_what_befell_the_run_is_a_moment() -> None:
    asked = request_to_json(Request(Verb.PAUSE, "audit", "Ann"))
    rows = spans(
        [
            *BEGUN,
            entry(6, "emitted", "note", data='"payload"'),
            entry(7, "takeover"),
            entry(8, "pause", "order", data=asked),
            entry(9, "completed", "resize"),
            entry(10, "failed", "order", data=FAILURE),
        ]
    )
    assert all(row.moment for row in rows)
    assert [(row.name, row.note) for row in rows] == [
        *(("note emitted", ""), ("takeover", "worker worker-1 died"), ("pause", "by Ann audit")),
        *(("resize completed", ""), ("failed", "")),
    ]


def test_a_bar_stands_where_its_time_was() -> None:
    rows = [
        Span("first", at(0), at(50), "completed"),
        Span("second", at(50), at(100), "failed"),
        Span("quick", at(99.999), at(100), "completed"),
        Span("mark", at(50), at(50)),
    ]
    first, second, quick, mark = (bar(row) for row in text(rows, 1000))
    assert 0 <= second[0] - first[1] <= 1, "they may share a column, half of it each"
    assert mark[0] == second[0]
    assert abs((first[1] - first[0]) - (second[1] - second[0])) <= 1
    assert quick == (second[1], second[1]), "what was quick is seen too"


def test_what_goes_on_grows_with_the_time() -> None:
    rows = [Span("done", at(0), at(10), "completed"), Span("open", at(10), None, "waiting")]
    lengths = [bar(text(rows, now)[0])[1] for now in (20, 40)]
    assert lengths[1] < lengths[0], "the scale holds more time"
    assert bar(text(rows, 20)[1])[1] == bar(text(rows, 40)[1])[1]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_row_is_one_line_whatever_the_screen_and_the_note(columns: int) -> None:
    rows = [Span("a name", at(0), at(1), "failed", "a note " * 100), Span("x" * 200, at(1), at(2), "completed")]
    shown = text(rows, 2, columns)
    assert len(shown) == 2
    assert max(map(len, shown)) <= columns
    if columns >= 80:
        assert shown[0].startswith("a name ")
        assert shown[0].rstrip().endswith("…")


def test_a_clock_that_is_behind_the_database_draws_nothing_backwards() -> None:
    assert len(text([Span("open", at(10), None, "waiting")], 5)) == 1


def test_an_entry_is_a_line_of_a_log() -> None:
    shown = line(TimelineEntry(1, at(0), "failed", "charge", 2, "w", 1.5, FAILURE))
    assert shown.split(" ", 1)[1] == "failed charge (1.5 s) attempt 2 ValueError: no such card"
