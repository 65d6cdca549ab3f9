"""What `rayrec tune` prints of a search."""

from __future__ import annotations

from typing import Any

from app.terminal import summary


def test_a_search_is_a_table_with_the_baselines_beside_its_choice() -> None:
    best: dict[str, Any] = {
        "trial": 3,
        "ndcg@10": 0.25,
        "p95_ms": 1.5,
        "mb": 2.0,
        "reused": False,
        "settings": {"model.name": "mlp", "model.hidden": [64, 32], "train.learning_rate": 0.00123456},
    }
    result = {
        "metric": "ndcg@10",
        "models": ["mlp", "item_knn"],
        "trials": 6,
        "reused": 2,
        "stopped": 3,
        "failed": 1,
        "front": [best],
        "best": best,
        "baselines": {"popularity": 0.05, "item_knn": 0.3},
        "within_budget": True,
    }
    assert summary.of_tune(result) == [
        ("trials", "6, 2 on a checkpoint that was there, 3 stopped, 1 failed"),
        ("models", "mlp, item_knn"),
        ("front, trial 3", "ndcg@10 0.2500, p95 1.50 ms, 2.00 MB, mlp"),
        ("chosen", "trial 3, within the budget"),
        ("ndcg@10", "0.2500, popularity 0.0500, item_knn 0.3000"),
        ("model.hidden", "64, 32"),
        ("model.name", "mlp"),
        ("train.learning_rate", "0.001235"),
    ]
