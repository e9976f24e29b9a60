"""Names and values that databases stumble over: stored verbatim or refused with a typed error, never half."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

from typing import Any

import pytest

from durable import states
from durable.errors import PayloadError
from durable.model import Outcome, RunFilter, RunWrite, State
from durable.store import Route
from durable.testing.conformance.harness import (
    StoreHarness,
    Worker,
    create,
    new_run,
    read,
    record,
    snapshot,
)

_INJECTIONS = [
    "'", '"', "''", '""', "`", "\\", "\\'", '\\"', "\\\\", ";", "--", "/*", "*/", "#", "$$", "$1", "$tag$", ":name",
    "?", "%", "%s", "%(id)s", "%%", "{}", "{0}", "{", "}", "{a,b}", "[1]", "(1)", ",", "NULL", "null", "DEFAULT",
    "'; DROP TABLE runs; --", '"; DROP SCHEMA durable CASCADE; --', "' OR '1'='1", "1; SELECT pg_sleep(10)",
    "Robert'); DROP TABLE runs;--", "x' UNION SELECT * FROM runs --", "E'\\x00'", "\\x41", "\\u0041", "&lt;b&gt;",
    "<script>", "../../etc/passwd", "a/b", "s1/undo", "/takeover/1", "nan", "0", "-1", "1e400", "true",
]  # fmt: skip
_UNICODE = [
    "é", "e\u0301", "ß", "SS", "İ", "i", "I", "ı", "東京", "🜚", "👩\u200d💻", "\u202egnp.exe", "\ufeff", "\u00a0",
    " ", "  ", " lead", "trail ", "a\tb", "a\nb", "a\r\nb", "\x1f", "\x7f", "\x01", "a\u2028b", "A", "a",
    "ﬀ", "ff", "Å", "Å", "\U0010ffff", "x" * 200,
]  # fmt: skip
HOSTILE = list(dict.fromkeys(_INJECTIONS + _UNICODE))


class HostileConformance:
    async def test_P51_hostile_names_are_stored_verbatim(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (canary,) = await create(store, new_run("canary"))
        runs = {name: new_run(name, name, key=name, tags={name: name}, input_hash=name, seed=name) for name in HOSTILE}
        answers = await store.create_runs(list(runs.values()))
        assert all(answer.created for answer in answers)
        for name, new in runs.items():
            run = await read(store, new.id)
            assert (run.workflow, run.version, run.key, run.seed) == (name, name, name, name)
            assert run.tags == {name: name}
            assert await store.find_key(name, name) == new.id
            for where in (RunFilter(workflow=name), RunFilter(version=name), RunFilter(tags={name: name})):
                assert [found.id for found in await store.list_runs(where, 10, None)] == [new.id]
        assert await store.create_runs(list(runs.values())) == answers
        assert (await read(store, canary)).state is State.PENDING

    async def test_P51_hostile_names_are_claimed_and_written_verbatim(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        runs = {name: new_run(name, name) for name in HOSTILE}
        await create(store, *runs.values())
        worker = await Worker.start(store)
        for name, new in runs.items():
            (one,) = (await worker.claim(routes=[Route(name, name)])).runs
            assert one.run.id == new.id
        refs = {ref.id: ref for ref in await store.owned(worker.id)}
        everything = [record(seq, name) for seq, name in enumerate(HOSTILE, 1)]
        pause = states.pause(State.RUNNING, "; ".join(HOSTILE))
        outcomes = await worker.commit(*(RunWrite(refs[new.id], everything, pause) for new in runs.values()))
        assert set(outcomes) == {Outcome.APPLIED}
        for new in runs.values():
            run, history = (await snapshot(store, new.id))[0]
            assert run.reason == "; ".join(HOSTILE)
            assert [(entry.key, entry.worker) for entry in history] == [(name, worker.id) for name in HOSTILE]

    @pytest.mark.parametrize(
        "text",
        ['"\ud800"', '"\x00"', "[" * 50_000 + "]" * 50_000, '"' + "y" * 20_000_000 + '"'],
        ids=["lone surrogate", "raw NUL", "50,000 levels", "20 MB"],
    )
    async def test_P50_data_is_stored_exactly_or_refused_whole(self, harness: StoreHarness, text: str) -> None:
        store = await harness.fresh()
        good, bad = await create(store, new_run(), new_run())
        worker = await Worker.start(store)
        refs = {one.run.id: one.ref for one in (await worker.claim()).runs}
        writes = [RunWrite(refs[good], [record(1)]), RunWrite(refs[bad], [record(1, data=text), record(2)])]
        try:
            assert await worker.commit(*writes) == [Outcome.APPLIED] * 2
        except PayloadError:
            assert [await store.history(run_id) for run_id in (good, bad)] == [[], []]
        else:
            assert [entry.data for entry in await store.history(bad)] == [text, '"done"']
        # The store and the run go on either way, as after the committer has found the culprit.
        assert await worker.commit(writes[0]) == [Outcome.APPLIED]
        await worker.apply(refs[bad], record(9), change=states.complete(State.RUNNING, "1"))

    @pytest.mark.parametrize("text", ["\ud800", "a\x00b", "a\x1eb"], ids=["lone surrogate", "NUL", "separator"])
    @pytest.mark.parametrize("field", ["workflow", "key", "tag", "input"])
    async def test_P50_a_trigger_is_stored_exactly_or_refused_whole(
        self, harness: StoreHarness, field: str, text: str
    ) -> None:
        store = await harness.fresh()
        other: dict[str, Any] = {"tags": {"t": text}} if field == "tag" else {field: text}
        good, bad = new_run(), new_run(**other)
        try:
            await store.create_runs([good, bad])
        except PayloadError:
            assert await store.get_runs([good.id, bad.id]) == []
        else:
            run = await read(store, bad.id)
            assert text in (run.workflow, run.key, run.input, *run.tags.values())
        assert (await store.create_runs([good]))[0].created
