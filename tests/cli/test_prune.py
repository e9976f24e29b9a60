"""``durable prune``: asked before, and what it deletes."""

from __future__ import annotations

from durable import Engine
from tests.cli.command import Command, exit_code
from tests.cli.flows import ALL, execute, run


async def greeted(url: str, *names: str) -> None:
    async with Engine(url, workflows=ALL).client() as client:
        await client.trigger_many("greet", list(names))


async def left(url: str) -> int:
    async with Engine(url).client() as client:
        return len((await client.list_runs()).items)


def test_what_has_ended_is_deleted_and_what_has_not_stays(durable: Command) -> None:
    run(greeted(durable.url, "Ann", "Bob"))
    execute(durable.url)
    run(greeted(durable.url, "Eve"))
    assert durable("prune", "--older-than", "1d", "--yes").out == "Deleted 0 runs.\n"
    assert durable("prune", "--older-than", "0", "--yes", "--json").out == '{\n  "deleted": 2\n}\n'
    assert run(left(durable.url)) == 1


def test_a_person_is_asked(durable: Command) -> None:
    run(greeted(durable.url, "Ann"))
    execute(durable.url)
    terminal = durable.terminal("prune", "--older-than", "0")
    terminal.expect(r"Delete every run that ended more than .* ago\?")
    terminal.sendline("n")
    terminal.expect("Nothing was done.")
    assert exit_code(terminal) == 1
    assert run(left(durable.url)) == 1
    terminal = durable.terminal("prune", "--older-than", "0")
    terminal.expect("Delete every run")
    terminal.sendline("y")
    terminal.expect("Deleted 1 run.")
    assert exit_code(terminal) == 0


def test_misuse_is_told(durable: Command) -> None:
    assert "--older-than" in durable("prune", code=2).err
    assert "no duration" in durable("prune", "--older-than", "3x", code=2).err
    assert "say --yes" in durable("prune", "--older-than", "3d", code=2).err
