"""What every store has to answer, as plain Python: dictionaries and the words of the specification.

It imports no store and none of the decisions that stores share (``requests``, ``states``): where it and a store differ,
one of them reads the specification wrongly. It keeps no order that the seam leaves open: see ``Oracle.takeable``.
"""

from durable.testing.oracle.executing import Oracle
from durable.testing.oracle.kept import Kept

__all__ = ["Kept", "Oracle"]
