"""What Prometheus is told: what this process measured, and how many runs the store holds, counted when it asks.

Every metric has a bounded number of series: names that users chose are labels only up to a limit.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from durable.engine import Engine
from durable.hooks import HookEvent
from durable.reports import Census

_SERIES = 1000
"""Names that a label takes; whatever comes later is counted together as ``(other)``. A step's name may have an item in
it, and a monitor keeps every series for weeks."""

_OTHER = "(other)"

_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_DURATIONS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

_ENDED = ("run_completed", "run_failed", "run_compensated", "run_cancelled", "run_dead_lettered")


class Metrics:
    """The metrics of one engine; it is the engine's meter, unless it has one or runs already.

    Args:
        engine: Not started yet, or what its worker does is not measured.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self._steps = Histogram(
            "durable_step_duration_seconds",
            "How long attempts of steps took.",
            ("workflow", "step", "outcome"),
            buckets=_DURATIONS,
            registry=registry,
        )
        self._claims = _latency(
            "durable_claim_duration_seconds", "How long the store took to answer a claim.", registry
        )
        self._claimed = Counter("durable_claimed_runs", "Runs that were claimed.", registry=registry)
        self._commits = _latency("durable_commit_duration_seconds", "How long a group commit took.", registry)
        self._batches = Histogram(
            "durable_commit_batch_size",
            "Runs whose writes were in one group commit.",
            buckets=_BATCHES,
            registry=registry,
        )
        self._renewals = Counter("durable_lease_renewals", "Renewals of the lease.", ("outcome",), registry=registry)
        self._triggered = Counter(
            "durable_runs_triggered", "Runs that this process created.", ("workflow",), registry=registry
        )
        self._ended = Counter(
            "durable_runs_ended", "Runs that ended in this process.", ("workflow", "state"), registry=registry
        )
        self._names: set[tuple[str, str]] = set()
        if not engine.connected and engine.meter is None:
            engine.meter = self
        engine.on("run_triggered", self._on_triggered)
        for event in _ENDED:
            engine.on(event, self._on_ended)

    # -- the engine's meter -----------------------------------------------------------------------

    def claimed(self, seconds: float, runs: int) -> None:
        self._claims.observe(seconds)
        self._claimed.inc(runs)

    def committed(self, seconds: float, writes: int) -> None:
        self._commits.observe(seconds)
        self._batches.observe(writes)

    def renewed(self, ok: bool) -> None:
        self._renewals.labels("renewed" if ok else "failed").inc()

    def step(self, workflow: str, name: str, seconds: float, failed: bool) -> None:
        workflow, name = self._known(workflow, name)
        self._steps.labels(workflow, name, "failed" if failed else "completed").observe(seconds)

    # -- what is shown ----------------------------------------------------------------------------

    def shown(self, census: Census, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the format that ``accept`` asks for, and its media type."""
        encode, media_type = choose_encoder(accept)
        text: bytes = encode(_Scrape(self._registry, census))
        return text, media_type

    def _known(self, workflow: str, name: str) -> tuple[str, str]:
        if (workflow, name) in self._names:
            return workflow, name
        if len(self._names) >= _SERIES:
            return _OTHER, _OTHER
        self._names.add((workflow, name))
        return workflow, name

    # Coroutine functions: they are called on the event loop, without a thread in between.

    async def _on_triggered(self, event: HookEvent) -> None:
        self._triggered.labels(self._known(event.workflow or "", "")[0]).inc()

    async def _on_ended(self, event: HookEvent) -> None:
        workflow = self._known(event.workflow or "", "")[0]
        self._ended.labels(workflow, event.name.removeprefix("run_").replace("lettered", "letter")).inc()


class _Scrape:
    """What one request collects: what was measured, and the census that was taken for it."""

    def __init__(self, measured: CollectorRegistry, census: Census) -> None:
        self._measured = measured
        self._census = census

    def collect(self) -> Iterator[Metric]:
        yield from self._measured.collect()
        runs = GaugeMetricFamily("durable_runs", "Runs that have not ended.", labels=("workflow", "state"))
        for (workflow, state), count in self._census.runs.items():
            runs.add_metric((workflow, state), count)
        depth = GaugeMetricFamily("durable_queue_depth", "Runs that are ready and not claimed.", labels=("queue",))
        age = GaugeMetricFamily(
            "durable_queue_age_seconds", "How long the oldest ready run has been waiting.", labels=("queue",)
        )
        for queue, found in self._census.queues.items():
            depth.add_metric((queue,), found.ready)
            age.add_metric((queue,), found.age)
        yield from (runs, depth, age)


def _latency(name: str, what: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, what, buckets=_LATENCIES, registry=registry)
