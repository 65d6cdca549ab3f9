"""`rayrec explain KEY`: what a key of a recipe does, what it takes, and which keys go with it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from app.errors import UserError
from app.recipe import Recipe
from app.recipe.keys import Key, keys_of
from app.recipe_check import model_sources
from app.recipe_toml import as_toml

# Keys that decide something together, and what.
TOGETHER: dict[str, tuple[str, ...]] = {
    "the order and the times of events": (
        "data.timestamp", "data.row_order", "data.ties", "data.time_unit", "data.time_format", "split.method",
        "features.context", "evaluate.delay", "data.session_gap",
    ),
    "which events are predicted": (
        "data.event", "data.event_types", "data.positive", "data.positive_above", "data.value",
        "data.sources.event", "data.sources.event_column",
    ),
    "how files are read": (
        "data.format", "data.delimiter", "data.encoding", "data.quote", "data.columns", "data.layout",
        "data.sources",
    ),
    "which events are kept": (
        "data.where", "data.missing", "data.duplicates", "data.duplicate_key", "data.outliers",
        "data.earliest", "data.latest", "data.min_user_events", "data.min_item_events",
    ),
    "sessions": ("data.session_gap", "data.sessions", "features.context"),
    "what is known of items": (
        "data.items", "data.item_columns", "features.item", "export.columns", "serve.columns",
    ),
    "what is known of users": ("data.users", "data.user_columns", "features.user"),
    "what is held out": (
        "split.method", "split.valid", "split.test", "split.valid_days", "split.test_days", "split.folds",
        "split.fold", "split.test_events", "split.negatives", "evaluate.candidates", "train.refit",
        "train.valid_too",
    ),
    "how long training takes": (
        "train.epochs", "train.batch_size", "train.negatives", "train.patience", "train.valid_users",
        "train.minutes", "tune.epochs", "tune.trials",
    ),
    "which epoch and which model are best": (
        "train.metric", "train.patience", "train.valid_users", "evaluate.k", "evaluate.baselines",
        "model.name", "tune.budget",
    ),
    "the size of the bundle": ("compress.rows", "compress.dense", "compress.steps"),
    "capacity of the service": (
        "serve.min_replicas", "serve.max_replicas", "serve.cpus", "serve.max_ongoing_requests",
        "serve.max_queued_requests", "serve.target_ongoing_requests",
    ),
}  # fmt: skip
MODELS = "model"


def explain(name: str) -> dict[str, Any]:
    """What a key, or each key of a table, does.

    Args:
        name: a dotted key ("train.epochs"), its last part ("epochs"), a table ("train"), or a model's
            ("model.mlp", "model.mlp.width").

    Raises:
        UserError: there is no such key; names those that are like it.
    """
    name = re.sub(r"[\[\]\s]|\.\d+(?=\.|$)", "", name)
    keys = [*keys_of(Recipe), *_model_keys(name)]
    tables = list(dict.fromkeys(key.name.rpartition(".")[0] for key in keys if key.table))
    if match := [key for key in keys if key.name == name] or [k for k in keys if k.own_name == _last(name)]:
        return _explained(match[0]) if len(match) == 1 else {key.name: _explained(key) for key in match}
    if name in tables:
        own = {key.name: key.comment for key in keys if key.name.rpartition(".")[0] == name}
        return own | _trained(name)
    if name == MODELS or any(table.startswith(f"{name}.") for table in tables):
        return {key.name: key.comment for key in keys if key.name.startswith(f"{name}.")}
    names = [*tables, *(key.name for key in keys), *(key.own_name for key in keys)]
    close = list(dict.fromkeys(difflib.get_close_matches(name, names, n=3)))
    remedy = f"did you mean {' or '.join(close)}?" if close else f"the tables are {', '.join(tables)}"
    raise UserError(f"no key or table {name!r} in a recipe", where="explain", remedy=remedy)


def _last(name: str) -> str:
    """The last part of a model's key, which several models may have; any other name as it is."""
    return name.rpartition(".")[2] if name.startswith(f"{MODELS}.") and name.count(".") == 1 else name


def _explained(key: Key) -> dict[str, Any]:
    default = "none: it has to be named" if key.required else as_toml(key.default)
    return {
        "key": f"{key.own_name}, of {key.table or 'the top of the recipe'}",
        "does": key.meaning,
        "takes": key.takes,
        "default": "absent" if key.default is None and not key.required else default,
        **_where_not_set(key),
        **{f"see also, for {what}": ", ".join(others) for what, others in related(key.name)},
    }


def _where_not_set(key: Key) -> dict[str, str]:
    """What models settle a key of [train] to, where the recipe does not set it."""
    if key.table != "[train]":
        return {}
    values = [
        f"{as_toml(suits[key.own_name])} with {model}"
        for model, suits in _training()
        if key.own_name in suits
    ]
    return {"where it is not set": ", ".join(values)} if values else {}


def _trained(name: str) -> dict[str, str]:
    """The keys of [train] that a model, `model.NAME`, settles."""
    return {
        f"train.{key}": f"{as_toml(value)} where the recipe does not set it"
        for model, suits in _training()
        if name == f"{MODELS}.{model}"
        for key, value in suits.items()
    }


def _training() -> Iterable[tuple[str, dict[str, Any]]]:
    from app.models.discovery import model_class

    return [(model, model_class(model).TRAINING) for model in model_sources()]


def related(name: str) -> Iterable[tuple[str, list[str]]]:
    """What a key decides together with others, and these; an entry of a table goes with its table."""
    for what, names in TOGETHER.items():
        if any(name == other or name.startswith(f"{other}.") for other in names):
            yield what, [other for other in names if other != name]


def _model_keys(name: str) -> list[Key]:
    """The keys of the models that a name may mean: of one, or of all where it is `model.KEY`."""
    table, _, rest = name.partition(".")
    if table != MODELS or not rest or rest in ("name", "file"):
        return []
    from app.models.discovery import model_class

    wanted = [model for model in model_sources() if model == rest.split(".")[0]] or list(model_sources())
    keys = [
        key
        for model in wanted
        for key in keys_of(model_class(model).Config, f"{MODELS}.{model}", f'[model], with name = "{model}"')
    ]
    return keys if wanted != list(model_sources()) else [k for k in keys if k.own_name == rest]
