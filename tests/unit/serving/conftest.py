"""Serving's log as a replica writes it, whatever a session of Ray made of it earlier in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def serve_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logger = logging.getLogger("ray.serve")
    level = logger.level
    monkeypatch.setattr(logger, "propagate", True)
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)
