"""A worker process: everything a service needs to execute workflows. Start as many as you like.

    DURABLE_DATABASE_URL=… SHOP_URL=http://127.0.0.1:8080 python -m examples.orders.worker

It ends on SIGTERM after its running steps, and with the process that started it.
"""

from __future__ import annotations

import logging
import os
import signal

from durable import Engine, WorkerOptions
from examples.orders.lifeline import on_parent_exit
from examples.orders.shop import Shop
from examples.orders.workflow import process_order

LEASE = 5.0
"""Seconds. After a SIGKILL the runs of a worker are somebody else's when so much time has passed."""


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    on_parent_exit(lambda: os.kill(os.getpid(), signal.SIGTERM))
    engine = Engine(
        workflows=[process_order],
        services={"shop": Shop(os.environ["SHOP_URL"])},
        worker=WorkerOptions(lease=LEASE, drain_timeout=3.0),
        schema=os.environ.get("ORDERS_SCHEMA", "durable"),
    )
    engine.run()


if __name__ == "__main__":
    main()
