"""What the figures are to reach."""

from __future__ import annotations

from benchmarks.figures import Target, ahead, at_least, at_most, beside, every, ours

DURABLE_PEERS = ("dbos", "absurd")
QUEUES = ("procrastinate", "pgqueuer")
SQLITE = "durable on SQLite"

TARGETS = (
    Target(
        "A.drain",
        "≥ 20,000 runs/s; ≥ 10 × the best durable peer; ahead of the fastest plain queue",
        every(at_least("A.drain", 20_000), ahead("A.drain", DURABLE_PEERS, 10), ahead("A.drain", QUEUES, 1)),
        beside("A.drain", (*DURABLE_PEERS, *QUEUES)),
    ),
    Target(
        "A.together",
        "≥ 10,000 runs/s; ≥ 10 × the best durable peer; ahead of the fastest plain queue",
        every(at_least("A.together", 10_000), ahead("A.together", DURABLE_PEERS, 10), ahead("A.together", QUEUES, 1)),
        beside("A.together", (*DURABLE_PEERS, *QUEUES)),
    ),
    Target("B.8", "≥ 8,000 steps/s", at_least("B.8", 8_000), ours("B.8")),
    Target(
        "B.500",
        "≥ 60,000 steps/s; ≥ 100 × dbos",
        every(at_least("B.500", 60_000), ahead("B.500", ("dbos",), 100)),
        beside("B.500", ("dbos",)),
    ),
    Target("D.same", "p50 ≤ 3 ms", at_most("D.same", 3), ours("D.same")),
    Target("D.same.p99", "p99 ≤ 10 ms", at_most("D.same.p99", 10), ours("D.same.p99")),
    Target("D.other", "p50 ≤ 6 ms", at_most("D.other", 6), ours("D.other")),
    Target("D.other.p99", "p99 ≤ 20 ms", at_most("D.other.p99", 20), ours("D.other.p99")),
    Target("E.10000", "≤ 0.5 s", at_most("E.10000", 500), ours("E.10000")),
    Target(
        "E.growth",
        "growth linear: ten times the records take at most 12 times as long",
        at_most("E.growth", 12),
        ours("E.growth"),
    ),
    Target("F.latency.worst", "latency ≤ 1.2 × empty", at_most("F.latency.worst", 1.2), ours("F.latency.worst")),
    Target("F.claim.worst", "claim ≤ 1.2 × empty", at_most("F.claim.worst", 1.2), ours("F.claim.worst")),
    Target("G.memory", "≤ 20 MB above empty", at_most("G.memory", 20), ours("G.memory")),
    Target("G.statements", "≤ 2 statements/s idle", at_most("G.statements", 2), ours("G.statements")),
    Target("H.blobs", "≥ 90 results of 1 MB/s", at_least("H.blobs", 90), beside("H.blobs", DURABLE_PEERS)),
    Target("I.children", "p50 ≤ 60 ms", at_most("I.children", 60), beside("I.children", DURABLE_PEERS)),
    Target("I.parallel", "p50 ≤ 10 ms", at_most("I.parallel", 10), beside("I.parallel", DURABLE_PEERS)),
    Target("J.64", "≥ 15,000 triggers/s", at_least("J.64", 15_000), beside("J.64", (*DURABLE_PEERS, *QUEUES))),
    Target("K.level", "last minute ≥ 0.9 × second minute", at_least("K.level", 0.9), ours("K.level")),
    Target("M.500", "≥ 60,000 steps/s", at_least("M.500", 60_000, SQLITE), ours("M.500", SQLITE)),
)
