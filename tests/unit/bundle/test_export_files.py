"""What is particular to the files of single formats: their content, their shapes, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import onnx
import pytest
import torch

from app.artifact import Draft, open_artifact
from app.bundle.export.formats import export_format
from app.bundle.export.source import ExportSource
from app.bundle.export.whole_model.fixed_shape import write_fixed
from app.bundle.request.requests import Context, RankRequest
from app.data.dataset import Dataset
from app.errors import MachineError, RecipeError, UserError
from app.events import HistoryEvent
from app.recipe import parse
from tests.bundles import NOW, checkpoint_of, random_model
from tests.exports import FIXED, HISTORY, ITEMS, exported, format_of
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("files") / "dataset", users=40, items=40, events=500)


def test_the_onnx_file_is_all_that_another_runtime_needs(dataset: Dataset, tmp_path: Path) -> None:
    path = exported(checkpoint_of(random_model("mlp", dataset), dataset), dataset, tmp_path / "out", "onnx")
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "model.onnx"]
    graph = onnx.load(path / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    kinds = {node.name: node.type.tensor_type.elem_type for node in graph.graph.input}
    assert kinds["item"] == kinds["user"] == onnx.TensorProto.STRING, "ids go in"
    assert [node.name for node in graph.graph.output] == ["score"]
    assert all(node.doc_string for node in graph.graph.input)


def test_a_model_too_large_for_one_onnx_file_is_refused(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bundle.export.formats.onnx.LARGEST", 10_000)
    with pytest.raises(UserError, match=r"2 GB.*format bundle"):
        exported(checkpoint_of(random_model("mlp", dataset), dataset), dataset, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FIXED)
def test_a_file_of_a_fixed_shape_scores_any_number_of_candidates(
    name: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    format = format_of(name)
    monkeypatch.setattr("app.bundle.export.whole_model.fixed_shape.CANDIDATES", 6)
    path = exported(
        checkpoint_of(random_model("two_tower", dataset), dataset), dataset, tmp_path / "out", name
    )
    shape = open_artifact(path).figures["shape"]
    assert shape == {"requests": 1, "candidates": 6, "history": dataset.schema.history}
    score = format.read(path)
    asked = RankRequest("u7", ITEMS, history=HISTORY, context=Context(float(NOW)))
    scores = score(asked)
    assert list(scores) == ITEMS
    for item in ITEMS:
        one = RankRequest("u7", [item], history=HISTORY, context=Context(float(NOW)))
        assert scores[item] == pytest.approx(score(one)[item], abs=1e-5)
    strange = [HISTORY[0], HistoryEvent("never seen", "view", NOW - 3600.0), HISTORY[1]]
    among = RankRequest("u7", ITEMS, history=strange, context=Context(float(NOW)))
    assert score(among) == pytest.approx(scores, abs=1e-5), "an event on an unknown item is none"


@pytest.mark.parametrize("name", FIXED)
def test_a_missing_extra_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("executorch.backends.xnnpack.partition.xnnpack_partitioner", "litert_torch"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"app.bundle.export.formats.{name}", raising=False)
    with pytest.raises(MachineError, match=rf"the format {name} needs .*pip install 'rayrec\[{name}\]'"):
        export_format(name)


def test_ids_that_do_not_fit_into_int32_are_refused(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    format_of("litert")
    monkeypatch.setattr("app.bundle.export.formats.litert.LARGEST_ID", 39)
    with pytest.raises(UserError, match=r"int32.*41 rows.*torch_export"):
        exported(checkpoint_of(random_model("mlp", dataset), dataset), dataset, tmp_path / "out", "litert")


def test_a_model_that_cannot_be_lowered_is_refused_with_the_reason(dataset: Dataset, tmp_path: Path) -> None:
    def lower(*_: Any) -> bytes:
        raise NotImplementedError("no kernel for aten::cholesky\nand a page of details")

    recipe, model = parse({"name": "tiny"}, "test"), random_model("two_tower", dataset)
    source = ExportSource(recipe, dataset, checkpoint_of(model, dataset), {})
    with pytest.raises(
        RecipeError, match=r"two_tower \(NotImplementedError: no kernel for aten::cholesky\) - use"
    ):
        write_fixed(source, Draft(tmp_path), format="litert", file="m", lower=lower, runtime=unused)


def unused(_: Any) -> Any:
    raise AssertionError("nothing was written")


def test_a_torch_program_has_the_rows_alone_and_no_pickle(dataset: Dataset, tmp_path: Path) -> None:
    model = random_model("two_tower", dataset)
    path = exported(checkpoint_of(model, dataset), dataset, tmp_path / "out", "torch_export")
    with ZipFile(path / "model.pt2") as archive:
        files = {Path(name).name: archive.read(name) for name in archive.namelist()}
    assert files["model.pt"] == b"", "example inputs are pickled"
    for kind in ("weights", "constants"):
        tensors = json.loads(files[f"model_{kind}_config.json"])["config"].values()
        assert not any(tensor["use_pickle"] for tensor in tensors)
    held = torch.export.load(path / "model.pt2").state_dict
    assert {"user_table", "item_table"} <= set(held) and not any("embedding" in name for name in held)
