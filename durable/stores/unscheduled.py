"""What a store answers about schedules before it keeps any. Each store that learns to, drops it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from durable.clock import HostClock
from durable.errors import ConfigurationError
from durable.schedules import Due, Found, Schedule, ScheduleWrite, Ticked


class Unscheduled:
    """No schedules, and none to be had."""

    async def write_schedules(self, writes: Sequence[ScheduleWrite]) -> list[bool]:  # noqa: ARG002
        raise ConfigurationError("this store keeps no schedules yet")

    async def delete_schedule(self, name: str) -> bool:  # noqa: ARG002
        return False

    async def find_schedules(self, names: Sequence[str]) -> list[Found]:  # noqa: ARG002
        return []

    async def list_schedules(self, limit: int, after: str | None) -> list[Schedule]:  # noqa: ARG002
        return []

    async def due_schedules(self, limit: int, after: tuple[datetime, str] | None) -> Due:  # noqa: ARG002
        return Due(HostClock().now(), [], None)

    async def ticks(self, name: str, since: datetime, until: datetime, limit: int) -> list[Ticked]:  # noqa: ARG002
        return []
