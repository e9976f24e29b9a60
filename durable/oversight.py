"""The part of the seam that is about looking after the system; ``Store`` is this, ``Timetable`` and the rest.

Nothing here is needed to execute a run. All of it may be asked often, by monitors: what it costs depends on the runs
that have not ended, never on how many have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from durable.reports import Census, Finding, StoredToken, WorkerInfo


class Oversight(Protocol):
    """Workers, counts, tokens and defects, as every store knows them. The rules of ``store`` hold here too."""

    async def workers(self) -> list[WorkerInfo]:
        """The workers that are registered, by id, those whose lease has expired and that nobody has reaped included."""
        ...

    async def census(self) -> Census:
        """The runs that have not ended, counted at one moment."""
        ...

    async def put_token(self, token: StoredToken) -> bool:
        """Store the token; False when another one has its name. Again with the same digest: True, and no change."""
        ...

    async def tokens(self) -> list[StoredToken]:
        """All tokens, by name, those that have expired included."""
        ...

    async def find_tokens(self, prefix: str) -> list[StoredToken]:
        """The tokens with this ``prefix``: one, or none; by chance two. Index-served: it is asked for each request."""
        ...

    async def delete_token(self, name: str) -> bool:
        """Delete the token; False when there is none of this name."""
        ...

    async def examine(self) -> Sequence[Finding]:
        """What this store can say about its own health: one finding for each check, those that are well included.

        Only reads; needs the schema to be up to date.
        """
        ...

    async def repair(self) -> Sequence[str]:
        """Put right what ``examine`` calls repairable; a line for each thing done. Safe while workers work."""
        ...

    def migration_script(self, present: int) -> str:
        """SQL for the database's shell that brings a schema of version ``present`` to ``latest_version``; no I/O."""
        ...
