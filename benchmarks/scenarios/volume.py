"""F, G, H, K: much that is there, much that is large, and much for long. F, G and K look into durable's own tables."""

from __future__ import annotations

import time

from benchmarks.contestants.base import Contestant
from benchmarks.figures import Figure, percentile
from benchmarks.lab import Lab, Target, Wrong
from benchmarks.machine import resident
from benchmarks.scenarios.base import EVERYBODY, OURS_ALONE, Form, Part
from benchmarks.scenarios.throughput import drained

SMALL, LARGE = 20_000, 1_000_000
STAGES = {
    "empty": "nothing",
    "finished-stale": "finished runs, statistics of the empty tables",
    "finished": "finished runs",
    "sleeping-stale": "as many sleeping ones more, statistics from before",
    "sleeping": "sleeping ones more",
    "pending-stale": "as many pending ones more, which nobody here executes, statistics from before",
    "pending": "pending ones more",
}
OWN = "own"
CLAIMED = 2_000


def backlog(lab: Lab, contestant: type[Contestant], form: Form) -> dict[str, float]:
    """The same two measurements at every stage, with statistics from before and with fresh ones."""
    rows = LARGE if form.full else SMALL
    figures: dict[str, float] = {}
    with lab.target(contestant) as target:
        lab.sql(target.url, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        lab.call(target, "trigger", work="one", runs=1)
        lab.call(target, "drain", work="one", runs=1, limit=60)
        lab.sql(target.url, "VACUUM ANALYZE")
        for stage in STAGES:
            if stage.endswith("-stale"):
                fill(lab, target, stage.removesuffix("-stale"), rows)
            else:
                lab.sql(target.url, "VACUUM ANALYZE")
            said = lab.call(target, "latency", work="three", samples=200 if form.full else 30, worker=True, timeout=300)
            figures[f"F.latency.{stage}"] = percentile(said["seconds"], 0.5) * 1000
            lab.call(target, "trigger", work="one", runs=CLAIMED)
            figures[f"F.claim.{stage}"] = claim(lab, target)
        fill(lab, target, OWN, rows)
        figures[f"F.claim.{OWN}"] = claim(lab, target)
    for what in ("latency", "claim"):
        stages = [value for key, value in figures.items() if key.startswith(f"F.{what}.")]
        figures[f"F.{what}.worst"] = max(stages[1:]) / stages[0]
    return figures


def claim(lab: Lab, target: Target) -> float:
    """Microseconds that the server takes to claim a run, over two thousand of them."""
    lab.sql(target.url, "SELECT pg_stat_statements_reset()")
    lab.call(target, "drain", work="one", runs=CLAIMED, limit=120, timeout=180)
    milliseconds = lab.sql(
        target.url,
        "SELECT sum(total_exec_time) FROM pg_stat_statements WHERE query LIKE '%INSERT INTO durable.claims %'"
        " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    if milliseconds is None:
        raise Wrong("no statement claims runs")
    return float(milliseconds) * 1000 / CLAIMED


def fill(lab: Lab, target: Target, stage: str, rows: int) -> None:
    """Insert ``rows`` runs that are copies of one that has ended, but for what their state is about."""
    changed = {
        "finished": {},
        "sleeping": {"state": "'sleeping'", "ready_at": "now() + interval '1 day' + n * interval '1 ms'"},
        "pending": {"state": "'pending'", "ready_at": "now() - interval '1 day' + n * interval '1 ms'"},
    }
    changed[OWN] = changed["pending"]
    # As the engine makes them, in the order of time: at random, each claim would touch another page of the primary key.
    since = int(time.time() * 1000) - rows
    run_id = f"(lpad(to_hex({since}::bigint + n), 12, '0') || substr(md5('{stage}' || n), 1, 20))::uuid"
    values = {"id": run_id, **changed[stage]}
    if stage != "finished":
        values |= {"ended_at": "NULL", "result": "NULL", "owner": "NULL"}
    if stage == "pending":
        lab.sql(
            target.url, "INSERT INTO durable.routes (workflow, version, queue) VALUES ('elsewhere', '1', 'default')"
        )
        values["route"] = "(SELECT id FROM durable.routes WHERE workflow = 'elsewhere')"
    copied(lab, target, "runs", values, "state = 'completed'", rows)
    if stage == "finished":
        copied(lab, target, "history", {"run_id": run_id}, "kind = 'step'", rows)


def copied(lab: Lab, target: Target, table: str, values: dict[str, str], of: str, rows: int) -> None:
    """Rows like the first of which ``of`` is true."""
    columns = str(
        lab.sql(
            target.url,
            "SELECT string_agg(column_name, ',') FROM information_schema.columns WHERE table_schema = 'durable' "
            f"AND table_name = '{table}' AND is_generated = 'NEVER'",
        )
    ).split(",")
    expressions = ", ".join(values.get(column, f"r.{column}") for column in columns)
    lab.sql(
        target.url,
        f"INSERT INTO durable.{table} ({', '.join(columns)}) SELECT {expressions} "
        f"FROM (SELECT * FROM durable.{table} WHERE {of} LIMIT 1) AS r, generate_series(1, {rows}) AS n",
    )


def parked(lab: Lab, contestant: type[Contestant], form: Form) -> dict[str, float]:
    """One worker on an empty database, and one that has executed every run up to its wait."""
    runs = 100_000 if form.full else 2_000
    with lab.target(contestant) as target:
        lab.sql(target.url, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        with lab.process(target, "serve") as worker:
            worker.begin()
            worker.answer(60)
            lab.call(target, "trigger", work="parked", runs=500)  # what the first runs load stays loaded
            waiting(lab, target, 500)
            empty = resident(worker.pid)
            lab.call(target, "trigger", work="parked", runs=runs, timeout=300)
            waiting(lab, target, runs + 500)
            grown = resident(worker.pid) - empty
            idle = statements(lab, target, 10 if form.full else 5)
    return {"G.memory": grown, "G.statements": idle}


def waiting(lab: Lab, target: Target, runs: int) -> None:
    lab.until(target, f"SELECT count(*) = {runs} FROM durable.runs WHERE state = 'waiting'", 600)
    time.sleep(5)  # for a second they stay in memory


def statements(lab: Lab, target: Target, seconds: float) -> float:
    """Statements a second, but for ours."""
    lab.sql(target.url, "SELECT pg_stat_statements_reset()")
    time.sleep(seconds)
    calls = lab.sql(
        target.url,
        "SELECT sum(calls) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'"
        " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    return float(calls or 0) / seconds


def sustained(lab: Lab, contestant: type[Contestant], form: Form) -> dict[str, float]:
    intervals, interval = (10, 60.0) if form.full else (3, 3.0)
    figures: dict[str, float] = {}
    with (
        lab.target(contestant) as target,
        lab.process(target, "sustain", intervals=intervals, interval=interval) as process,
    ):
        process.begin()
        for number in range(1, intervals + 1):
            figures[f"K.{number:02}"] = process.answer(interval + 60)["executed"] / interval
            dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'durable.runs'::regclass"
            figures[f"K.{number:02}.dead"] = float(lab.sql(target.url, dead))
        ended = process.answer(120)["runs"]
        for what, relation in (("table", "runs"), ("index", "runs_ready"), ("history", "history")):
            size = float(lab.sql(target.url, f"SELECT pg_total_relation_size('durable.{relation}')"))
            figures[f"K.{what}"] = size / ended
        figures["K.level"] = figures[f"K.{intervals:02}"] / figures["K.02"]
    return figures


STAGE_FIGURES = tuple(
    figure
    for stage, title in STAGES.items()
    for figure in (
        Figure(f"F.latency.{stage}", f"latency of a three-step run, p50: {title}", "ms", more=False),
        Figure(f"F.claim.{stage}", f"server time to claim a run: {title}", "µs", more=False),
    )
)
PARTS = (
    Part(
        "F",
        (
            *STAGE_FIGURES,
            Figure(f"F.claim.{OWN}", "server time to claim a run: pending ones of its own more", "µs", more=False),
            Figure("F.latency.worst", "latency at the worst stage against empty", "×", more=False),
            Figure("F.claim.worst", "claim at the worst stage against empty", "×", more=False),
        ),
        backlog,
        OURS_ALONE,
        repeats=1,
    ),
    Part(
        "G",
        (
            Figure("G.memory", "memory of a worker above empty, after all runs have parked", "MB", more=False),
            Figure("G.statements", "statements of the idle worker", "statements/s", more=False),
        ),
        parked,
        OURS_ALONE,
        repeats=1,
    ),
    Part(
        "H",
        (
            Figure("H.blobs", "runs whose step returns a megabyte, 50 in flight", "results/s"),
            Figure("H.blobs.cpu", "processor time of each, client and server", "µs", more=False),
        ),
        lambda lab, contestant, form: drained(lab, contestant, form, "H.blobs", "blob", 50),
        EVERYBODY,
        repeats=3,
    ),
    Part(
        "K",
        (
            *(Figure(f"K.{number:02}", f"throughput of interval {number}", "runs/s") for number in range(1, 11)),
            *(
                Figure(f"K.{number:02}.dead", f"dead rows of the table of runs after it, {number}", "rows", more=False)
                for number in range(1, 11)
            ),
            Figure("K.table", "table of runs with its indexes, a run", "bytes", more=False),
            Figure("K.index", "index of what is ready, a run", "bytes", more=False),
            Figure("K.history", "history, a run", "bytes", more=False),
            Figure("K.level", "last interval against the second", "×"),
        ),
        sustained,
        OURS_ALONE,
        repeats=1,
    ),
)
