"""The store in a SQLite file: several processes of one machine, one writer at a time."""

from durable.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
