"""`rayrec explain`, and the last lines of a run whose model loses to a baseline."""

from __future__ import annotations

import pytest

from app.errors import UserError
from app.recipe import Recipe
from app.recipe.keys import keys_of
from app.terminal.explain import TOGETHER, explain
from app.terminal.summary import behind, of_stage


def test_every_key_has_a_meaning_and_permitted_values() -> None:
    keys = list(keys_of(Recipe))
    assert len(keys) > 100
    assert [key.name for key in keys if not key.meaning or not key.takes or key.takes == "any value"] == []


def test_a_key_is_explained() -> None:
    said = explain("train.epochs")
    assert said["key"] == "epochs, of [train]"
    assert said["takes"] == "a whole number, at least 1"
    assert "train.patience" in said["see also, for how long training takes"]
    assert set(explain("epochs")) == {"train.epochs", "tune.epochs", "compress.finetune.epochs"}
    assert "split.method" in explain("split")


def test_an_unknown_key_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'train\.epohcs'.*train\.epochs"):
        explain("train.epohcs")


def test_keys_that_go_together_exist() -> None:
    keys = [key.name for key in keys_of(Recipe)]
    named = {name for names in TOGETHER.values() for name in names}
    assert [n for n in named if n not in keys and not any(k.startswith(f"{n}.") for k in keys)] == []


def test_a_baseline_that_is_better_is_said_with_what_helps() -> None:
    result = {
        "figures": {"ndcg@10": 0.1},
        "baselines": {"item_knn": {"ndcg@10": 0.2}},
        "differences": {"item_knn": {"ndcg@10": [-0.1, -0.12, -0.08]}},
        "behind": ["item_knn"],
    }
    first, last = behind(result, "r.toml")
    assert first.startswith("item_knn is better than the model: ndcg@10 0.2000 against 0.1000 ")
    assert first.endswith("(difference -0.1000, -0.1200 to -0.0800)")
    assert "rayrec run r.toml --set model.name=auto" in last
    near = {**result, "differences": {"item_knn": {"ndcg@10": [-0.1, -0.22, 0.02]}}}
    assert behind(near, "r.toml")[0].startswith("item_knn is as good as the model")
    compared = {**result, "choice": {"users": 700}}
    assert "model.name=auto" not in behind(compared, "r.toml")[-1], "that has just been done"
    assert "train.minutes" in behind(compared, "r.toml")[-1] and "700" in behind(compared, "r.toml")[-1]
    assert behind({**result, "behind": []}, "r.toml") == []


def test_results_are_shown_in_words() -> None:
    result = {"items": [{"item": "a", "score": 0.25}], "events": ["view", "cart"], "seconds": {"total": 2.0}}
    rows = [("items 1", "item a, score 0.25"), ("events", "view, cart"), ("seconds.total", "2")]
    assert of_stage(result) == rows
