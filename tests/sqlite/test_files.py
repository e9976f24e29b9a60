"""The file itself: who may read it, what is wrong with it, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable.errors import ConfigurationError, PayloadError, StoreUnavailable
from durable.model import NewRun
from durable.store import Hint
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.peer import new_runs


@pytest.fixture(params=[0o000, 0o022, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def store_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("durable-sqlite")]


@pytest.mark.usefixtures("umask")
async def test_P55_the_file_and_its_companions_belong_to_their_owner_alone(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await store.migrate()
    await store.create_runs(new_runs(1))
    modes = {file.name: mode(file) for file in path.parent.iterdir()}
    await store.close()
    assert modes == dict.fromkeys(("durable.db", "durable.db-wal", "durable.db-shm"), 0o600)


@pytest.fixture
def shared(path: Path) -> Path:
    path.touch()
    path.chmod(0o640)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_mode_of_a_file_that_exists_is_its_owners_business(shared: Path) -> None:
    store = SQLiteStore(shared)
    await store.open()
    await store.close()
    assert mode(shared) == 0o640


def test_making_a_store_touches_nothing_and_its_url_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("some.db")
    assert store.url == f"sqlite:///{tmp_path}/some.db"
    assert store.url.startswith("sqlite:////")
    assert not list(tmp_path.iterdir())


def missing_directory(path: Path) -> Path:
    return path / "no" / "such.db"


def directory(path: Path) -> Path:
    path.mkdir()
    return path


def not_a_database(path: Path) -> Path:
    path.write_text("name,amount\n" + "tea,3\n" * 1000)
    return path


def dangling_link(path: Path) -> Path:
    path.symlink_to(path.with_name("gone"))
    return path


def no_place_for_files(path: Path) -> Path:
    return Path("/proc/durable.db")


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (missing_directory, StoreUnavailable, "directory .* does not exist"),
        (directory, ConfigurationError, "is not a file"),
        (not_a_database, ConfigurationError, "is not a SQLite database"),
        (dangling_link, StoreUnavailable, "cannot be opened"),
        (no_place_for_files, StoreUnavailable, "cannot be created"),
    ],
)
async def test_P43_a_file_that_cannot_be_used_is_an_error_that_names_it(
    path: Path, make: type, error: type[Exception], says: str
) -> None:
    wrong: Path = make(path)
    store = SQLiteStore(wrong)
    for _ in range(2):  # a failed open leaves nothing behind that the next one trips over
        with pytest.raises(error, match=says) as raised:
            await store.open()
        assert str(wrong) in str(raised.value)
    assert store_threads() == []


async def test_a_store_that_is_not_open_says_so(path: Path) -> None:
    store = SQLiteStore(path)
    with pytest.raises(StoreUnavailable, match="is not open"):
        await store.get_runs([])
    with pytest.raises(StoreUnavailable, match="is not open"):
        store.renew("w", 1.0)


async def test_opening_is_counted_and_the_last_close_ends_the_thread(path: Path) -> None:
    store = SQLiteStore(path)
    await asyncio.gather(store.open(), store.open(), store.open())
    await store.migrate()
    await store.register("w", 60)
    store.renew("w", 60)
    await store.close()
    await store.close()
    assert len(store_threads()) == 1
    await store.close()
    assert store_threads() == []
    assert [file.name for file in path.parent.iterdir()] == ["durable.db"]
    await store.open()
    assert store.renew("w", 60).alive
    await store.close()


async def test_closing_ends_the_thread_also_when_the_caller_is_cancelled(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    gate = threading.Event()
    thread = store._thread
    assert thread is not None
    blocked = thread.call(gate.wait)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.set()
    await blocked
    await asyncio.to_thread(thread._thread.join)
    assert store_threads() == []


async def test_a_cancelled_call_is_done_all_the_same(store: SQLiteStore) -> None:
    (new,) = new_runs(1)
    call = asyncio.ensure_future(store.create_runs([new]))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [run.id for run in await store.get_runs([new.id])] == [new.id]


async def test_a_subscription_made_before_opening_counts(path: Path, store: SQLiteStore) -> None:
    listener = SQLiteStore(path)
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    listener.subscribe(heard.put_nowait)
    await listener.open()
    await store.create_runs(new_runs(1))
    assert await heard.get() == Hint.WORK | Hint.ENDED | Hint.REQUEST | Hint.SCHEDULE
    await listener.close()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process may grow beyond 512 kB: what SQLite sees is an error of write()."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
async def test_a_write_that_the_disk_refuses_is_unavailable_and_leaves_nothing(store: SQLiteStore) -> None:
    big = NewRun("big", "order", "1", input="1" * 1024 * 1024, input_hash="h", seed="s")
    with pytest.raises(StoreUnavailable, match=r"durable\.db: "):
        await store.create_runs([big])
    assert await store.get_runs(["big"]) == []
    (new,) = new_runs(1)
    assert (await store.create_runs([new]))[0].created


async def test_a_full_disk_is_unavailable_and_says_so(store: SQLiteStore) -> None:
    connection = store._connection
    assert connection is not None
    pages = await asyncio.to_thread(lambda: connection._raw.execute("PRAGMA page_count").fetchone()[0])
    await asyncio.to_thread(connection._raw.execute, f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="the disk is full; nothing was written"):
        await store.create_runs(new_runs(5000))
    await asyncio.to_thread(connection._raw.execute, "PRAGMA max_page_count = 1000000")
    assert (await store.create_runs(new_runs(1)))[0].created


async def test_text_larger_than_a_database_takes_is_a_payload_error(
    store: SQLiteStore,
) -> None:
    connection = store._connection
    assert connection is not None
    connection._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
    with pytest.raises(PayloadError):
        await store.create_runs([NewRun("big", "order", "1", input="1" * 200_000, input_hash="h", seed="s")])


async def test_a_flush_larger_than_a_document_is_sent_in_parts(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable.stores.sqlite.store._MAX_DOCUMENT", 2000)
    runs = new_runs(50)
    assert all(one.created for one in await store.create_runs(runs))
    assert [one.run_id for one in await store.create_runs(runs)] == [run.id for run in runs]


async def test_every_connection_waits_for_the_disk(store: SQLiteStore) -> None:
    store.renew("nobody", 1.0)
    for connection in (store._connection, store._renewer):
        assert connection is not None
        pragma = connection._raw.execute
        assert pragma("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_backup_of_the_file_is_a_store(store: SQLiteStore, path: Path) -> None:
    (new,) = new_runs(1)
    await store.create_runs([new])
    for file in path.parent.iterdir():
        shutil.copy(file, path.parent / file.name.replace("durable", "copy"))
    copy = SQLiteStore(path.with_name("copy.db"))
    await copy.open()
    assert [run.id for run in await copy.get_runs([new.id])] == [new.id]
    await copy.close()
