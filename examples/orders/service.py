"""Payment, inventory and shipping behind HTTP, as unreliable as such services are. A process of its own.

    python -m examples.orders.service --ledger FILE [--seed N] [--port N] [--calm]

``POST /<operation>/<order id>`` with a JSON body and the header ``Idempotency-Key``. Some requests are slow, some get
a 500, some find the connection dropped: before the effect, or after it, when the caller cannot know that the money
has moved. Which ones is drawn from the seed, so that it does not depend on timing. ``GET /stats`` counts all of it.

It says its address on standard output and ends when its standard input does: with the process that started it.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from examples.orders.ledger import OPERATIONS, Answer, Ledger, Request
from examples.orders.lifeline import on_parent_exit


class Trouble(StrEnum):
    """What a request can meet."""

    NONE = "none"
    ERROR = "error"  # a 500, and no effect
    DROP_BEFORE = "dropped before"  # the connection ends without an answer and without an effect
    DROP_AFTER = "dropped after"  # the connection ends without an answer, but the effect has happened


@dataclass(frozen=True, slots=True)
class Fate:
    """How one request will go."""

    trouble: Trouble = Trouble.NONE
    delay: float = 0.0  # seconds
    slow: bool = False


class Moods:
    """Draws the fate of each request from the seed, the operation, the order, and how often that was asked before.

    The fifth request and later ones of an operation go well: a service that never recovers is another story than
    this example's.
    """

    GOOD_FROM = 5

    def __init__(self, seed: int, calm: bool = False) -> None:
        self._seed = seed
        self._calm = calm
        self._asked = Counter[str]()
        self._lock = threading.Lock()

    def fate(self, operation: str, order_id: str) -> Fate:
        if self._calm:
            return Fate()
        with self._lock:
            self._asked[f"{operation}/{order_id}"] += 1
            count = self._asked[f"{operation}/{order_id}"]
        rng = random.Random(f"{self._seed}/{operation}/{order_id}/{count}")
        slow = rng.random() < 0.06
        delay = rng.uniform(0.4, 0.9) if slow else rng.uniform(0.02, 0.12)
        if count >= self.GOOD_FROM:
            return Fate(delay=delay, slow=slow)
        trouble = rng.choices(list(Trouble), [84, 6, 4, 6])[0]
        return Fate(trouble, delay, slow)


class Service(ThreadingHTTPServer):
    """The server, not yet serving. Port 0 takes a free one."""

    daemon_threads = True
    request_queue_size = 256  # the default of 5 refuses connections when two workers start at once

    def __init__(self, ledger: Ledger, moods: Moods, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.ledger = ledger
        self.moods = moods
        self._counts = Counter[str]()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), ConnectionError):
            self.count("nobody listened")  # the worker was killed meanwhile
        else:
            super().handle_error(request, client_address)

    def count(self, *what: str) -> None:
        with self._lock:
            self._counts.update(what)

    def stats(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


class _Handler(BaseHTTPRequestHandler):
    @property
    def _service(self) -> Service:
        return cast("Service", self.server)

    def do_GET(self) -> None:
        if self.path == "/stats":
            self._answer(Answer(200, json.dumps(self._service.stats())))
        else:
            self._answer(Answer(404, '{"error": "no such page"}'))

    def do_POST(self) -> None:
        request = self._request()
        if request is None:
            return
        service = self._service
        fate = service.moods.fate(request.operation, request.order_id)
        service.count("requests", f"worker {request.worker}", *(["slow"] if fate.slow else []))
        time.sleep(fate.delay)
        match fate.trouble:
            case Trouble.NONE:
                self._answer(self._apply(request, answered=True))
            case Trouble.ERROR:
                service.count(fate.trouble)
                service.ledger.note_failure(request, answered=True)
                self._answer(Answer(500, '{"error": "something went wrong, try again"}'))
            case Trouble.DROP_BEFORE:
                service.count(fate.trouble)
                service.ledger.note_failure(request, answered=False)
                self._drop()
            case Trouble.DROP_AFTER:
                service.count(fate.trouble)
                self._apply(request, answered=False)
                self._drop()

    def _request(self) -> Request | None:
        """The request; None when it makes no sense, which is answered already."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        operation, _, order_id = self.path.removeprefix("/").partition("/")
        key = self.headers.get("Idempotency-Key")
        if operation not in OPERATIONS or not order_id:
            self._answer(Answer(404, '{"error": "no such operation"}'))
        elif key is None:
            self._answer(Answer(400, '{"error": "the header Idempotency-Key is missing"}'))
        else:
            attempt, worker = int(self.headers.get("X-Attempt", "1")), self.headers.get("X-Worker", "")
            return Request(operation, order_id, key, body.decode(), attempt, worker)
        return None

    def _apply(self, request: Request, *, answered: bool) -> Answer:
        answer, outcome = self._service.ledger.apply(request, answered=answered)
        self._service.count(outcome, f"{request.operation} {outcome}")
        return answer

    def _answer(self, answer: Answer) -> None:
        content = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _drop(self) -> None:
        """Reset the connection: the caller sees it end in the middle of the exchange."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: the ledger has every request."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The payment, inventory and shipping service of the orders example.")
    parser.add_argument("--ledger", type=Path, required=True, help="SQLite file to make; must not exist")
    parser.add_argument("--seed", type=int, default=7, help="draws errors and delays (default %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--calm", action="store_true", help="no errors, no delays")
    args = parser.parse_args()
    if args.ledger.exists():
        parser.error(f"{args.ledger} exists already")
    service = Service(Ledger(args.ledger), Moods(args.seed, args.calm), args.port)
    print(service.url, flush=True)
    on_parent_exit(service.shutdown)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the ledger is closed in good order
    try:
        service.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        pass
    finally:
        service.ledger.close()


if __name__ == "__main__":
    main()
