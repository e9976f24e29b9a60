"""Triggers per second over HTTP: one server process, concurrent connections, every answer a commit.

    python -m benchmarks.http [--store postgres|sqlite|memory] [--clients 64] [--seconds 8] [--profile]

The server is a process of its own, as `durable serve --no-worker` is. The client sends and reads HTTP/1.1 by hand: on
two cores a client library would be what is measured. Each connection sends the next request when the one before is
answered; the triggers of all connections travel in group commits. Afterwards the store is asked whether it has every
run that was acknowledged. It prints requests per second, their latency, and the CPU of the three parties per request;
``--profile`` prints where the server spends its time. Figures of one run on one machine are for orientation; compare
two in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import json
import os
import platform
import pstats
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from typing import cast
from urllib.parse import urlsplit

from benchmarks.machine import processes_cpu, server_pids, store_url
from durable import Context, Engine, workflow
from durable.collector import sparing_collector

BODY = {"flowId": "order-flow", "version": "1.0.0", "input": {"orderId": "ORD-123"}}


@workflow(name="order-flow", version="1.0.0")
async def order_flow(ctx: Context, order: dict[str, str]) -> str:
    ctx.log.info("nobody executes it here")
    return order["orderId"]


class Caller(asyncio.Protocol):
    """One connection: a request, its answer, the next one, until the time is over."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._sent = 0.0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, complete, body = self._buffer.partition(b"\r\n\r\n")
        if not complete:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._buffer = b""
        self._load.note(int(head[9:12]), time.perf_counter() - self._sent)
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        if self._sent >= self._load.ends:
            if not self.ended.done():
                self.ended.set_result(None)
            self._transport.close()
        else:
            self._transport.write(self._load.request)


class Load:
    """All connections together."""

    def __init__(self, url: str, seconds: float) -> None:
        body = json.dumps(BODY).encode()
        head = (
            f"POST /v1/runs/start HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body
        self.ends = time.perf_counter() + seconds
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []

    def note(self, status: int, latency: float) -> None:
        self.statuses[status] += 1
        self.latencies.append(latency)


async def offer(url: str, clients: int, seconds: float) -> Load:
    load, loop, where = Load(url, seconds), asyncio.get_running_loop(), urlsplit(url)
    callers = [Caller(load) for _ in range(clients)]
    for caller in callers:
        await loop.create_connection(lambda made=caller: made, str(where.hostname), where.port or 80)  # type: ignore[misc]
    await asyncio.gather(*(caller.ended for caller in callers))
    return load


async def held(url: str) -> int:
    """How many runs the store has."""
    async with Engine(url, workflows=[order_flow]).client() as engine:
        return sum((await engine.census()).runs.values())


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


# -- the server process ---------------------------------------------------------------------------


async def be_served(url: str) -> None:
    from durable.http import serve

    engine = Engine(url, workflows=[order_flow])
    async with await serve(engine, port=0) as server:
        print(server.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent closes it


def serve_here(url: str, profiled: bool) -> None:
    profile = cProfile.Profile()
    with sparing_collector(), asyncio.Runner(loop_factory=new_loop) as runner:
        if profiled:
            profile.enable()
        runner.run(be_served(url))
        profile.disable()
    if profiled:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(45)


@contextlib.contextmanager
def server(url: str, profiled: bool) -> Generator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.http", "--serve", url, *(["--profile"] if profiled else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def measure(url: str, postmaster: int | None, options: argparse.Namespace) -> None:
    with server(url, options.profile) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        at = process.stdout.readline().strip()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(offer(at, options.clients, 1.0))  # so that everything is warm
            before = None if url == "memory://" else runner.run(held(url))
            used = [time.process_time(), processes_cpu([process.pid]), processes_cpu(server_pids(postmaster))]
            started = time.perf_counter()
            load = runner.run(offer(at, options.clients, options.seconds))
            seconds = time.perf_counter() - started
            client, http, database = (
                after - since
                for after, since in zip(
                    (time.process_time(), processes_cpu([process.pid]), processes_cpu(server_pids(postmaster))),
                    used,
                    strict=True,
                )
            )
            if before is not None:
                found = runner.run(held(url)) - before
                assert found == load.statuses[201], f"{load.statuses[201]} acknowledged, {found} found"
    count, latencies = len(load.latencies), sorted(load.latencies)
    micro = 1e6 / count
    row = f"{options.clients:>8} {count / seconds:>12,.0f}"
    row += "".join(f" {latencies[count * percent // 100] * 1e3:>8.1f}" for percent in (50, 99))
    row += "".join(f" {cpu * micro:>11.0f}" for cpu in (client, http, database))
    print(f"{row}  {dict(load.statuses)}", flush=True)


HEAD = (
    f"{'clients':>8} {'requests/s':>12} {'p50 ms':>8} {'p99 ms':>8} "
    f"{'client µs':>11} {'server µs':>11} {'database µs':>11}  answers"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("postgres", "sqlite", "memory"), default="postgres")
    parser.add_argument("--clients", type=int, default=64, help="concurrent connections (64)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (8)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements (3)")
    parser.add_argument("--profile", action="store_true", help="print where the server spends its time")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve_here(options.serve, options.profile)
        return
    with store_url(options.store) as (url, postmaster):
        print(
            f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, {options.store}"
        )
        print(HEAD, flush=True)
        for _ in range(options.repeat):
            measure(url, postmaster, options)


if __name__ == "__main__":
    main()
