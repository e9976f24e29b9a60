"""Values that databases refuse or change, and names that are statements: everywhere that a user's text can get to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from durable import DurableError, Engine, Queue, RunFailed, RunHandle
from durable.ids import new_id
from durable.stores.postgres import PostgresStore
from tests.chaos import poison
from tests.chaos.arena import Arena, Place, arena
from tests.chaos.gates_workers import complaints
from tests.chaos.poison import HOSTILE, fingerprint
from tests.chaos.report import Row, gate
from tests.chaos.sabotage import WITHOUT

VALUES, NAMES = "poison values (P50)", "hostile names (P51)"

_TYPED = ("NotSerializable", "PayloadTooLarge", "PayloadError", "ResultTypeUnknown", "InvalidArgument", "StepFailed")
_AT_ONCE = 20
_LIMIT = 1 << 20  # characters of an error's text, however long the error was

Answer = tuple[str, str]
"""What became of a case: "exact", "refused" or what is wrong; and where."""


async def poison_values(
    place: Place, *, workers: int, patience: float, every: int = 1, least: int = 200, without: str = ""
) -> Row:
    """Each value as an input, a step's result, a run's result, an error, a signal, an entry of the log, and as a name.

    Exactly itself again, or a typed error at once: no run that is stuck, no worker that is dead.

    Args:
        every: Take every so many of the cases.
    """
    with gate(VALUES, "as inputs, results, errors, signals, entries of the log, names, keys and tags", "cases") as row:
        async with arena(place) as site, site.client() as client:
            await site.up(workers, options={"lease": 10.0, "linger": 0.0}, without=without)
            cases = list(_cases(client))[::every]
            answers: list[str] = []
            limit = asyncio.Semaphore(_AT_ONCE)

            async def one(where: str, name: str, case: Callable[[], Awaitable[str]]) -> None:
                async with limit:
                    try:
                        async with asyncio.timeout(patience):
                            answers.append(await case())
                    except DurableError:  # a RunFailed of another kind than expected is one too
                        answers.append("refused")
                    except Exception as error:  # whatever it is: nothing else may come out of the engine
                        answers.append(f"{error!r:.200}")
                    if answers[-1] not in ("exact", "refused"):
                        row.violations.append(f"P50: {name} as {where}: {answers[-1]}")

            await asyncio.gather(*(one(*case) for case in cases))
            row.n = len(cases)
            exact, refused = answers.count("exact"), answers.count("refused")
            row.remarks = f"{exact} came back exactly, {refused} were refused with a typed error"
            stuck = await site.ask(
                "SELECT id::text, state FROM durable.runs WHERE state NOT IN ('completed', 'failed')"
            )
            row.violations += [f"P50: run {run_id} is {state}" for run_id, state in stuck]
            extra = await site.ask(
                "SELECT run_id::text, kind FROM durable.history WHERE kind IN ('takeover', 'attempt')"
            )
            row.violations += [f"P50: {kind} in run {run_id}" for run_id, kind in extra]
            row.violations += [f"P50: worker {worker.pid} is dead" for worker in site.workers if worker.gone.is_set()]
            row.violations += complaints(site)
            if row.n < least:
                row.violations.append(f"gate: only {row.n} cases")
    return row


Case = tuple[str, str, Callable[[], Awaitable[str]]]


def _cases(client: Engine) -> Iterator[Case]:
    for name, make in poison.VALUES.items():
        value = make()
        yield "an input", name, partial(_as_input, client, value)
        yield "a step's result", name, partial(_as_result, client, name, value)
        yield "a run's result", name, partial(_as_end, client, name, value)
        yield "an error", name, partial(_as_error, client, name)
        yield "a signal", name, partial(_as_signal, client, value)
        yield "an entry of the log", name, partial(_as_entry, client, name)
        if isinstance(value, str):
            yield "a key", name, partial(_as_key, client, value)
            yield "a tag", name, partial(_as_tag, client, value)
            yield "a step's name", name, partial(_as_step, client, value)


async def _as_input(client: Engine, value: Any) -> str:
    return _same(await (await client.trigger(poison.takes, value)).result(), fingerprint(value))


async def _as_result(client: Engine, name: str, value: Any) -> str:
    return await _outcome(await client.trigger(poison.gives, name), lambda got: _same(got, fingerprint(value)))


async def _as_end(client: Engine, name: str, value: Any) -> str:
    handle = await client.trigger(poison.ends, name)
    return await _outcome(handle, lambda got: _same(fingerprint(got), fingerprint(value)))


async def _as_error(client: Engine, name: str) -> str:
    handle = await client.trigger(poison.raises, name)
    try:
        await handle.result()
    except RunFailed as failed:
        text = str(failed)
        text.encode()
        return "exact" if "ValueError" in text and len(text) < _LIMIT else f"another error: {text:.100}"
    return "no error"


async def _as_signal(client: Engine, value: Any) -> str:
    handle = await client.trigger(poison.hears)
    try:
        await client.signal(handle.run_id, "poison", value)
    except DurableError:
        await client.signal(handle.run_id, "poison", "an antidote")
        await handle.result()
        raise
    return _same(await handle.result(), fingerprint(value))


async def _as_entry(client: Engine, name: str) -> str:
    return await _outcome(await client.trigger(poison.emits, name), lambda got: _same(got, "emitted"))


async def _as_key(client: Engine, text: str) -> str:
    handle = await client.trigger(poison.ends, "None", key=text)
    again = await client.handle(poison.ends, key=text)
    await handle.result()
    return _same(again.run_id, handle.run_id)


async def _as_tag(client: Engine, text: str) -> str:
    handle = await client.trigger(poison.ends, "None", tags={"poison": text})
    await handle.result()
    page = await client.list_runs(tags={"poison": text})
    return _same(str([run.tags["poison"] for run in page.items]), str([text]))


async def _as_step(client: Engine, text: str) -> str:
    return await _outcome(await client.trigger(poison.named, text), lambda got: _same(got, "done"))


async def _outcome(handle: RunHandle[Any], judge: Callable[[Any], str]) -> str:
    """Of a run that ends with the value, or with a typed error that a run's failure names."""
    try:
        value = await handle.result()
    except RunFailed as failed:
        text = str(failed)
        return "refused" if any(name in text for name in _TYPED) else f"failed with {text:.200}"
    return judge(value)


def _same(got: str, wanted: str) -> str:
    return "exact" if got == wanted else "it has come back changed"


# -- names ----------------------------------------------------------------------------------------

_CANARY = "CREATE TABLE {}.canary (words text); INSERT INTO {}.canary VALUES ('alive and well')"
_STRUCTURE = (
    "SELECT table_schema, table_name, count(*)::int FROM information_schema.columns "
    "WHERE table_schema = 'durable' OR table_name = 'canary' GROUP BY 1, 2 ORDER BY 1, 2"
)


async def hostile_names(place: Place, *, every: int = 1, least: int = 500, without: str = "") -> Row:
    """Names that are statements, everywhere that a name can be given; afterwards nothing else has changed.

    One of them is a good name of a schema, ``public``, which then has more tables.

    Args:
        every: Take every so many of the cases.
    """
    with gate(NAMES, "statements as names of 15 kinds", "names") as row:
        async with arena(place) as site:
            for schema in ("public", "durable"):
                await site.ask(_CANARY.format(schema, schema))
            before = await site.ask(_STRUCTURE)
            store = PostgresStore(site.url)
            if without:
                WITHOUT[without](store)
            taken = 0
            async with Engine(store).client() as client:
                run_id = (await client.trigger("waits", delay=3600)).run_id
                for where, give, name in list(_given(site, client, run_id))[::every]:
                    row.n += 1
                    try:
                        async with asyncio.timeout(30):
                            wrong = await give(name)
                            taken += 1
                    except DurableError:
                        continue
                    except Exception as error:  # whatever it is: nothing else may come out of the engine
                        wrong = f"{error!r:.200}"
                    if wrong:
                        row.violations.append(f"P51: {name[:40]!a} as {where}: {wrong}")
            after = await site.ask(_STRUCTURE)
            if after != before:
                row.violations.append(f"P51: of the tables {sorted(set(before) ^ set(after))} have changed")
            else:
                for schema in ("public", "durable"):
                    words = await site.ask(f"SELECT words FROM {schema}.canary")
                    if words != [("alive and well",)]:
                        row.violations.append(f"P51: the canary of {schema} says {words}")
            if row.n < least:
                row.violations.append(f"gate: only {row.n} names")
            row.remarks = f"{taken} were taken as they are, {row.n - taken} refused; the canaries are intact"
    return row


Give = Callable[[str], Awaitable[str]]


def _given(site: Arena, client: Engine, run_id: str) -> Iterator[tuple[str, Give, str]]:
    """Every name in every place."""

    async def workflow(name: str) -> str:
        handle = await client.trigger(name, delay=3600)
        return _kept((await client.get_run(handle.run_id)).workflow, name)

    async def key(name: str) -> str:
        handle = await client.trigger("waits", key=name, delay=3600)
        return _kept((await client.handle("waits", key=name)).run_id, handle.run_id)

    async def tag(name: str) -> str:
        handle = await client.trigger("waits", tags={name: name}, delay=3600)
        return _kept((await client.get_run(handle.run_id)).tags[name], name)

    async def tagged(name: str) -> str:
        return _kept(str([run.id for run in (await client.list_runs(tags={name: name})).items][1:]), "[]")

    async def queue(name: str) -> str:
        handle = await client.trigger("waits", queue=name, delay=3600)
        return _kept((await client.get_run(handle.run_id)).queue, name)

    async def limit(name: str) -> str:
        await client.set_limits(Queue(name, concurrency=7))
        return _kept(str([one.name for one in await client.limits() if one.name == name]), str([name]))

    async def alone(name: str) -> str:
        await client.trigger("waits", concurrency_key=name, limit_key=name, delay=3600)
        return ""

    async def signal(name: str) -> str:
        await client.signal(run_id, name, 1, signal_id=f"{new_id(await _now(site))}")
        return ""

    async def signal_id(name: str) -> str:
        await client.signal(run_id, "a", 1, signal_id=name)
        return ""

    async def schedule(name: str) -> str:
        await client.schedule("waits", name=name, every=3600, enabled=False)
        return _kept((await client.get_schedule(name)).spec.name, name)

    async def topic(name: str) -> str:
        await client.publish(name, 1, key=name)
        return ""

    async def run(name: str) -> str:
        await client.get_run(name)
        return "there is such a run"

    async def note(name: str) -> str:
        await client.pause(run_id, reason=name, by=name)
        await client.resume(run_id, reason=name, by=name)
        return ""

    async def listed(name: str) -> str:
        await client.list_runs(workflow=name, queue=name, schedule=name, version=name)
        return ""

    async def schema(name: str) -> str:
        async with Engine(site.url, schema=name).client():
            return ""

    places = (workflow, key, tag, tagged, queue, limit, alone, signal, signal_id, schedule, topic, run, note, listed)
    for name in HOSTILE:
        for give in (*places, schema):
            yield give.__name__, give, name


async def _now(site: Arena) -> Any:
    [[now]] = await site.ask("SELECT now()")
    return now


def _kept(got: str, wanted: str) -> str:
    return "" if got == wanted else f"it is kept as {got[:60]!a}"
