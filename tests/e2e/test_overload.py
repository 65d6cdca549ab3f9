"""Three times what a service can answer, in short: see tests/bench/faults_load.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench.faults_load import overload


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_what_exceeds_the_capacity_is_refused_and_nothing_fails(ray_local: None, tmp_path: Path) -> None:
    bars, figures = overload(tmp_path, 3)
    statuses = figures["statuses"]
    assert set(statuses) == {200, 429}  # it was too much, and was said to be
    assert statuses[200] > statuses[429] / 10
    held = {bar["name"]: bar["holds"] for bar in bars}
    assert held["overload_neither_answered_nor_refused_failed"]
