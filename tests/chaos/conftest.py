"""What the tests of the gates share: a server that may be killed, and a nursery of workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from durable.testing.postgres import OwnServer
from tests.chaos.arena import Place
from tests.chaos.workers import PROGRAM
from tests.processes.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery(PROGRAM) as found:
        yield found


@pytest.fixture
def place(durable_postgres: OwnServer, nursery: Nursery) -> Place:
    return Place(durable_postgres, nursery)
