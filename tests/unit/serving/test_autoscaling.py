"""How many replicas there should be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.serving import autoscaling
from app.serving.autoscaling import ONGOING, Load, Scale
from app.serving.rollout.state import DesiredState
from app.serving.rollout.state_dir import StateDir


def test_more_come_after_some_patience_and_fewer_after_more() -> None:
    scale = Scale("", target=10, up_s=5, down_s=60)
    assert scale.by_load(35, 1, now=0) == 1
    assert scale.by_load(35, 1, now=4.9) == 1
    assert scale.by_load(35, 1, now=5) == 4
    assert scale.by_load(5, 4, now=6) == 4
    assert scale.by_load(5, 4, now=65) == 4
    assert scale.by_load(5, 4, now=66) == 1


def test_a_rush_that_passes_changes_nothing() -> None:
    scale = Scale("", target=10, up_s=5, down_s=60)
    for now, ongoing in enumerate([35, 35, 35, 5, 35, 35, 35]):
        assert scale.by_load(ongoing, 1, now=now) == 1


def test_an_idle_service_keeps_one_replica() -> None:
    assert Scale("", target=10, up_s=0, down_s=0).by_load(0, 1, now=0) == 1


def test_a_service_that_may_have_none_wakes_at_once() -> None:
    scale = Scale("", target=10, up_s=5, down_s=60, least=0)
    assert [scale.by_load(0, 1, now=now) for now in (0, 59, 60)] == [1, 1, 0]
    assert scale.by_load(0, 0, now=61) == 0
    waiting = SimpleNamespace(aggregated_metrics={}, target_num_replicas=0, total_queued_requests=3.0)
    assert scale(waiting)[0] == 1  # type: ignore[arg-type]
    waiting.target_num_replicas, scale.down_s = 1, 0  # that one starts: calls wait for it still
    assert scale(waiting)[0] == 1  # type: ignore[arg-type]
    idle = SimpleNamespace(aggregated_metrics={}, target_num_replicas=0, total_queued_requests=0.0)
    assert scale(idle)[0] == 0  # type: ignore[arg-type]


def test_a_deployment_needs_a_replica(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path)
    scale = Scale(str(tmp_path), target=10, up_s=0, down_s=0, least=0)
    for phase, wanted in (("loading", 1), ("canary", 1), ("steady", 0)):
        state_dir.publish(DesiredState([], phase=phase))  # type: ignore[arg-type]
        assert scale.by_command() == wanted


def test_the_mean_of_the_calls_under_way_is_by_littles_law(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(autoscaling.time, "perf_counter", lambda: now[0])
    load = Load()
    for _ in range(40):
        load.add(0.5)  # 40 calls of half a second within 4 s: 5 at a time
    now[0] += 4
    assert load.take() == load.mean == 5.0
    now[0] += 4
    assert load.take() == 0.0


def context(**ongoing: float) -> Any:
    return SimpleNamespace(aggregated_metrics={ONGOING: ongoing}, target_num_replicas=1)


def test_the_calls_of_all_replicas_count() -> None:
    scale = Scale("", target=10, up_s=0, down_s=0)
    assert scale(context(r1=15.0, r2=14.0)) == (3, {})
    assert scale(SimpleNamespace(aggregated_metrics=None, target_num_replicas=1)) == (1, {})  # type: ignore[arg-type]


def test_what_a_person_asks_for_comes_at_once_whatever_the_load(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path)
    scale = Scale(str(tmp_path), target=10, up_s=5, down_s=60)
    assert scale(context(r1=1.0)) == (1, {})
    state_dir.publish(DesiredState([], replicas=2))
    assert scale(context(r1=1.0)) == (2, {})
    (state_dir.folder / "desired.json").write_text("damaged")
    assert scale(context(r1=1.0)) == (2, {})
    state_dir.publish(DesiredState([]))
    assert scale(context(r1=1.0)) == (1, {})
