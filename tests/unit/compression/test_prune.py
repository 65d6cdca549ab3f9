"""Pruning sets the smallest dense weights to zero, layer by layer, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from app.compression.steps.prune import prune
from app.models.base import Model
from app.models.build import build_model
from tests.tiny import tiny_dataset


@pytest.fixture
def model(tmp_path: Path) -> Model:
    torch.manual_seed(0)
    return build_model("mlp", {}, tiny_dataset(tmp_path / "dataset", users=10, items=10, events=80))


def test_the_smallest_of_each_layer_become_zero(model: Model) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert prune(model, 0.25) == pytest.approx(0.25, abs=0.01)
    dense = [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert len(dense) >= 3
    for name, parameter in model.named_parameters():
        changed = parameter != before[name]
        if name not in dense:
            assert not changed.any(), f"{name} is no dense weight"
            continue
        assert int(changed.sum()) == parameter.numel() // 4
        assert not parameter[changed].any()
        assert before[name][changed].abs().max() <= before[name][~changed].abs().min()


def test_pruning_nothing_changes_nothing(model: Model) -> None:
    before = [p.detach().clone() for p in model.parameters()]
    assert prune(model, 0.0) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_hand_worked_layer() -> None:
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[0.1, -0.5, 0.2, 3.0]])
    assert prune(layer, 0.5) == 0.5  # type: ignore[arg-type]
    assert layer.weight.tolist() == [[0.0, -0.5, 0.0, 3.0]]


def test_a_model_without_dense_layers(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=10, items=10, events=80)
    assert prune(build_model("popularity", {}, dataset), 0.5) == 0
