"""What all systems of the serving benchmark rank with: one model, its bundle and its requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from app.artifact import publish
from app.bundle.request.requests import RankRequest
from app.data.dataset import Array, Dataset, Part, Schema
from app.models.base import Batch, History, Model
from app.models.build import build_model
from app.models.mlp import Mlp
from app.tables.strings import Strings
from tests.bundles import bundle_of

USERS, ITEMS, CANDIDATES, EVENTS = 50_000, 100_000, 100, 20  # events of a user
LISTS = 4_099  # a prime, so that users and lists make LISTS * USERS different requests
WIDTH, HIDDEN = 64, [256, 128]
START = 1_704_067_200_000_000  # 2024-01-01


@dataclass(frozen=True)
class World:
    """A folder with bundle/, whose rows are int8, weights/ for the peers and the requests; and the model."""

    folder: Path
    model: Model

    @property
    def users(self) -> Path:
        """A user a line."""
        return self.folder / "weights" / "users.txt"

    @property
    def lists(self) -> Path:
        """A JSON list of candidates a line."""
        return self.folder / "lists.txt"

    def requests(self, count: int) -> list[RankRequest]:
        """The first requests, those that are checked."""
        with self.users.open() as users, self.lists.open() as lists:
            pairs = zip(range(count), users, lists, strict=False)
            return [RankRequest(user.strip(), json.loads(items)) for _, user, items in pairs]

    @torch.no_grad()
    def exact(self, requests: Sequence[RankRequest]) -> list[dict[str, float]]:
        """What the model scores in float32, by item."""
        user = torch.tensor([_row(request.user) for request in requests])
        items = torch.tensor([[_row(item) for item in request.items] for request in requests])
        nothing = torch.zeros(len(requests), EVENTS, dtype=torch.int64)
        history = History(nothing, nothing, nothing.float(), nothing.float())
        batch = Batch(user, items, history, torch.zeros(len(requests), 0), torch.zeros(items.shape))
        return [
            dict(zip(request.items, scores, strict=True))
            for request, scores in zip(requests, self.model(batch).tolist(), strict=True)
        ]


def _row(name: str) -> int:
    return int(name[1:])


def make_world(folder: Path) -> World:
    """Write everything that the systems need at `folder`."""
    rng = np.random.default_rng(0)
    users = [f"u{row:07}" for row in range(1, USERS + 1)]
    items = [f"i{row:07}" for row in range(1, ITEMS + 1)]
    dataset = _dataset(folder / "dataset", users, items, rng)
    model = _model(dataset)
    bundle_of(model, dataset, folder / "bundle", precision="int8")
    _write_weights(model, users, items, folder / "weights")
    drawn = (rng.choice(ITEMS, CANDIDATES, replace=False) for _ in range(LISTS))
    lines = (json.dumps([items[row] for row in rows], separators=(",", ":")) for rows in drawn)
    (folder / "lists.txt").write_text("\n".join(lines))
    return World(folder, model)


def _dataset(folder: Path, users: list[str], items: list[str], rng: np.random.Generator) -> Dataset:
    """Random events of every user. No content and no context: the model is vectors and layers alone."""
    count = USERS * EVENTS
    columns: dict[str, Array] = {
        "user": np.repeat(np.arange(1, USERS + 1), EVENTS),
        "item": rng.integers(1, ITEMS + 1, count),
        "time": START + np.arange(count) * 1_000_000,
        **dict.fromkeys(("event", "value", "label"), np.ones(count)),
    }
    with publish(folder, "dataset", {"bench": "serving"}, {}) as draft:
        for name, rows in (("train", slice(None)), ("valid", slice(0)), ("test", slice(0))):
            Part.save(draft.path / name, {key: column[rows] for key, column in columns.items()}, USERS + 1)
        _write_features(draft.path)
        schema = _schema(int(columns["time"].max()))
        (draft.path / "schema.json").write_bytes(msgspec.json.encode(schema))
        Strings.save(draft.path / "users", ["", *users])
        Strings.save(draft.path / "items", ["", *items])
        draft.figures.update(rows_in=count, rows_kept=count, train=count, valid=0, test=0)
    return Dataset.open(folder)


def _write_features(folder: Path) -> None:
    (folder / "features").mkdir()
    for kind, count in (("item", ITEMS), ("user", USERS)):
        np.save(folder / "features" / f"{kind}_dense.npy", np.zeros((count + 1, 0), np.float32))
        np.save(folder / "features" / f"{kind}_category.npy", np.zeros((count + 1, 0), np.int32))


def _schema(end_time: int) -> Schema:
    return Schema(
        users=USERS + 1,
        items=ITEMS + 1,
        events=["", "view"],
        history=EVENTS,
        context=[],
        context_width=0,
        item_dense=0,
        user_dense=0,
        item_categories=[],
        user_categories=[],
        end_time=end_time,
        positive=[False, True],
    )


def _model(dataset: Dataset) -> Model:
    """Random weights that give scores of about 1, and no bias of items, which the peers do not have."""
    torch.manual_seed(0)
    model = build_model("mlp", {"width": WIDTH, "hidden": HIDDEN, "heads": 0}, dataset)
    for name, values in model.named_parameters():
        if name.startswith(("users.", "items.")):
            nn.init.normal_(values)
        elif values.dim() == 2:
            nn.init.kaiming_normal_(values, nonlinearity="relu")
    nn.init.zeros_(model.item_bias.embedding.weight)  # type: ignore[union-attr, arg-type]
    return model.eval()


def _write_weights(model: Model, users: list[str], items: list[str], folder: Path) -> None:
    """The model as one layer after the other over both vectors, and the ids by row, from row 1."""
    assert isinstance(model, Mlp)
    folder.mkdir()
    halves = [model.user_half.weight, model.item_half.weight]
    weights: dict[str, Any] = {
        "users": model.users.lookup(torch.arange(USERS + 1)),
        "items": model.items.lookup(torch.arange(ITEMS + 1)),
        "0.weight": torch.cat(halves, 1),
        "0.bias": model.user_half.bias,
        "2.weight": model.layers[1].weight,
        "2.bias": model.layers[1].bias,
        "4.weight": model.layers[3].weight,
        "4.bias": model.layers[3].bias,
    }
    plain = {name: value.detach().contiguous() for name, value in weights.items()}
    save_file(plain, folder / "weights.safetensors")
    (folder / "users.txt").write_text("\n".join(users))
    (folder / "items.txt").write_text("\n".join(items))
