"""The ``durable`` command: a worker, its database and its runs, from a terminal.

It stands on ``typer`` and ``rich``, which ``pip install 'durable[cli]'`` brings. It uses the engine as any program
does, and knows no store.
"""
