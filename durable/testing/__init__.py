"""What users of the library need in their own tests.

``durable.testing.conformance`` is the suite that every store has to pass; it is imported on its own, since it
needs pytest.
"""

from durable.stores.memory import MemoryStore
from durable.testing.clock import VirtualClock

__all__ = ["MemoryStore", "VirtualClock"]
