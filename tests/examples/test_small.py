"""The small examples: each runs as a program, and does what it says on a virtual clock."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from durable import Engine, RunCompensated, Skip, State, WorkerOptions
from durable.testing import MemoryStore, VirtualClock
from examples import agent, approval, fulfilment, onboarding, rhythm

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("module", "last_line"),
    [
        ("approval", "Outcome(paid=True, said_by=['Bob', 'Cleo'])"),
        ("fulfilment", "parcel with tea"),
        ("agent", "Booked, after 4 lines of talk."),
        ("onboarding", "refused: step 'read document' failed after 1 attempt: Rejected: the document is forged"),
        ("rhythm", "week 2026-03-23 to 2026-03-30: 3 shops, 840 EUR"),
    ],
)
def test_it_runs_as_a_program(module: str, last_line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{module}"], cwd=_ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == last_line
    assert not done.stderr


async def test_an_approval_lapses_after_two_reminders_and_a_late_answer_passes_no_gate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with Engine(MemoryStore(clock=VirtualClock()), workflows=[approval.approve_expense]) as engine:
        run = await engine.trigger(approval.approve_expense, approval.Expense("Ann", 120))
        await engine.run_until_idle()
        await engine.signal(run.run_id, "lead", approval.Decision("Bob", approved=True))
        await engine.signal(run.run_id, "lead", approval.Decision("Bob", approved=True))  # meant for nobody
        await engine.run_until_idle(skip_time=True)
        assert await run.result() == approval.Outcome(paid=False, said_by=["Bob", "nobody"])
    assert capsys.readouterr().out.count("to finance: Ann still waits") == 3


async def test_goods_that_are_not_paid_go_back(capsys: pytest.CaptureFixture[str]) -> None:
    async with Engine(MemoryStore(clock=VirtualClock()), workflows=[fulfilment.fulfil]) as engine:
        run = await engine.trigger(fulfilment.fulfil, fulfilment.Order("A-1", "tea", 30), key="A-1")
        assert await fulfilment.webhook(engine, {"id": "evt_1", "order": "A-1", "amount": 20}) == 202
        await engine.run_until_idle(skip_time=True)
        with pytest.raises(RunCompensated, match="10 of 30 are missing"):
            await run.result()
        assert await fulfilment.webhook(engine, {"id": "evt_2", "order": "A-1", "amount": 10}) == 200
        assert await fulfilment.webhook(engine, {"id": "evt_3", "order": "B-1", "amount": 10}) == 404
    assert "released: hold on tea" in capsys.readouterr().out


async def test_the_agent_pays_for_each_turn_once_whatever_is_replayed() -> None:
    model = agent.ScriptedModel()
    engine = Engine(
        MemoryStore(clock=VirtualClock()),
        workflows=[agent.agent],
        services={"model": model},
        worker=WorkerOptions(linger=0),
    )
    async with engine:
        run = await engine.trigger(agent.agent, "a weekend in Oslo")
        await engine.run_until_idle()
        assert await run.status() is State.WAITING
        assert [entry.data for entry in (await engine.events()).items] == ["It rains. Still go?"]
        await engine.signal(run.run_id, "reply", agent.Reply("yes"))
        assert await run.result(timeout=20) == "Booked, after 4 lines of talk."
    assert model.calls == 3


async def test_cancelling_onboarding_cancels_the_check_and_closes_the_account(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The check's workers are away."""
    async with Engine(MemoryStore(), workflows=[onboarding.onboard]) as engine:
        run = await engine.trigger(onboarding.onboard, onboarding.Person("Ann", "passport"))
        await engine.run_until_idle()
        [check] = (await engine.list_runs(parent=run.run_id)).items
        assert (check.workflow, check.version, check.state) == ("kyc", "2", State.PENDING)
        await run.cancel()
        await engine.run_until_idle()
        assert await run.status() is State.CANCELLED
        assert (await engine.get_run(check.id)).state is State.CANCELLED
    assert "closed: account of Ann" in capsys.readouterr().out


async def test_each_week_is_settled_once_also_the_one_in_which_nobody_was_there() -> None:
    clock = VirtualClock(datetime(2026, 3, 23, 4, 30, tzinfo=UTC))  # each minute before it is a run of the health check
    store = MemoryStore(clock)
    async with rhythm.engine(store) as engine:
        await engine.run_until_idle(skip_time=True, until=datetime(2026, 3, 23, 5, 30, tzinfo=UTC))
        settled = (await engine.list_runs(schedule="weekly settlement")).items
        assert [run.tick for run in settled] == [datetime(2026, 3, 23, 5, 0, tzinfo=UTC)]  # 06:00 in Berlin
    clock.advance(timedelta(days=15))  # two Mondays, and the change to summer time
    async with rhythm.engine(store) as engine:
        await engine.run_until_idle(skip_time=True)
        settled = (await engine.list_runs(schedule="weekly settlement")).items
        ticks = [run.tick for run in reversed(settled)]
        assert ticks[1:] == [datetime(2026, 3, 30, 4, 0, tzinfo=UTC), datetime(2026, 4, 6, 4, 0, tzinfo=UTC)]
        assert {run.state for run in settled} == {State.COMPLETED}


async def test_a_health_check_alarms_once_for_each_outage_and_never_runs_beside_itself() -> None:
    clock = VirtualClock(datetime(2026, 3, 18, 12, tzinfo=UTC))
    shop = rhythm.Shop()
    async with rhythm.engine(MemoryStore(clock), shop) as engine:
        await engine.run_until_idle(skip_time=True, until=clock.now() + timedelta(minutes=5))
        shop.up = False
        await engine.run_until_idle(skip_time=True, until=clock.now() + timedelta(minutes=7))
        shop.up = True
        await engine.run_until_idle(skip_time=True, until=clock.now() + timedelta(minutes=5))
        checks = await engine.get_schedule("health")
    assert shop.alarms == ["the shop is down since 12:06:00"]
    assert checks.fired + sum(checks.skipped.values()) == 17
    assert Skip.OVERLAP in checks.skipped
