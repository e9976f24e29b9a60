"""The HTTP runtime as its clients meet it: a server on a free port of loopback, with a worker in the same process."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.http.serving import Api, api_on


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    """A server with a worker, on a memory store of its own, without tokens."""
    async with api_on("memory://") as made:
        yield made


@pytest.fixture(scope="module")
async def shared() -> AsyncGenerator[Api]:
    """The same for all tests of a module: a start and a stop take 0.2 s."""
    async with api_on("memory://") as made:
        yield made
