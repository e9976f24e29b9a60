"""Routes: (workflow, version, queue) as the small number that stands in every run and in the claim index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from durable.store import Route
from durable.stores.postgres import literals
from durable.stores.postgres.sessions import Sessions


class Routes:
    """The numbers that this process has met. They never change, so what is known is never asked again."""

    def __init__(self) -> None:
        self._numbers: dict[Route, int] = {}
        self.by_number: dict[int, Route] = {}

    async def numbers(self, sessions: Sessions, wanted: Iterable[Route]) -> Mapping[Route, int]:
        """The numbers of all known routes, ``wanted`` among them; a new one is inserted at its first use."""
        if missing := [route for route in dict.fromkeys(wanted) if route not in self._numbers]:
            await self._read(sessions)
            if missing := [route for route in missing if route not in self._numbers]:
                names = literals.columns(
                    [route.workflow for route in missing],
                    [route.version for route in missing],
                    [route.queue for route in missing],
                )
                await sessions.write("add_routes", sessions.call("add_routes", *names))
                await self._read(sessions)
        return self._numbers

    async def _read(self, sessions: Sessions) -> None:
        for number, workflow, version, queue in await sessions.read("routes"):
            route = Route(workflow, version, queue)
            self._numbers[route] = number
            self.by_number[number] = route
