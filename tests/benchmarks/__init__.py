"""Farebox beside a bare relay, on one machine, over loopback: `python -m tests.benchmarks.bench`."""
