"""Worker processes as the gates see them."""

from __future__ import annotations

import signal

from tests.processes.nursery import Forked

PROGRAM = "tests.chaos.program"


class Worker(Forked):
    """One worker process."""

    @property
    def complaints(self) -> list[str]:
        """Lines of its log that say that something went wrong which must not."""
        return [line for line in self.log.splitlines() if line.startswith(("ERROR", "CRITICAL", "Traceback"))]

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.exit_code()
