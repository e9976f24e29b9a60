"""``durable worker``: processes that are supervised, restarted, drained, and end with a code that says how."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path

import pytest

from durable import Engine, InvalidArgument, State, WorkerOptions
from durable.cli import supervisor
from durable.cli.process import Done, Order
from durable.cli.standalone import running_engine
from durable.cli.supervisor import GAVE_UP, Supervisor, how_it_ended
from durable.cli.worker import queue_names
from tests.cli.command import PATIENCE, ROOT, Command, exit_code
from tests.cli.programs import worker_pid, write, write_app


async def greeted(url: str, name: str) -> str:
    async with Engine(url).client() as client:
        handle = await client.trigger("greet", name, version="1")
        result: str = await handle.result(timeout=PATIENCE)
        return result


async def test_it_executes_runs_tells_each_minute_what_it_does_and_drains_on_ctrl_c(durable: Command) -> None:
    write_app(durable.directory, durable.url)
    terminal = durable.terminal("worker", "app:engine", "--status-every", "0.3")
    worker_pid(terminal)
    assert await greeted(durable.url, "Ann") == "hello Ann"
    terminal.expect(
        r"1 of 1 worker processes answer; in 0.3 s [1-9]\d* runs were claimed, [1-9]\d* steps ended; \d+ com"
    )
    terminal.sendintr()
    terminal.expect("SIGINT: draining; once more ends at once")
    assert exit_code(terminal) == 0
    async with Engine(durable.url).client() as client:
        assert await client.workers() == []  # it has signed off


async def test_a_killed_process_is_replaced_and_the_work_goes_on(durable: Command) -> None:
    write_app(durable.directory, durable.url)
    terminal = durable.terminal("worker", "app:engine", "--processes", "2", "--status-every", "0")
    pids = {worker_pid(terminal), worker_pid(terminal)}
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        terminal.expect(f"process {pid} was ended by SIGKILL: starting another one")
        assert worker_pid(terminal) not in pids
    assert await greeted(durable.url, "Bob") == "hello Bob"
    terminal.kill(signal.SIGTERM)
    assert exit_code(terminal) == 0


async def test_a_second_signal_ends_at_once_and_loses_nothing(durable: Command) -> None:
    write_app(durable.directory, durable.url, drain=3600)
    terminal = durable.terminal("worker", "app:engine")
    worker_pid(terminal)
    async with Engine(durable.url).client() as client:
        handle = await client.trigger("stay", version="1")
        terminal.expect("the step runs")
        terminal.kill(signal.SIGTERM)
        terminal.expect("SIGTERM: draining")
        terminal.kill(signal.SIGTERM)
        assert exit_code(terminal) == 128 + signal.SIGTERM
        assert await handle.status() == State.RUNNING  # until its lease has expired


async def test_workers_whose_supervisor_was_killed_drain_and_end(durable: Command) -> None:
    write_app(durable.directory, durable.url)
    terminal = durable.terminal("worker", "app:engine")
    worker = os.pidfd_open(worker_pid(terminal))
    terminal.kill(signal.SIGKILL)
    # Not the terminal's end: pexpect says so as soon as the supervisor is gone and nothing stands there to be read.
    assert (await asyncio.to_thread(select.select, [worker], [], [], PATIENCE))[0], "the worker is still there"
    os.close(worker)
    terminal.close()
    assert terminal.signalstatus == signal.SIGKILL
    async with Engine(durable.url).client() as client:
        assert await client.workers() == []


async def test_systemd_may_signal_every_process_of_the_unit_and_all_of_them_drain(durable: Command) -> None:
    write_app(durable.directory, durable.url, drain=1)
    terminal = durable.terminal("worker", "app:engine")
    pid = worker_pid(terminal)
    async with Engine(durable.url).client() as client:
        handle = await client.trigger("stay", version="1")
        terminal.expect("the step runs")
        os.kill(pid, signal.SIGTERM)
        terminal.expect("the engine stops")
        terminal.kill(signal.SIGTERM)
        assert exit_code(terminal) == 0
        assert await handle.status() == State.PENDING  # given back: it waits for no lease


@pytest.mark.parametrize("case", ["import", "database", "nothing"])
def test_a_worker_that_cannot_start_says_why_once_and_its_exit_code_says_whether_to_try_again(
    durable: Command, case: str
) -> None:
    if case == "import":
        write(durable.directory / "app.py", "import nowhere_to_be_found")
        code, says = 1, "ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    elif case == "nothing":
        write(durable.directory / "app.py", "from durable import Engine\nengine = Engine('memory://')")
        code, says = 1, "the engine has no workflow to execute"
    else:
        write_app(durable.directory, "postgresql://me:geheim@127.0.0.1:1/app")
        code, says = 75, "cannot connect to postgresql://me:***@127.0.0.1:1/app"
    answer = durable.process("worker", "app:engine", "--processes", "3")
    assert answer.returncode == code, answer
    assert answer.stderr.count(says) == 1
    assert "geheim" not in answer.stderr
    assert answer.stdout == ""


async def test_processes_that_keep_dying_are_given_up(
    durable: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one comes up; those after it die of their module."""
    write_app(durable.directory, durable.url)
    with (durable.directory / "app.py").open("a") as app:
        app.write("\nimport os, pathlib\nif pathlib.Path('been').exists(): os._exit(3)\npathlib.Path('been').touch()\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(supervisor, "_LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(supervisor, "_MOST_DEATHS", 2)
    under_test = Supervisor(Order("app:engine"), 1, 0.0)
    running = asyncio.create_task(under_test.run())
    async with asyncio.timeout(PATIENCE):
        await greeted(durable.url, "Ann")  # it is up
        async with Engine(durable.url).client() as client:
            [worker] = await client.workers()
        os.kill(worker.pid, signal.SIGKILL)
        assert await running == GAVE_UP
    assert "ended with exit code 3, as 2 before it: giving up" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the signals are heeded no more"


def test_the_engine_may_be_given_other_queues_and_another_concurrency(durable: Command) -> None:
    write_app(durable.directory, durable.url)
    engine = load(durable.directory, queues=queue_names(["mail, sms", "reports"]), concurrency=7)
    assert engine.worker_options.queues == frozenset({"mail", "sms", "reports"})
    assert engine.worker_options.concurrency == 7
    assert engine.worker_options.lease == 60, "what was not given stays"
    assert queue_names(None) is None
    assert engine.worker_options.replaced(lease=2).lease == 2
    with pytest.raises(InvalidArgument, match="concurrency"):
        engine.worker_options.replaced(concurrency=0)
    assert "names no queue" in durable("worker", "app:engine", "--queues", " ,", code=2).err


async def test_options_are_replaced_before_the_start_alone() -> None:
    engine = Engine("memory://")
    async with engine.client():
        with pytest.raises(InvalidArgument, match="before the engine starts"):
            engine.worker_options = WorkerOptions()


def load(directory: Path, **changes: object) -> Engine:
    """In a name of its own: modules stay imported."""
    name = f"app_{directory.name}"
    (directory / "app.py").rename(directory / f"{name}.py")
    return running_engine(f"{name}:engine", **changes)  # type: ignore[arg-type]


def test_the_status_line_sums_up() -> None:
    told = Supervisor(Order(None), 3, 60.0)
    line = told._line([Done(10, 30, 2, 4, 0.01, 1), Done(1, 1000, 0, 0, 0.0, 0)], [4711])
    assert line == (
        "2 of 3 worker processes answer; in 60 s 11 runs were claimed, 1,030 steps ended (2 failed); "
        "4 commits of 2.5 ms; failed renewals: 1; no answer from 4711"
    )
    assert told._line([], []) == "0 of 3 worker processes answer; in 60 s 0 runs were claimed, 0 steps ended"


@pytest.mark.parametrize(
    ("code", "words"), [(0, "ended with exit code 0"), (-9, "was ended by SIGKILL"), (-63, "was ended by signal 63")]
)
def test_how_a_process_ended_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words
