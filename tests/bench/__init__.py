"""Benchmarks; each writes runs/bench/NAME.json and .md."""

import app  # noqa: F401  before torch, whose threads read at loading how to wait for each other
