"""Load on a service, in short: three times what it can answer, all calls at a steady rate, many seen items.

See tests/bench/faults_load.py, soak.py and faults_seen.py.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest

from tests.bench.faults_load import overload
from tests.bench.faults_seen import seen
from tests.bench.soak import soak


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_what_exceeds_the_capacity_is_refused_and_nothing_fails(ray_local: None, tmp_path: Path) -> None:
    bars, figures = overload(tmp_path, 3)
    statuses = figures["statuses"]
    assert set(statuses) == {200, 429}  # it was too much, and was said to be
    assert statuses[200] > statuses[429] / 10
    holds = {bar["name"]: bar["holds"] for bar in bars}
    assert holds["overload_neither_answered_nor_refused_failed"]


def test_a_mix_of_all_calls_is_answered(ray_local: None) -> None:
    gc.collect()  # arrays of earlier tests keep their files open, and `select` takes numbers up to 1,023
    bars, figures = soak(0.1, rate=50)
    assert sum(turn["requests"] for turn in figures["turns"]) == 300
    for turn in figures["turns"]:
        assert set(turn["statuses"]) == {200, 202}
        assert turn["memory_mib"] and turn["of_it_caches_mib"] > 0
    assert next(bar for bar in bars if bar["name"] == "soak_failed")["holds"]


def test_nothing_that_a_user_met_is_recommended_again(ray_local: None, tmp_path: Path) -> None:
    bars, figures = seen(tmp_path, 400)
    assert [bar["name"] for bar in bars if not bar["holds"]] == [], figures["wrong"]
