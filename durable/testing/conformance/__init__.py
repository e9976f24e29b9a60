"""The suite that every store has to pass, as library code: bring a fixture, and your store runs it.

    class TestMyStore(StoreConformance):
        @pytest.fixture
        async def harness(self) -> AsyncIterator[StoreHarness]:
            ...

The tests are coroutines, so pytest needs a plugin that runs them (here pytest-asyncio in its auto mode). Call
``pytest.register_assert_rewrite("durable.testing.conformance")`` in ``conftest.py`` to see what differs when one
fails. No test sleeps: where time is the subject, it waits for the store's clock, or moves a virtual one.
"""

from durable.testing.conformance.children import ChildConformance
from durable.testing.conformance.claims import ClaimConformance
from durable.testing.conformance.commits import CommitConformance
from durable.testing.conformance.concurrency import ConcurrencyConformance
from durable.testing.conformance.crossings import CrossingConformance
from durable.testing.conformance.crowds import CrowdConformance
from durable.testing.conformance.debounce import DebounceConformance
from durable.testing.conformance.effects import EffectConformance
from durable.testing.conformance.erasure import ErasureConformance
from durable.testing.conformance.events import EventConformance
from durable.testing.conformance.fences import FenceConformance
from durable.testing.conformance.harness import StoreHarness
from durable.testing.conformance.hostile import HostileConformance
from durable.testing.conformance.life import LifeConformance
from durable.testing.conformance.limits import LimitConformance
from durable.testing.conformance.orders import OrderConformance
from durable.testing.conformance.oversight import OversightConformance
from durable.testing.conformance.queues import QueueConformance
from durable.testing.conformance.reads import ReadConformance
from durable.testing.conformance.requests import RequestConformance
from durable.testing.conformance.retries import RetryConformance
from durable.testing.conformance.schedules import ScheduleConformance
from durable.testing.conformance.signals import SignalConformance
from durable.testing.conformance.starts import StartConformance
from durable.testing.conformance.streams import StreamConformance
from durable.testing.conformance.triggers import TriggerConformance
from durable.testing.conformance.workers import WorkerConformance


class StoreConformance(
    LifeConformance,
    TriggerConformance,
    StartConformance,
    ClaimConformance,
    CommitConformance,
    FenceConformance,
    WorkerConformance,
    ReadConformance,
    HostileConformance,
    RequestConformance,
    CrossingConformance,
    RetryConformance,
    ErasureConformance,
    SignalConformance,
    ChildConformance,
    EventConformance,
    EffectConformance,
    OrderConformance,
    StreamConformance,
    QueueConformance,
    LimitConformance,
    ConcurrencyConformance,
    DebounceConformance,
    CrowdConformance,
    ScheduleConformance,
    OversightConformance,
):
    """All of it. A subclass provides the fixture ``harness``."""


__all__ = ["StoreConformance", "StoreHarness"]
