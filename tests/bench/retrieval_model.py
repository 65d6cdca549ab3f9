"""A catalogue in clusters and a two-tower model over it, for measuring retrieval.

Item vectors lie in clusters within clusters, of Zipf's sizes, as those of a trained model do;
uniform random vectors have no neighbours, and no index finds them. Users have met items of
up to three clusters; a user's state is the mean of the last events' vectors and a little
noise, so that it lies between clusters.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.artifact import publish
from app.data.dataset import Array, Dataset, Part, Schema
from app.models.base import Model
from app.models.build import build_model
from app.tables.strings import Strings

WIDTH, USERS, EVENTS = 64, 20_000, 20
DEPARTMENTS, CLUSTERS = 200, 5000
START = 1_704_067_200_000_000  # 2024-01-01
BLOCK = 1 << 16


def make_dataset(folder: Path, items: int, seed: int = 0) -> tuple[Dataset, Array]:
    """A data set of `items`, with columns department and price, and the item vectors (items + 1, WIDTH)."""
    rng = np.random.default_rng(seed)
    size = 1 / np.sqrt(np.arange(1, CLUSTERS + 1))
    cluster = rng.choice(CLUSTERS, items, p=size / size.sum())
    vectors = np.concatenate([np.zeros((1, WIDTH), np.float32), _vectors(rng, cluster)])
    met = _met(rng, cluster)
    columns: dict[str, Array] = {
        "user": np.repeat(np.arange(1, USERS + 1), EVENTS),
        "item": met.ravel() + 1,
        "time": START + np.arange(met.size) * 1_000_000,
        **dict.fromkeys(("event", "value", "label"), np.ones(met.size)),
    }
    with publish(folder, "dataset", {"bench": "retrieval", "items": items, "seed": seed}, {}) as draft:
        for name, rows in (("train", slice(None)), ("valid", slice(0)), ("test", slice(0))):
            Part.save(draft.path / name, {key: column[rows] for key, column in columns.items()}, USERS + 1)
        _describe(draft.path, items, int(columns["time"][-1]))
        _columns(draft.path / "columns", cluster, rng)
        draft.figures.update(rows_in=met.size, rows_kept=met.size)
    return Dataset.open(folder, verify=False), vectors


def _vectors(rng: np.random.Generator, cluster: Array) -> Array:
    department = rng.normal(size=(DEPARTMENTS, WIDTH))
    centre = department[np.arange(CLUSTERS) % DEPARTMENTS] + 0.6 * rng.normal(size=(CLUSTERS, WIDTH))
    rows = np.empty((len(cluster), WIDTH), np.float32)
    for start in range(0, len(cluster), BLOCK):
        some = cluster[start : start + BLOCK]
        block = centre[some] + 0.35 * rng.normal(size=(len(some), WIDTH))
        rows[start : start + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def _met(rng: np.random.Generator, cluster: Array) -> Array:
    """(USERS, EVENTS) items, each of one of the user's three clusters."""
    order = np.argsort(cluster, kind="stable")
    starts = np.searchsorted(cluster[order], np.arange(CLUSTERS + 1))
    tastes = cluster[rng.integers(0, len(cluster), (USERS, 3))]
    chosen = np.take_along_axis(tastes, rng.integers(0, 3, (USERS, EVENTS)), 1)
    low, high = starts[chosen], starts[chosen + 1]
    return order[low + (rng.random(chosen.shape) * (high - low)).astype(np.int64)]


def _describe(folder: Path, items: int, end: int) -> None:
    schema = Schema(
        users=USERS + 1,
        items=items + 1,
        events=["", "view"],
        history=EVENTS,
        context=[],
        context_width=0,
        item_dense=0,
        user_dense=0,
        item_categories=[],
        user_categories=[],
        end_time=end,
        positive=[False, True],
    )
    (folder / "schema.json").write_bytes(msgspec.json.encode(schema))
    Strings.save(folder / "users", ["", *(f"u{row:06}" for row in range(1, USERS + 1))])
    Strings.save(folder / "items", ["", *(f"i{row:07}" for row in range(1, items + 1))])
    (folder / "features").mkdir()
    for kind, count in (("item", items), ("user", USERS)):
        np.save(folder / "features" / f"{kind}_dense.npy", np.zeros((count + 1, 0), np.float32))
        np.save(folder / "features" / f"{kind}_category.npy", np.zeros((count + 1, 0), np.int32))


def _columns(folder: Path, cluster: Array, rng: np.random.Generator) -> None:
    folder.mkdir()
    department = [None, *(f"d{number}" for number in (cluster % DEPARTMENTS).tolist())]
    price = np.concatenate([[np.nan], np.round(rng.lognormal(3, 1, len(cluster)), 2)])
    table = pa.table({"department": department, "price": pa.array(price, from_pandas=True)})
    pq.write_table(table, folder / "items.parquet")


@torch.no_grad()
def make_model(dataset: Dataset, vectors: Array) -> Model:
    """Two towers whose user state is the mean of the history's vectors, and noise of the user's own."""
    torch.manual_seed(0)
    model = build_model("two_tower", {"heads": 1, "width": WIDTH}, dataset)
    for parameter in model.parameters():
        parameter.zero_()
    tables = dict(model.named_parameters())
    tables["items.embedding.weight"].copy_(torch.from_numpy(vectors))
    tables["users.embedding.weight"].normal_(std=0.3 / WIDTH**0.5)
    tables["user_tower.weight"][:, :WIDTH] = torch.eye(WIDTH)
    return model.eval()
