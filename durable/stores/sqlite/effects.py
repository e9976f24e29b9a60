"""Effects that runs share: who makes one. What became of it is said by a write, or by the end of the run."""

from __future__ import annotations

import json

from durable.model import Effect, RunRef
from durable.stores.sqlite.connection import Connection


def take(db: Connection, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
    """Have the step make the effect unless another has it; None when the lease is lost. On the store's thread."""
    while True:
        db.write("take_effect", lambda: (worker, ref.id, ref.claim, key, step))
        if not db.value("taking_held"):
            return None
        found = db.value("effect_taken", {"key": key, "step": step})
        if found is not None:
            mine, run_id, done, data = json.loads(found)
            return Effect(bool(mine), run_id, bool(done), data)
