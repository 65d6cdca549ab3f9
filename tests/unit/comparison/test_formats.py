"""Every format of a model in one table, and what a request is that they are measured with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.artifact import open_artifact
from app.comparison import formats as module
from app.comparison.requests import random_requests
from app.recipe_toml import to_toml
from tests.tiny import tiny_dataset
from tests.unit.comparison.test_folds import log, recipe_of
from tests.unit.test_cli import rayrec

__all__ = ["log"]


@pytest.mark.usefixtures("ray_local")
def test_formats_are_compared_by_bytes_latency_and_difference(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUESTS", 50)
    recipe = recipe_of(log, "leave_last", model="item_knn")
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    verb = ["bench", "formats", tmp_path / "recipe.toml", "--out", tmp_path / "out"]
    names = ["--formats", "bundle,onnx,torch_export"]
    code, out, err = rayrec(capsys, *verb, *names)
    assert code == 0 and "item_knn as" in out and "torch_export" not in out
    assert "torch_export is left out: export.unpickle: " in err
    code, out, _ = rayrec(capsys, *verb, *names, "--set", "export.unpickle=true", "--json")
    result = json.loads(out)
    assert code == 0 and not result["failed"] and result["requests"] == 50
    assert [row["name"] for row in result["formats"]] == ["bundle", "onnx", "torch_export"]
    for row in result["formats"]:
        assert row["bytes"] == open_artifact(tmp_path / "out" / row["name"]).bytes
        assert 0 < row["p50_ms"] <= row["p95_ms"] and row["difference"] < 1e-3
    assert json.loads((tmp_path / "out" / "formats.json").read_text()) == result
    code, _, err = rayrec(capsys, *verb, "--formats", "pickle")
    assert code == 1 and "no format 'pickle' - choose among bundle, executorch" in err


def test_random_requests_meet_what_a_service_meets(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=20, items=30, events=300)
    requests, batch = random_requests(dataset, "recent", 300, 10)
    longest = max(len(request.history or ()) for request in requests)
    assert longest == 2 * dataset.schema.history and min(len(r.history or ()) for r in requests) == 0
    assert {request.user for request in requests} >= {"stranger", "u1", "u20"}
    assert "unknown" in {item for request in requests for item in request.items}
    for number, request in enumerate(requests):
        shown = [event.item for event in request.history or ()][-dataset.schema.history :]
        assert [f"i{row}" for row in batch.history.item[number].tolist() if row] == shown
        assert len(set(request.items)) == 10
    assert np.array_equal(random_requests(dataset, "recent", 300, 10)[1].item, batch.item), "of one seed"
