"""The HTTP runtime as its clients meet it: a server on a free port of loopback, with a worker in the same process."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.http.serving import Api, api_on


@pytest.fixture
async def api() -> AsyncGenerator[Api]:
    """A server with a worker, on a memory store, without tokens."""
    async with api_on("memory://") as made:
        yield made
