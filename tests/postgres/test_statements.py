"""The SQL itself: every statement prepares, the schema is the one on record, rights and words agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from durable.errors import ConfigurationError, SchemaOutdated
from durable.model import Kind, State
from durable.sql import statements
from durable.stores.postgres import PostgresStore
from durable.testing.conformance.harness import new_run
from durable.testing.postgres import runtime_role
from tests.postgres.conftest import Postgres

SNAPSHOT = Path(__file__).with_name("schema.txt")
SQL = Path(__file__).parents[2] / "sql" / "postgres"

CATALOG = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
               pg_get_expr(d.adbin, d.adrelid)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'r' ORDER BY c.relname, a.attnum""",
    "constraints": """
        SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = %s::regnamespace AND contype <> 'n' ORDER BY 1, 2""",
    "indexes": """
        SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE c.relnamespace = %s::regnamespace ORDER BY 1""",
    "options": """
        SELECT relname, array_to_string(reloptions, ', ') FROM pg_class
        WHERE relnamespace = %s::regnamespace AND relkind = 'r' AND reloptions IS NOT NULL ORDER BY 1""",
    "functions": """
        SELECT oid::regprocedure::text, pg_get_function_result(oid), CASE WHEN prosecdef THEN 'definer' END,
               array_to_string(proconfig, ', ')
        FROM pg_proc WHERE pronamespace = %s::regnamespace ORDER BY 1""",
}


async def test_every_statement_prepares_for_a_role_without_ddl(postgres: Postgres) -> None:
    await postgres.fresh()
    with runtime_role(postgres.url, postgres.schema) as url, psycopg.connect(url, autocommit=True) as connection:
        for name, sql in statements("postgres", postgres.schema).items():
            connection.execute(f"PREPARE {name} AS {sql}".encode())
        ((count,),) = connection.execute("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''").fetchall()
    assert count == len(statements("postgres"))


def test_every_statement_is_used() -> None:
    code = "".join(path.read_text() for path in (Path(__file__).parents[2] / "durable/stores/postgres").glob("*.py"))
    assert [name for name in statements("postgres") if f'"{name}"' not in code] == []


async def test_the_schema_is_the_one_on_record(apart: Postgres) -> None:
    """A change of the schema shows in a review as a change of ``schema.txt``; a release's migrations never change."""
    await apart.fresh()
    lines: list[str] = []
    for title, query in CATALOG.items():
        lines.append(f"-- {title}")
        for row in apart.rows(query, apart.schema):
            lines.append(" | ".join(str(value) for value in row if value is not None))
    found = "\n".join(lines).replace(f"{apart.schema}.", "durable.") + "\n"
    assert found == SNAPSHOT.read_text("utf-8")


async def test_the_words_of_the_tables_are_those_of_the_model(postgres: Postgres) -> None:
    await postgres.fresh()
    ((check,),) = postgres.rows(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'runs_state_check' "
        "AND connamespace = %s::regnamespace",
        postgres.schema,
    )
    assert set(re.findall(r"'(\w+)'", check)) == {state.value for state in State}
    sql = "".join(path.read_text() for path in (SQL / "queries").glob("*.sql"))
    assert set(re.findall(r"kind <> '(\w+)'", sql)) <= {kind.value for kind in Kind}


async def test_the_documented_grants_are_enough_to_run(apart: Postgres) -> None:
    store = await apart.fresh()
    name = f"granted_{apart.schema}"
    apart.rows(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    try:
        grants = re.sub(r"\bdurable\b", apart.schema, (SQL / "grants.sql").read_text())
        apart.rows(grants.replace("durable_app", name))
        for statement in statements("postgres", apart.schema).values():
            named = re.findall(r'"' + apart.schema + r'"\.(\w+)', statement)
            sequences = [one for one in named if one.endswith("_seq")]
            for sequence in sequences:
                query = f"SELECT has_sequence_privilege('{name}', '{apart.schema}.{sequence}', 'USAGE')"
                assert apart.rows(query) == [(True,)]
            called = re.findall(r'"' + apart.schema + r'"\.(\w+)\((?=\s*(?:\$|CASE))', statement)
            for function in called:
                assert apart.rows(
                    "SELECT has_function_privilege(%s, oid, 'execute') FROM pg_proc "
                    "WHERE pronamespace = %s::regnamespace AND proname = %s",
                    *(name, apart.schema, function),
                ) == [(True,)]
            for table in set(named) - set(sequences) - set(called):
                for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                    query = f"SELECT has_table_privilege('{name}', '{apart.schema}.{table}', '{right}')"
                    assert apart.rows(query) == [(True,)]
        assert await store.create_runs([new_run()])
    finally:
        apart.rows(f"DROP OWNED BY {name}")
        apart.rows(f"DROP ROLE {name}")


async def test_a_role_that_may_not_migrate_is_told_what_it_needs(apart: Postgres) -> None:
    with runtime_role(apart.url, apart.schema) as url:
        store = await apart.another(url)
        with pytest.raises(ConfigurationError, match="GRANT CREATE ON DATABASE"):
            await store.migrate()
        other = PostgresStore(url, schema=f"{apart.schema}_none")
        await other.open()
        with pytest.raises(ConfigurationError, match="GRANT CREATE ON DATABASE"):
            await other.migrate()
        await other.close()


async def test_a_role_without_rights_is_told_where_they_stand(postgres: Postgres) -> None:
    await postgres.fresh()
    with runtime_role(postgres.url, "elsewhere") as url:
        store = await postgres.another(url)
        with pytest.raises(ConfigurationError, match=r"grants\.sql"):
            await store.schema_version()
        with pytest.raises(ConfigurationError, match=r"grants\.sql"):
            await store.create_runs([new_run()])
    postgres.rows("DROP SCHEMA elsewhere")


async def test_a_schema_that_is_not_there_is_told_apart_from_an_outage(apart: Postgres) -> None:
    store = await apart.bare()
    with pytest.raises(SchemaOutdated, match="migrate"):
        await store.create_runs([new_run()])
