"""What every route stands on: the engine, the options, and the one way in which a payload is shown.

It knows no route and no request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import from_json, to_jsonable_python

from durable.engine import Engine

_log = logging.getLogger("durable.http")

What = Literal["input", "result", "error", "data"]

Redact = Callable[[What, Any], Any]
"""Called with what a payload is and its JSON value; returns what is shown instead.

``input`` and ``result`` are a run's or a schedule's, ``error`` is a recorded failure, ``data`` is what else stands in a
timeline or comes with an event: a step's result, a signal, what was emitted.
"""


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Limits and openness of the HTTP runtime.

    Args:
        hosts: Names accepted in the ``Host`` header, without a port. Empty: a connection over loopback needs a
            loopback name, which stops DNS rebinding; others are not checked.
        origins: Foreign origins, such as ``https://ops.example.com``, whose pages may change something.
        open_on_loopback: While no token exists, requests from this machine to a loopback address need none, with all
            scopes. Set it False behind a proxy on the same machine.
        max_body: Bytes of a request's body.
        max_header: Bytes of a request's headers, names and values together.
        max_depth: How deep JSON may be nested in a body.
        max_wait: Seconds that a long poll waits at most, and that a tick takes.
        max_streams: Event streams that are open at the same time.
        stream_timeout: Seconds after which an event stream ends, so that its client comes again, with its last id and
            a token that still holds.
        body_timeout: Seconds in which a request's body has to arrive.
        request_timeout: Seconds after which a request that waits for the store is answered 503.
        max_requests: Requests that are handled at the same time; more are answered 429.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    open_on_loopback: bool = True
    max_body: int = 8 * 1024 * 1024
    max_header: int = 16 * 1024
    max_depth: int = 100
    max_wait: float = 60.0
    max_streams: int = 100
    stream_timeout: float = 3600.0
    body_timeout: float = 10.0
    request_timeout: float = 15.0
    max_requests: int = 1000


@dataclass(frozen=True, slots=True)
class Runtime:
    """What is kept as ``request.app.state.durable``."""

    engine: Engine
    options: HttpOptions = field(default_factory=HttpOptions)
    redact: Redact | None = None

    def payload(self, what: What, text: str | None) -> Any:
        """The value of stored JSON, as it may be shown to whoever may see payloads."""
        if text is None:
            return None
        value = from_json(text)
        if self.redact is None:
            return value
        try:
            return to_jsonable_python(self.redact(what, value))
        except Exception:
            _log.exception("the redaction hook raised: a payload is shown without its value")
            return None

    def error(self, text: str | None, *, shown: bool) -> Any:
        """A recorded failure; only its type when payloads are not to be ``shown``: messages quote them."""
        if text is None or shown:
            return self.payload("error", text)
        return {"error_type": from_json(text)["error_type"]}
