"""The store in this process's memory."""

from durable.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]
