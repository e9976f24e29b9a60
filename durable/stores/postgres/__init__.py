"""The store on Postgres 15 or newer: ``PostgresStore``."""

from durable.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
