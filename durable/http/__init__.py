"""The HTTP runtime: an ASGI application that serves one engine, and a server for it.

``create_app`` makes the application; mount it in your own, or serve it. It needs ``pip install durable[http]``.
"""

from __future__ import annotations

try:
    from durable.http.app import create_app
    from durable.http.server import Server, serve
except ModuleNotFoundError as error:
    if (error.name or "").startswith("durable"):
        raise
    raise ImportError(f"durable.http needs its extra: pip install 'durable[http]' ({error})") from error

from durable.http.runtime import HttpOptions, Redact

__all__ = ["HttpOptions", "Redact", "Server", "create_app", "serve"]
