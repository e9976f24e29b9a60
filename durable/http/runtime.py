"""What every route stands on: the engine, the options, and the one way in which a payload is shown.

It knows no route and no request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from durable.engine import Engine

_log = logging.getLogger("durable.http")

Redact = Callable[[str, Any], Any]
"""Called with what a payload is (``input``, ``result``, ``error``, ``data``) and its JSON value; returns what is shown
instead."""


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
        max_page: The largest ``limit`` of a listing.
        max_wait: Seconds that a long poll waits at most.
        max_streams: Event streams that are open at the same time.
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
    max_page: int = 500
    max_wait: float = 60.0
    max_streams: int = 100
    body_timeout: float = 10.0
    request_timeout: float = 15.0
    max_requests: int = 1000


@dataclass(frozen=True, slots=True)
class Runtime:
    """What is kept as ``request.app.state.durable``."""

    engine: Engine
    options: HttpOptions = field(default_factory=HttpOptions)
    redact: Redact | None = None

    def payload(self, what: str, text: str | None) -> Any:
        """The value of stored JSON, as it may be shown to whoever may see payloads."""
        if text is None:
            return None
        value = from_json(text)
        if self.redact is None:
            return value
        try:
            return self.redact(what, value)
        except Exception:
            _log.exception("the redaction hook raised: a payload is shown without its value")
            return None
