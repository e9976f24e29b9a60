"""Which statements would work unchanged on a Postgres that is distributed by ``shard``: see ``docs/scaling.md``.

There, a statement that says for every table which shard it means goes to one node, whatever it locks or joins. Others
are refused, or ask every node. Postgres itself is asked what each statement restricts: its generic plan shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from durable.sql import statements
from tests.postgres.conftest import Postgres

DOC = Path(__file__).parents[2] / "docs" / "scaling.md"
_CONDITIONS = {"Filter", "Index Cond", "Recheck Cond", "Hash Cond", "Merge Cond", "Join Filter", "TID Cond"}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def unrestricted(connection: psycopg.Connection[Any], name: str, sharded: set[str]) -> set[str]:
    """The sharded tables that the prepared statement looks at without saying which shard."""
    row = connection.execute(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = %s", [name]
    ).fetchone()
    assert row is not None
    values = f"({', '.join(['NULL'] * row[0])})" if row[0] else ""
    found = connection.execute(f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) EXECUTE {name}{values}".encode()).fetchone()
    assert found is not None
    everything = [node for one in found[0] for node in nodes(one["Plan"])]
    conditions = [str(node[what]) for node in everything for what in _CONDITIONS & node.keys()]
    scans = {
        (node["Relation Name"], node["Alias"])
        for node in everything
        if "Scan" in node["Node Type"] and node.get("Relation Name") in sharded
    }
    return {
        table
        for table, alias in scans
        if not any(re.search(rf"\b{alias}\.shard = | = \(?{alias}\.shard\b", one) for one in conditions)
    }


async def test_the_document_lists_the_statements_that_ask_every_shard(postgres: Postgres) -> None:
    await postgres.fresh()
    tables = "SELECT table_name FROM information_schema.columns WHERE table_schema = %s AND column_name = 'shard'"
    sharded = {table for (table,) in postgres.rows(tables, postgres.schema)}
    assert {"runs", "history", "signals", "keys", "events"} <= sharded
    found: dict[str, list[str]] = {}
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        for name, sql in statements("postgres", postgres.schema).items():
            connection.execute(f"PREPARE {name} AS {sql}".encode())
            if missing := unrestricted(connection, name, sharded):
                found[name] = sorted(missing)
    document, all_of_them = DOC.read_text("utf-8"), len(statements("postgres"))
    assert f"Of {all_of_them} statements {all_of_them - len(found)} say" in document
    listed = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", document, re.MULTILINE)
    assert {name: tables.split(", ") for name, tables in listed} == found
