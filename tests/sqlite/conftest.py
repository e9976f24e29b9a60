"""A file for each test, stores on it, and real processes beside it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import durable
from durable.stores.sqlite import SQLiteStore

ROOT = Path(durable.__file__).parent.parent


class Peer:
    """One process of ``peer.py``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, path: Path) -> Peer:
        script = str(Path(__file__).with_name("peer.py"))
        pipe = asyncio.subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, str(path), stdin=pipe, stdout=pipe, env=environment
        )
        peer = cls(process)
        assert await peer.answer() == "here"
        return peer

    def tell(self, verb: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([verb, *arguments]).encode() + b"\n")

    async def answer(self) -> Any:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    async def ask(self, verb: str, *arguments: Any) -> Any:
        self.tell(verb, *arguments)
        return await self.answer()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "durable.db"


@pytest.fixture
async def store(path: Path, migrated_file: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(shutil.copy(migrated_file, path))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def peers(path: Path) -> AsyncIterator[Callable[[int], Awaitable[list[Peer]]]]:
    """So many processes, which have not opened the file yet."""
    started: list[Peer] = []

    async def start(count: int) -> list[Peer]:
        new = await asyncio.gather(*(Peer.start(path) for _ in range(count)))
        started.extend(new)
        return new

    yield start
    for peer in started:
        await peer.kill()
