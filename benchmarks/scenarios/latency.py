"""D, E, I, J: what one caller waits for."""

from __future__ import annotations

import time

from benchmarks.contestants.base import Contestant
from benchmarks.figures import Figure, percentile
from benchmarks.lab import Lab, Wrong
from benchmarks.scenarios.base import EVERYBODY, Form, Part
from benchmarks.scenarios.throughput import SQLITE
from benchmarks.work import STEPS


def same_process(lab: Lab, contestant: type[Contestant], form: Form, key: str) -> dict[str, float]:
    samples = 300 if form.full else 40
    with lab.target(contestant) as target:
        said = lab.call(target, "latency", work="three", samples=samples, worker=True)
        counted(contestant, target.url, samples + 10)
    return percentiles(key, said["seconds"])


def other_process(lab: Lab, contestant: type[Contestant], form: Form) -> dict[str, float]:
    """The one that triggers and waits has no worker."""
    samples = 300 if form.full else 40
    with lab.target(contestant) as target, lab.process(target, "serve") as worker:
        worker.begin()
        worker.answer(60)
        said = lab.call(target, "latency", work="three", samples=samples, worker=False)
        counted(contestant, target.url, samples + 10)
    return percentiles("D.other", said["seconds"])


def fan_out(lab: Lab, contestant: type[Contestant], form: Form, work: str) -> dict[str, float]:
    samples = 20 if form.full else 5
    with lab.target(contestant) as target:
        return {f"I.{work}": lab.call(target, "fan_out", work=work, samples=samples)["seconds"] * 1000}


def triggers(lab: Lab, contestant: type[Contestant], form: Form, callers: int) -> dict[str, float]:
    with lab.target(contestant) as target:
        said = lab.call(target, "triggers", callers=callers, seconds=form.seconds)
        # Counted by executing them: a trigger that is lost is executed by nobody.
        drained = lab.call(target, "drain", work="one", runs=said["runs"], limit=60)
        if drained["runs"] != said["runs"]:
            raise Wrong(f"{said['runs']} runs were triggered, and {drained['runs']} could be executed")
    return {f"J.{callers}": said["runs"] / said["seconds"]}


def percentiles(key: str, seconds: list[float]) -> dict[str, float]:
    return {key: percentile(seconds, 0.5) * 1000, f"{key}.p99": percentile(seconds, 0.99) * 1000}


def counted(contestant: type[Contestant], url: str, runs: int) -> None:
    counts = contestant(url).counts()
    if counts.runs != runs or counts.steps not in (None, 3 * runs):
        raise Wrong(f"{runs} runs were waited for: {counts}")


def latency_figures(key: str, title: str) -> tuple[Figure, ...]:
    return Figure(key, f"{title}, p50", "ms", more=False), Figure(f"{key}.p99", f"{title}, p99", "ms", more=False)


def resumed(lab: Lab, contestant: type[Contestant], form: Form) -> dict[str, float]:
    """The process in which the run waited is killed; another one begins."""
    figures: dict[str, float] = {}
    with lab.target(contestant) as target:
        for steps in (10, 1_000, 10_000):
            with lab.process(target, "settle", steps=steps) as process:
                process.begin()
                run = process.answer(300)["run"]
            said = lab.call(target, "resume", run=run, steps=steps)
            figures[f"E.{steps}"] = said["seconds"] * 1000
    start = figures["E.10"]
    if figures["E.1000"] > start:  # else it is lost in the noise of the start
        figures["E.growth"] = (figures["E.10000"] - start) / (figures["E.1000"] - start)
    return figures


def taken_over(lab: Lab, contestant: type[Contestant], form: Form) -> dict[str, float]:
    """From the SIGKILL of a worker that executes a hundred runs to the first record that another one writes."""
    records = "SELECT count(*) FROM durable.history WHERE kind = 'step'"
    held = "SELECT count(*) FROM durable.runs WHERE state = 'running'"
    with lab.target(contestant) as target, lab.process(target, "serve") as other:
        with lab.process(target, "serve") as worker:
            worker.begin()
            worker.answer(60)
            lab.call(target, "trigger", work="busy", runs=100)
            lab.until(target, f"SELECT ({held}) = 100", 60)
            other.begin()
            other.answer(60)
        killed = time.monotonic()
        time.sleep(0.5)  # what was under way is committed, or not
        before = lab.sql(target.url, records)
        lab.until(target, f"SELECT ({records}) > {before}", 120)
        seconds = time.monotonic() - killed
        lab.until(target, f"SELECT ({held}) = 0", 300)
        counts = contestant(target.url).counts()
        if counts != (100, 100 * STEPS["busy"]):
            raise Wrong(f"100 runs were taken over: {counts}")
    return {"E.takeover": seconds}


PARTS = (
    Part(
        "E",
        (
            Figure("E.10", "resume of a run with 10 records, from the start of a worker", "ms", more=False),
            Figure("E.1000", "with 1,000", "ms", more=False),
            Figure("E.10000", "with 10,000", "ms", more=False),
            Figure("E.growth", "10,000 against 1,000, less the 10", "times as long", more=False),
        ),
        resumed,
        EVERYBODY,
        repeats=3,
    ),
    Part(
        "E.takeover",
        (Figure("E.takeover", "first record of another worker after a SIGKILL", "s", more=False),),
        taken_over,
        EVERYBODY,
        (),
        repeats=1,
    ),
    Part(
        "D.same",
        latency_figures("D.same", "a three-step run on an idle system, same process"),
        lambda lab, contestant, form: same_process(lab, contestant, form, "D.same"),
        EVERYBODY,
        EVERYBODY,
    ),
    Part(
        "D.other",
        latency_figures("D.other", "a three-step run on an idle system, another process"),
        other_process,
        EVERYBODY,
    ),
    Part(
        "I.children",
        (Figure("I.children", "one run with 100 children, gathered, p50", "ms", more=False),),
        lambda lab, contestant, form: fan_out(lab, contestant, form, "children"),
        EVERYBODY,
    ),
    Part(
        "I.parallel",
        (Figure("I.parallel", "one run with 100 parallel steps, p50", "ms", more=False),),
        lambda lab, contestant, form: fan_out(lab, contestant, form, "parallel"),
        EVERYBODY,
    ),
    Part(
        "J.1",
        (Figure("J.1", "triggers, one caller", "triggers/s"),),
        lambda lab, contestant, form: triggers(lab, contestant, form, 1),
        EVERYBODY,
    ),
    Part(
        "J.64",
        (Figure("J.64", "triggers, 64 concurrent callers", "triggers/s"),),
        lambda lab, contestant, form: triggers(lab, contestant, form, 64),
        EVERYBODY,
    ),
    Part(
        "M.same",
        latency_figures("M.same", "SQLite: a three-step run on an idle system, same process"),
        lambda lab, contestant, form: same_process(lab, contestant, form, "M.same"),
        SQLITE,
        SQLITE,
    ),
)
