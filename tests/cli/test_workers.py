"""``durable workers list``: who executes runs."""

from __future__ import annotations

import os

from durable import Engine
from durable.cli.shapes import WorkersShape
from tests.cli.command import Command
from tests.cli.flows import run


def test_workers_are_listed_while_they_work(durable: Command) -> None:
    assert durable("workers", "list").out == "No workers.\n"

    async def while_working() -> None:
        async with Engine(durable.url):
            (worker,) = durable("workers", "list", "--json").json(WorkersShape)["items"]
            assert (worker["pid"], worker["alive"], worker["running"]) == (os.getpid(), True, 0)
            row = durable("workers", "list").out.splitlines()[1]
            assert row.split()[0] == worker["id"]
            assert "alive" in row

    run(while_working())
    assert durable("workers", "list", "--json").json(WorkersShape) == {"items": []}
