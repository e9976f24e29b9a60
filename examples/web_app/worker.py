"""A worker of the shop: ``python -m examples.web_app.worker``. SIGTERM lets its steps end first."""

from __future__ import annotations

from examples.web_app.flows import make_engine

if __name__ == "__main__":
    make_engine().run()
