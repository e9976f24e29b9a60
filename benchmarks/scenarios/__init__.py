"""What is measured."""

from __future__ import annotations

from benchmarks.scenarios import latency, throughput, volume
from benchmarks.scenarios.base import Part

PARTS: tuple[Part, ...] = (*throughput.PARTS, *latency.PARTS, *volume.PARTS)
