"""A disk that is small enough to be filled; it goes with this process, however that ends."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from durable.testing.postgres import OwnServer, own_postgres

_WATCHER = """
PATH=$PATH:/usr/sbin:/sbin:/usr/bin:/bin
trap '' INT
read -r _
tries=0
while [ -n "$(ls -d "$1"/durable-pg-* 2>/dev/null)" ] && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
umount -l "$1"
rmdir "$1"
"""
"""Waits on a pipe that only the process which has mounted holds; then a while for the server's own watcher, which finds
the server by what lies on the disk. Lazily, since something may still stand in it."""


def may_mount() -> bool:
    """Whether this machine lets us have a small disk of our own."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(_mounting(folder, 1), capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def _mounting(folder: str, megabytes: int) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=1777", "durable-chaos", folder]


@contextmanager
def small_disk(megabytes: int) -> Generator[Path]:
    """A mounted disk of that size; needs `may_mount`."""
    folder = tempfile.mkdtemp(prefix="durable-disk-")
    Path(folder).chmod(0o755)
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", _WATCHER, "durable-disk", folder], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        subprocess.run(_mounting(folder, megabytes), check=True)
        yield Path(folder)
    finally:
        if watcher.stdin is not None:
            watcher.stdin.close()
        watcher.wait()


@contextmanager
def server_on(disk: Path) -> Generator[OwnServer]:
    """A Postgres whose data lie on that disk."""
    before, tempfile.tempdir = tempfile.tempdir, str(disk)
    try:
        server = own_postgres()
    finally:
        tempfile.tempdir = before
    with server:
        yield server
