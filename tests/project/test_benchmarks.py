"""The parts of the benchmark that measure nothing: medians, ratios, targets, what is written; and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET

import pytest

from benchmarks.chart import chart
from benchmarks.contestants import CONTESTANTS
from benchmarks.figures import (
    Cell,
    Figure,
    Results,
    Target,
    ahead,
    at_least,
    at_most,
    every,
    ours,
    percentile,
    shown,
    shown_cell,
)
from benchmarks.lab import Wrong
from benchmarks.report import SCENARIOS, rendered
from benchmarks.scenarios import PARTS
from benchmarks.scenarios.throughput import verified
from benchmarks.targets import TARGETS

STEPS = Figure("B.500", "ten-step runs, 500 in flight", "steps/s")
WAIT = Figure("D.same", "latency, p50", "ms", more=False)


def results(**medians: float) -> Results:
    """Steps per second by contestant, each measured three times."""
    made = Results()
    for name, median in medians.items():
        for sample in (median * 3, median, median / 2):
            made.add(STEPS, name, sample)
    return made


def test_a_cell_shows_the_median_and_the_range() -> None:
    assert shown_cell(Cell((300.0, 100.0, 120.0))) == "120 (100 to 300)"
    assert shown_cell(Cell((0.5,))) == "0.50"
    assert shown_cell(Cell(because="it has no steps")) == "cannot: it has no steps"
    assert [shown(value) for value in (61234.5, 612.3, 61.23, 6.123)] == ["61,234", "612", "61.2", "6.12"]


def test_a_ratio_above_one_is_ours_whether_more_or_less_is_better() -> None:
    made = results(durable=60_000, dbos=240)
    made.add(WAIT, "durable", 3)
    made.add(WAIT, "dbos", 60)
    assert made.ratio("B.500", "dbos") == 250
    assert made.ratio("D.same", "dbos") == 20
    assert made.ratio("B.500", "absurd") is None


def test_a_percentile_is_one_of_the_samples() -> None:
    samples = [float(n) for n in range(100, 0, -1)]
    assert percentile(samples, 0.5) == 51
    assert percentile(samples, 0.99) == 100
    assert percentile([7.0], 0.99) == 7


def test_a_target_is_reached_missed_or_not_measured() -> None:
    made = results(durable=60_000, dbos=240, absurd=900)
    assert at_least("B.500", 60_000)(made) is True
    assert at_most("B.500", 59_999)(made) is False
    assert at_least("B.8", 1)(made) is None
    assert ahead("B.500", ("dbos", "absurd"), 60)(made) is True
    assert ahead("B.500", ("dbos", "absurd"), 100)(made) is False  # each of them, not the slowest
    assert ahead("B.500", ("pgqueuer",), 1)(made) is None
    assert every(at_least("B.500", 1), at_least("B.8", 1))(made) is None
    assert every(at_least("B.500", 1e9), at_least("B.8", 1))(made) is False


def test_the_results_name_every_figure_its_ratio_the_verdicts_and_what_failed() -> None:
    made = results(durable=60_000, dbos=240)
    made.lacks(STEPS, "pgqueuer", "it has no steps")
    targets = (
        Target("B.500", "≥ 60,000 steps/s", at_least("B.500", 60_000), ours("B.500")),
        Target("B.500", "≥ 70,000 steps/s", at_least("B.500", 70_000), ours("B.500")),
        Target("B.8", "≥ 1 steps/s", at_least("B.8", 1), ours("B.8")),
    )
    text = rendered(made, ["commit 1234"], ["**durable**: as it is"], ["A.drain, dbos: no answer in 60 s"], targets)
    assert "| ten-step runs, 500 in flight, steps/s | durable | 60,000 (30,000 to 180,000) |  |" in text
    assert "|  | dbos | 240 (120 to 720) | 250 × |" in text
    assert "|  | pgqueuer | cannot: it has no steps |  |" in text
    assert "| ≥ 60,000 steps/s | 60,000 steps/s | reached |" in text
    assert "| ≥ 70,000 steps/s | 60,000 steps/s | **not reached** |" in text
    assert "| ≥ 1 steps/s | — | not measured |" in text
    for line in ("* commit 1234", "* **durable**: as it is", "* A.drain, dbos: no answer in 60 s"):
        assert line in text.splitlines()


def test_the_chart_is_longest_for_the_quickest_and_made_for_light_and_dark() -> None:
    text = chart(results(durable=60_000, dbos=240, floor=140_000))
    widths = [float(bar.get("width", "")) for bar in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}rect")]
    durable, dbos, floor = widths
    assert floor > durable > dbos > 0
    assert "prefers-color-scheme: dark" in text
    assert "60,000" in text
    assert "250 × less" in text


DONE = {"runs": 100, "steps": 1000, "executed": 1000, "seconds": 2.0}


def test_work_that_was_done_is_a_rate() -> None:
    assert verified(DONE, "ten", 100).rate("ten") == 500
    cut_off = verified({**DONE, "runs": 60, "steps": 650, "executed": 660}, "ten", 100)
    assert cut_off.rate("ten") == 325
    queue = verified({"runs": 90, "steps": None, "executed": 95, "seconds": 2.0}, "one", 100)  # it records no steps
    assert queue.rate("one") == 45


@pytest.mark.parametrize(
    "change",
    [
        {"runs": 0, "steps": 0},
        {"executed": 999},
        {"steps": 999},
        {"steps": 1001},
        {"runs": 101, "steps": 1010, "executed": 1010},
    ],
)
def test_work_that_was_not_done_is_no_figure(change: Mapping[str, int]) -> None:
    with pytest.raises(Wrong):
        verified({**DONE, **change}, "ten", 100)


def test_every_part_is_of_a_scenario_and_its_contestants_exist() -> None:
    for part in PARTS:
        assert part.key[0] in SCENARIOS
        assert {*part.contestants, *part.quick} <= set(CONTESTANTS)
        assert all(figure.key[0] in SCENARIOS for figure in part.figures)


def test_every_target_and_every_reason_is_about_a_figure_that_is_measured() -> None:
    figures = {figure.key for part in PARTS for figure in part.figures}
    assert {target.key for target in TARGETS} <= figures
    for contestant in CONTESTANTS.values():
        assert set(contestant.cannot) <= figures | set(SCENARIOS), contestant.name
