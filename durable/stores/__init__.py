"""The stores: the seam of ``durable.store`` over memory, SQLite and Postgres; and which one a URL means."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from durable.errors import InvalidArgument, without_password
from durable.store import Store

_log = logging.getLogger("durable")

DEFAULT_FILE = "durable.db"


def store_for(url: str | None, schema: str) -> Store:
    """The store that ``url`` names; no I/O. Drivers are imported when they are needed.

    Args:
        url: ``postgresql://…``, ``sqlite:///relative``, ``sqlite:////absolute``, ``memory://``, or None: the
            variable ``DURABLE_DATABASE_URL``, else a SQLite file in the working directory, with one warning.
        schema: The Postgres schema.

    Raises:
        InvalidArgument: The URL is of none of these forms.
    """
    url = url or os.environ.get("DURABLE_DATABASE_URL") or _default_url()
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        from durable.stores.postgres import PostgresStore

        return PostgresStore(url, schema=schema)
    if separator and scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from durable.stores.sqlite import SQLiteStore

        return SQLiteStore(Path(rest[1:]))
    if separator and scheme == "memory" and not rest:
        from durable.stores.memory import MemoryStore

        return MemoryStore()
    raise InvalidArgument(
        f"not a store URL: {without_password(url)!r}; use postgresql://…, sqlite:///relative/file, "
        "sqlite:////absolute/file or memory://"
    )


def _default_url() -> str:
    path = Path(DEFAULT_FILE).absolute()
    note = "" if "DATABASE_URL" not in os.environ else "; DATABASE_URL is set, but only DURABLE_DATABASE_URL is read"
    _log.warning("no store given and DURABLE_DATABASE_URL is not set: using the SQLite file %s%s", path, note)
    return f"sqlite:///{path}"
