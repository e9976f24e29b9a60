"""Measures durable beside its peers: `make bench`, `make bench-full`. What is what stands in docs/performance.md."""
