"""The functions of the schema: what a trigger, pg_cron or another language calls; who may, and what it is refused."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from durable import states
from durable.codec import canonical_hash, codec_for
from durable.ids import check_run_id, new_id
from durable.model import Also, Awaited, Sent, State
from durable.names import check_key, check_name
from durable.store import Hint, Route
from durable.testing.conformance.harness import LONG_AGO, Worker, claimed, create, new_run, read
from durable.testing.postgres import runtime_role
from tests.postgres.conftest import Postgres

INVALID = psycopg.errors.InvalidParameterValue


def call(postgres: Postgres, function: str, *arguments: Any, **named: Any) -> Any:
    """Call a function of the schema with arguments as text, as other languages would."""
    places = [*(["%s"] * len(arguments)), *(f"{name} => %s" for name in named)]
    ((answer,),) = postgres.rows(f"SELECT durable.{function}({', '.join(places)})", *arguments, *named.values())
    return str(answer) if isinstance(answer, UUID) else answer


# -- what they do ---------------------------------------------------------------------------------


async def test_a_run_that_is_triggered_in_sql_is_one_like_others(postgres: Postgres) -> None:
    store = await postgres.fresh()
    run_id = call(
        postgres, "trigger", "order", '{"sku": "tea"}', "ORD-1", version="2", queue="slow", priority=3,
        tags='{"tenant": "acme", "note": ""}', limit_key="acme",
    )  # fmt: skip
    assert check_run_id(run_id) == run_id
    run = await read(store, run_id)
    assert (run.workflow, run.version, run.queue, run.priority) == ("order", "2", "slow", 3)
    assert (run.key, run.tags, run.limit_key) == ("ORD-1", {"tenant": "acme", "note": ""}, "acme")
    assert (run.input, run.state, len(run.seed)) == ('{"sku": "tea"}', State.PENDING, 32)
    worker = await Worker.start(store)
    (taken,) = (await worker.claim(routes=[Route("order", "2", "slow")])).runs
    assert (taken.run.id, taken.run.seed) == (run_id, run.seed)
    plain = await read(store, call(postgres, "trigger", "order"))
    assert (plain.input, plain.key, plain.tags, plain.version, plain.queue) == (None, None, {}, "1", "default")
    assert plain.seed != run.seed
    assert (await read(store, call(postgres, "trigger", "order", "null"))).input == "null"


async def test_ids_made_in_sql_are_in_the_order_of_time_with_those_of_python(postgres: Postgres) -> None:
    await postgres.fresh()
    ((now,),) = postgres.rows("SELECT clock_timestamp()")
    made = UUID(call(postgres, "new_id"))
    ((then,),) = postgres.rows("SELECT clock_timestamp()")
    assert now.timestamp() * 1000 // 1 <= made.int >> 80 <= then.timestamp() * 1000
    assert (made.version, made.variant) == (7, UUID(new_id(now)).variant)
    assert len({call(postgres, "new_id") for _ in range(50)}) == 50


async def test_a_run_is_ready_at_its_time_or_after_its_delay(postgres: Postgres) -> None:
    store = await postgres.fresh()
    at = await read(store, call(postgres, "trigger", "order", at="2100-01-01 01:00:00+01"))
    assert at.ready_at is not None
    assert at.ready_at.isoformat() == "2100-01-01T00:00:00+00:00"
    later = await read(store, call(postgres, "trigger", "order", delay="1 hour"))
    assert later.ready_at is not None
    assert 3590 < (later.ready_at - later.created_at).total_seconds() < 3700
    assert (await (await Worker.start(store)).claim()).runs == []


async def test_P36_one_key_is_one_run_whoever_triggers(postgres: Postgres) -> None:
    store = await postgres.fresh()
    text = '{"sku": "tea", "n": 1.0}'
    run_id = call(postgres, "trigger", "order", text, "k")
    same = ' { "n" : 1 , "sku" : "t\\u0065a" } '
    assert call(postgres, "trigger", "order", same, "k") == run_id
    [again] = await store.create_runs([new_run(key="k", input=same, input_hash=canonical_hash(same))])
    assert (again.run_id, again.created, again.conflict) == (run_id, False, None)
    [other] = await store.create_runs([new_run(key="k", input="2", input_hash=canonical_hash("2"))])
    assert other.conflict is not None
    assert "another input" in other.conflict
    for another in ("2", None):
        with pytest.raises(psycopg.errors.UniqueViolation, match=f"run {run_id}, which has this key, .*another input"):
            call(postgres, "trigger", "order", another, "k")

    made = new_run(key="other way", input=same, input_hash=canonical_hash(same))
    await create(store, made)
    assert call(postgres, "trigger", "order", '{"sku": "tea", "n": 1}', "other way") == made.id
    with pytest.raises(psycopg.errors.UniqueViolation, match="another input"):
        call(postgres, "trigger", "order", "3", "other way")
    assert call(postgres, "trigger", "else", "3", "other way") != made.id  # of another workflow


async def test_P36_no_input_and_null_differ_from_each_other_and_agree_with_themselves(postgres: Postgres) -> None:
    store = await postgres.fresh()
    run_id = call(postgres, "trigger", "order", None, "k")
    assert call(postgres, "trigger", "order", None, "k") == run_id
    with pytest.raises(psycopg.errors.UniqueViolation):
        call(postgres, "trigger", "order", "null", "k")
    [again] = await store.create_runs([new_run(key="k", input=None, input_hash=canonical_hash(None))])
    assert (again.run_id, again.conflict) == (run_id, None)


async def test_P37_one_run_with_a_concurrency_key_is_active(postgres: Postgres) -> None:
    store = await postgres.fresh()
    first = call(postgres, "trigger", "order", concurrency_key="c")
    with pytest.raises(psycopg.errors.ObjectInUse, match=f"run {first} of workflow 'order' is active"):
        call(postgres, "trigger", "order", concurrency_key="c")
    assert call(postgres, "trigger", "order", concurrency_key="c", concurrency_policy="existing") == first
    queued = call(postgres, "trigger", "order", concurrency_key="c", concurrency_policy="queue")
    worker = await Worker.start(store)
    taken = await worker.take()
    assert (taken.run.id, taken.run.linked, taken.run.concurrency_key) == (first, True, "c")
    await worker.apply(taken, change=states.complete(State.RUNNING, "1"))
    assert (await worker.take()).run.id == queued


async def test_a_run_id_of_the_callers_is_one_run(postgres: Postgres) -> None:
    await postgres.fresh()
    run_id = call(postgres, "new_id")
    for _ in range(2):
        assert call(postgres, "trigger", "order", "1", run_id=run_id) == run_id
    for arguments, named in ((("order", "2"), {}), (("else", "1"), {}), (("order", "1"), {"key": "k"})):
        with pytest.raises(psycopg.errors.UniqueViolation, match=f"run {run_id}, which has this id"):
            call(postgres, "trigger", *arguments, run_id=run_id, **named)
    assert postgres.rows("SELECT count(*) FROM durable.keys WHERE shard = 0") == [(0,)]


async def test_a_key_of_a_run_that_was_pruned_is_free(postgres: Postgres) -> None:
    await postgres.fresh()
    first = call(postgres, "trigger", "order", None, "k")
    postgres.rows("DELETE FROM durable.runs; DELETE FROM durable.keys")
    assert call(postgres, "trigger", "order", None, "k") != first


async def test_P31_a_signal_of_sql_reaches_its_run(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    await worker.wait(run)
    payload = '{"by": "ann", "note": ["é", null, 0]}'
    for _ in range(2):
        assert call(postgres, "signal", run.run.id, "approval", payload, signal_id="s1") in (None, "")
    call(postgres, "signal", run.run.id, "approval")
    again = await worker.take()
    assert [(one.name, one.data) for one in again.signals] == [("approval", payload), ("approval", "null")]
    assert again.signals[0].id == "s1"


async def test_P33_a_signal_to_nobody_is_refused(postgres: Postgres) -> None:
    store = await postgres.fresh()
    _, run = await claimed(store)
    call(postgres, "signal", run.run.id, "approval", "1", "known")
    postgres.rows("UPDATE durable.runs SET state = 'completed', ended_at = now(), owner = NULL WHERE shard = 0")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="has ended"):
        call(postgres, "signal", run.run.id, "approval")
    call(postgres, "signal", run.run.id, "approval", "1", "known")  # sent again
    for nobody in (call(postgres, "new_id"), None):
        with pytest.raises(psycopg.errors.NoDataFound, match="there is no run"):
            call(postgres, "signal", nobody, "approval")


async def test_P31_an_event_of_sql_reaches_who_waits(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    waits = [Awaited("paid", "ORD-1", LONG_AGO), Awaited("paid", "", LONG_AGO)]
    await worker.wait(run, also=Also(awaited=waits))
    call(postgres, "publish", "paid", "7", key="ORD-1", retention="1 minute")
    call(postgres, "publish", "paid")
    call(postgres, "publish", "paid", "8", key="ORD-2")
    await worker.claim(0, ())
    again = await worker.take()
    assert sorted((one.name, one.data) for one in again.signals) == [("event/paid/", "null"), ("event/paid/ORD-1", "7")]


async def test_who_triggers_in_sql_tells_the_workers_with_its_commit(postgres: Postgres) -> None:
    store = await postgres.fresh()
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    store.subscribe(heard.put_nowait)
    listening = f'LISTEN "{postgres.schema}"'
    await postgres.until("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query = %s)", listening)
    with psycopg.connect(postgres.url) as own:
        own.execute(f"SELECT {postgres.schema}.trigger('order')".encode())
        own.rollback()
        assert heard.empty()
        for function in ("trigger('order')", "publish('topic')"):
            own.execute(f"SELECT {postgres.schema}.{function}".encode())
            own.commit()
            async with asyncio.timeout(10):
                assert await heard.get() == Hint.WORK


# -- a database trigger, as an application would write it -----------------------------------------


async def test_a_table_can_trigger_workflows(apart: Postgres) -> None:
    store = await apart.fresh()
    schema = apart.schema
    apart.rows(
        f"""
        CREATE TABLE durable.orders (id text PRIMARY KEY);
        CREATE FUNCTION durable.on_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM {schema}.trigger('order', to_json(NEW.id), NEW.id);
            RETURN NEW;
        END $$;
        CREATE TRIGGER on_order AFTER INSERT ON durable.orders FOR EACH ROW EXECUTE FUNCTION durable.on_order()
        """
    )
    apart.rows("INSERT INTO durable.orders VALUES ('a'), ('b')")
    assert sorted(one.run.input or "" for one in (await (await Worker.start(store)).claim()).runs) == ['"a"', '"b"']


# -- what they refuse -----------------------------------------------------------------------------

_LONG = "é" * 101
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "no workflow": ("trigger", {"workflow": None}),
    "an empty name": ("trigger", {"workflow": ""}),
    "a long name": ("trigger", {"workflow": _LONG}),
    "a reserved character": ("trigger", {"workflow": "a/b"}),
    "a bracket": ("trigger", {"version": "a]b"}),
    "no version": ("trigger", {"version": None}),
    "a line break": ("trigger", {"queue": "a\nb"}),
    "a separator of ours": ("trigger", {"key": "a\x1eb"}),
    "an invisible character": ("trigger", {"key": "a\u200bb"}),
    "an empty key": ("trigger", {"key": ""}),
    "a long key": ("trigger", {"key": "k" * 513}),
    "an empty limit key": ("trigger", {"limit_key": ""}),
    "a policy that locks runs": ("trigger", {"concurrency_key": "c", "concurrency_policy": "replace"}),
    "no policy": ("trigger", {"concurrency_policy": None}),
    "an empty concurrency key": ("trigger", {"concurrency_key": ""}),
    "a priority below": ("trigger", {"priority": -1}),
    "a priority above": ("trigger", {"priority": 10}),
    "no priority": ("trigger", {"priority": None}),
    "two times": ("trigger", {"at": "2100-01-01", "delay": "1 s"}),
    "a time without end": ("trigger", {"at": "infinity"}),
    "a time before christ": ("trigger", {"at": "0044-03-15 BC"}),
    "a negative delay": ("trigger", {"delay": "-1 s"}),
    "a run id of another kind": ("trigger", {"run_id": "018f3c1e-0000-4000-8000-000000000000"}),
    "a run id of another variant": ("trigger", {"run_id": "018f3c1e-0000-7000-0000-000000000000"}),
    "tags that are a list": ("trigger", {"tags": "[]"}),
    "a tag that is a number": ("trigger", {"tags": '{"a": 1}'}),
    "a tag that is null": ("trigger", {"tags": '{"a": null}'}),
    "a tag without a name": ("trigger", {"tags": '{"": "x"}'}),
    "a tag with a reserved name": ("trigger", {"tags": '{"a#": "x"}'}),
    "a tag with a long value": ("trigger", {"tags": json.dumps({"a": "x" * 513})}),
    "a tag with a line break": ("trigger", {"tags": '{"a": "x\\ny"}'}),
    "many tags": ("trigger", {"tags": json.dumps({f"t{n}": "" for n in range(65)})}),
    "an input that is no json": ("trigger", {"input": "{"}),
    "a NUL": ("trigger", {"input": '["\\u0000"]'}),
    "half a pair": ("trigger", {"input": '"\\ud800"'}),
    "NaN": ("trigger", {"input": "NaN"}),
    "a number that is too large": ("trigger", {"input": '{"a": [1e400]}'}),
    "a large number in many digits": ("trigger", {"input": "9" * 400}),
    "a small number that is too large": ("trigger", {"input": f"[-1{'0' * 305}e5]"}),
    "deep nesting": ("trigger", {"input": "[" * 202 + "]" * 202}),
    "a large input": ("trigger", {"input": '"' + "x" * (4 * 1024 * 1024) + '"'}),
    "a signal without a name": ("signal", {"name": None}),
    "a signal of the store's own": ("signal", {"name": "child/x"}),
    "a signal's empty id": ("signal", {"signal_id": ""}),
    "a signal with a NUL": ("signal", {"payload": '"\\u0000"'}),
    "a topic of the store's own": ("publish", {"topic": "/effect"}),
    "no event key": ("publish", {"key": None}),
    "a long event key": ("publish", {"key": "k" * 513}),
    "a negative retention": ("publish", {"retention": "-1 s"}),
    "no retention": ("publish", {"retention": None}),
}


async def test_P50_what_python_refuses_is_refused_in_sql(postgres: Postgres) -> None:
    await postgres.fresh()
    plain: dict[str, dict[str, Any]] = {
        "trigger": {"workflow": "order"},
        "signal": {"run_id": call(postgres, "trigger", "order"), "name": "approval"},
        "publish": {"topic": "paid"},
    }
    answers: dict[str, str | None] = {}
    for what, (function, arguments) in REFUSED.items():
        try:
            answers[what] = f"taken: {call(postgres, function, **{**plain[function], **arguments})}"
        except psycopg.Error as error:
            answers[what] = error.sqlstate
    assert {what: answer for what, answer in answers.items() if not (answer or "").startswith("22")} == {}
    assert postgres.rows("SELECT count(*) FROM durable.runs") == [(1,)]
    for function, arguments in plain.items():
        call(postgres, function, **arguments)


LIMITS: dict[str, dict[str, Any]] = {
    "names": {"workflow": "é" * 100, "version": "v" * 200, "queue": "a b"},
    "keys": {"key": "é" * 256, "limit_key": "[]#/"},
    "tags": {"tags": json.dumps({f"t{n}": "" for n in range(64)})},
    "nesting": {"input": "[" * 201 + "]" * 201},
    "numbers": {"input": "[1.7976931348623157e308, -1e-400, 1e5, " + "9" * 308 + "]"},
    "an escape of an escape": {"input": '"\\\\u0000"'},
    "pairs": {"input": '"\\ud83d\\ude00"'},
    "doubled keys": {"input": '{"a": 1, "a": 2}'},
    "size": {"input": '"' + "x" * (4 * 1024 * 1024 - 2) + '"'},
}


async def test_P50_what_python_takes_is_taken_in_sql(postgres: Postgres) -> None:
    store = await postgres.fresh()
    for what, arguments in LIMITS.items():
        run = await read(store, call(postgres, "trigger", **{"workflow": "order", **arguments}))
        assert run.input == arguments.get("input"), what
        if run.input is not None:
            codec_for(Any).decode(run.input, what)


async def test_a_character_is_refused_in_sql_exactly_when_python_refuses_it(postgres: Postgres) -> None:
    """But for what is not assigned: that depends on the version of Unicode."""
    await postgres.fresh()
    taken = {
        n
        for (n,) in postgres.rows(
            "SELECT n FROM generate_series(1, 65535) AS n "
            "WHERE n NOT BETWEEN 55296 AND 57343 AND durable.printable(chr(n))"
        )
    }
    named = [*range(0x110B0, 0x110D0), *range(0x1BC9F, 0x1BCA5), 0x1D173, 0x1F600, 0xE0001, 0xE0041, 0xF0000, 0x10FFFD]
    taken |= {
        n for (n,) in postgres.rows("SELECT n FROM unnest(%s::integer[]) AS n WHERE durable.printable(chr(n))", named)
    }
    for n in (*range(1, 0xD800), *range(0xE000, 0x10000), *named):
        if unicodedata.category(chr(n)) != "Cn":
            assert (n in taken) == chr(n).isprintable(), hex(n)


async def test_P51_names_are_data(postgres: Postgres) -> None:
    store = await postgres.fresh()
    for name in ("a'; DROP TABLE x; --", 'a"b', "a%s$1\\", "Robert'); --", "${x}{}"):
        assert (check_name(name, "name"), check_key(name, "key")) == (name, name)
        text = json.dumps(name)
        run_id = call(postgres, "trigger", name, text, name, queue=name, tags=json.dumps({name: name}))
        run = await read(store, run_id)
        assert (run.workflow, run.key, run.queue, run.tags, run.input) == (name, name, name, {name: name}, text)
        call(postgres, "signal", run_id, name, signal_id=name)
        with pytest.raises(psycopg.errors.UniqueViolation):
            call(postgres, "trigger", name, "1", name)


# -- who may --------------------------------------------------------------------------------------


@contextmanager
def role(postgres: Postgres, *grants: str) -> Generator[psycopg.Connection[Any]]:
    """A connection of a role that has these rights alone."""
    name = f"caller_{postgres.schema}"
    postgres.rows(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    try:
        for grant in grants:
            postgres.rows(f"GRANT {grant} TO {name}")
        with psycopg.connect(postgres.url, user=name, password="x", autocommit=True) as connection:
            yield connection
    finally:
        postgres.rows(f"DROP OWNED BY {name}")
        postgres.rows(f"DROP ROLE {name}")


async def test_nobody_may_execute_a_function_until_it_is_granted(apart: Postgres) -> None:
    await apart.fresh()
    tables = f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {apart.schema}"
    with role(apart, f"USAGE ON SCHEMA {apart.schema}", tables) as connection:
        functions = apart.rows(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = %s::regnamespace", apart.schema
        )
        assert len(functions) >= 12
        for (function,) in functions:
            may = "SELECT has_function_privilege(%s, 'execute')"
            assert connection.execute(may.encode(), [function]).fetchall() == [(False,)], function
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for function trigger"):
            connection.execute(f"SELECT {apart.schema}.trigger('order')".encode())


async def test_a_function_has_the_rights_of_who_calls_it(postgres: Postgres) -> None:
    await postgres.fresh()
    execute = f"EXECUTE ON ALL FUNCTIONS IN SCHEMA {postgres.schema}"
    with role(postgres, f"USAGE ON SCHEMA {postgres.schema}", execute) as connection:
        for function in ("trigger('order')", "signal(gen_random_uuid(), 'x')", "publish('x')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table"):
                connection.execute(f"SELECT {postgres.schema}.{function}".encode())
    assert postgres.rows(
        "SELECT count(*) FROM pg_proc WHERE pronamespace = %s::regnamespace AND prosecdef", postgres.schema
    ) == [(0,)]


async def test_what_is_granted_to_a_runtime_role_is_enough(postgres: Postgres) -> None:
    await postgres.fresh()
    with runtime_role(postgres.url, postgres.schema) as url, psycopg.connect(url, autocommit=True) as connection:
        for function in ("trigger('order')", "publish('x')"):
            connection.execute(f"SELECT {postgres.schema}.{function}".encode())


async def test_nothing_that_a_caller_puts_in_the_way_is_used(postgres: Postgres) -> None:
    """Tables, functions and operators of the caller's, in front of its search path and in its temporary schema."""
    store = await postgres.fresh()
    own = f"{postgres.schema}_own"
    postgres.rows(f"CREATE SCHEMA {own}")
    try:
        for statement in (
            f"SET search_path = {own}, pg_temp, pg_catalog",
            f"CREATE TABLE {own}.runs (LIKE durable.runs)",
            "CREATE TEMP TABLE routes (LIKE durable.routes)",
            "CREATE TEMP TABLE keys (LIKE durable.keys)",
            *(
                f"CREATE FUNCTION {own}.{signature} LANGUAGE plpgsql AS $$ BEGIN RAISE 'taken in'; END $$"
                for signature in (
                    *("coalesce_(text) RETURNS text", "octet_length(text) RETURNS integer"),
                    *("clock_timestamp() RETURNS timestamptz", "gen_random_uuid() RETURNS uuid"),
                    *("pg_notify(text, text) RETURNS void", "uuid_send(uuid) RETURNS bytea"),
                    *("checked(text, text, boolean) RETURNS text", "jsonb_typeof(jsonb) RETURNS text"),
                    *("same(text, text) RETURNS boolean", "same_id(uuid, uuid) RETURNS boolean"),
                    *("replace(text, text, text) RETURNS text", "make_interval(float8) RETURNS interval"),
                )
            ),
            f"CREATE OPERATOR {own}.= (FUNCTION = {own}.same, LEFTARG = text, RIGHTARG = text)",
            f"CREATE OPERATOR {own}.= (FUNCTION = {own}.same_id, LEFTARG = uuid, RIGHTARG = uuid)",
            f"CREATE DOMAIN {own}.uuid AS text CHECK (false)",
            "SET standard_conforming_strings = off",
        ):
            postgres.rows(statement)
        with pytest.raises(psycopg.errors.RaiseException, match="taken in"):
            postgres.rows("SELECT octet_length('x'::text)")
        run_id = call(postgres, "trigger", "order", '{"a": [1]}', "k", tags='{"a": "b"}')
        assert call(postgres, "trigger", "order", '{"a": [1]}', "k") == run_id
        call(postgres, "signal", run_id, "approval")
        call(postgres, "publish", "paid")
        with pytest.raises(INVALID, match="unprintable"):
            call(postgres, "trigger", "a\u200bb")
    finally:
        postgres.rows("RESET ALL")
        postgres.rows("DISCARD TEMP")
        postgres.rows(f"DROP SCHEMA {own} CASCADE")
    assert (await read(store, run_id)).input == '{"a": [1]}'


# -- beside others --------------------------------------------------------------------------------


async def test_P36_two_transactions_with_one_key_make_one_run(postgres: Postgres) -> None:
    store = await postgres.fresh()
    trigger = f"SELECT {postgres.schema}.trigger('order', '1', 'k')::text".encode()
    call(postgres, "trigger", "order")  # the route is there
    first = ""
    for ends, made in (("rollback", True), ("commit", False)):
        with psycopg.connect(postgres.url) as one, psycopg.connect(postgres.url) as two:
            ((first,),) = one.execute(trigger).fetchall()
            waiting = asyncio.create_task(asyncio.to_thread(two.execute, trigger))
            blocked = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted)"
            await postgres.until(blocked, two.info.backend_pid)
            getattr(one, ends)()
            ((second,),) = (await waiting).fetchall()
            assert (second != first) is made
            two.rollback()
    [found] = await store.create_runs([new_run(key="k", input="1", input_hash=canonical_hash("1"))])
    assert found.run_id == first


async def test_a_transaction_that_stays_open_is_in_nobodys_way(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    with psycopg.connect(postgres.url) as own:
        own.execute(f"SELECT {postgres.schema}.trigger('order', '1', 'k')".encode())
        own.execute(f"SELECT {postgres.schema}.signal(%s, 'approval')".encode(), [run.run.id])
        own.execute(f"SELECT {postgres.schema}.publish('paid')".encode())
        async with asyncio.timeout(5):
            assert (await worker.claim()).runs == []
            await worker.wait(run)
            assert (await worker.claim()).runs == []
            await create(store, new_run())
            assert len((await worker.claim()).runs) == 1
        own.commit()
    assert {one.run.id for one in (await worker.claim()).runs} >= {run.run.id}


async def test_a_snapshot_that_cannot_show_the_winner_is_an_error_of_the_isolation(postgres: Postgres) -> None:
    await postgres.fresh()
    with psycopg.connect(postgres.url) as own:
        own.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        own.execute("SELECT 1")
        call(postgres, "trigger", "order", None, "k")
        with pytest.raises(psycopg.errors.SerializationFailure):
            own.execute(f"SELECT {postgres.schema}.trigger('order', NULL, 'k')".encode())


async def test_sent_knows_the_words_of_the_function(postgres: Postgres) -> None:
    await postgres.fresh()
    run_id = call(postgres, "trigger", "order")
    assert Sent(call(postgres, "add_signal", run_id, "s", "approval", "1")) is Sent.ACCEPTED
    postgres.rows("UPDATE durable.runs SET ended_at = now() WHERE shard = 0")
    assert Sent(call(postgres, "add_signal", run_id, "t", "approval", "1")) is Sent.FINISHED
    assert Sent(call(postgres, "add_signal", call(postgres, "new_id"), "t", "approval", "1")) is Sent.NOT_FOUND
