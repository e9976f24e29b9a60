"""Random streams of store operations on memory, SQLite, Postgres and the oracle, as many as are asked for.

    python -m tests.model --operations 200000 --seed 1

The first divergence ends it, shortened; its seeds can be played again with ``--stream``.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import sys
import time

from durable.testing.conformance.streams import LENGTH
from durable.testing.conformance.subjects import Divergence
from durable.testing.postgres import find_postgres
from tests.model.stores import opened, shortened


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--operations", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stream", type=int, nargs="+", help="the seeds of one stream's operations")
    arguments = parser.parse_args()
    server = find_postgres().start(False)
    try:
        return asyncio.run(_run(server.database("durable_model"), arguments))
    finally:
        server.close()


async def _run(url: str, arguments: argparse.Namespace) -> int:
    rng, begun, made, divergences = random.Random(arguments.seed), time.monotonic(), 0, 0
    async with opened(url) as stores:
        if arguments.stream:
            await stores.play(arguments.stream)
        while made < arguments.operations and not divergences and not arguments.stream:
            seeds = [rng.randrange(1, 1 << 32) for _ in range(LENGTH)]
            try:
                made += await stores.play(seeds)
            except Divergence:
                divergences += 1
                seeds, message = await shortened(stores.play, seeds)
                print(f"python -m tests.model --stream {' '.join(map(str, seeds))}\n{message}")
    seconds, machine = time.monotonic() - begun, f"{platform.machine()}, Python {platform.python_version()}"
    print(f"operations {made:,} | divergences {divergences} | {seconds:.0f} s | seed {arguments.seed} | {machine}")
    return 1 if divergences else 0


if __name__ == "__main__":
    sys.exit(main())
