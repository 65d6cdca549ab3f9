"""What is served knows every event kept, whatever the split held out; the card says what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import sparse

from app.artifact import publish
from app.bundle.export.first_stage import sample_requests
from app.bundle.format.histories import Histories
from app.bundle.request.requests import RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset, Part, Schema
from app.data.prepare.selection.splits import Splitter
from app.models.build import build_model
from app.models.item_knn import neighbours
from app.recipe import Split
from app.tables.strings import Strings
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
MET = {"a": ["i1", "i2", "i3"], "b": ["i1", "i3", "i4"], "c": ["i2", "i3", "i4"]}
LOG = [(user, item) for user, items in MET.items() for item in items]
UNMET = {"a": ["i4"], "b": ["i2"], "c": ["i1"]}
SPLITS = {
    "leave_last": {"method": "leave_last"},
    "time": {"method": "time"},
    "user": {"method": "user", "valid": 0.4, "test": 0.4},
    "given": {"method": "given"},
    "random": {"method": "random", "valid": 0.3, "test": 0.3},
    "new items only": {"method": "leave_last", "new_items_only": True},
}


def log_dataset(folder: Path, log: list[tuple[str, str]], split: dict[str, Any], unmet: int = 0) -> Dataset:
    """A data set of a log in order of user and time, its parts as `prepare` assigns them.

    The last event of each user is the one that a test file gives, `unmet` items have no event.
    """
    users, items = sorted({user for user, _ in log}), sorted({item for _, item in log})
    items += [f"unmet{n}" for n in range(unmet)]
    user = np.array([users.index(name) for name, _ in log])
    rows = {
        "user": user,
        "item": np.array([items.index(name) + 1 for _, name in log]),
        "time": START + np.arange(len(log)) * SECOND,
        "row": np.arange(len(log)),
        "event": np.ones(len(log), np.uint8),
        "value": np.ones(len(log)),
        "test": np.append(user[1:] != user[:-1], True),
    }
    cuts = (START + (len(log) - 3) * SECOND, START + (len(log) - 1) * SECOND)
    hashes = np.arange(len(users), dtype=np.uint64) * np.uint64(7919)
    splitter = Splitter(Split.model_validate(split), 0, (False, True), cuts=cuts)
    part, rows["label"], _ = splitter.assign(rows, hashes)
    rows["user"] = rows["user"] + 1
    with publish(folder, "dataset", {"log": log, "split": split}, {}) as draft:
        for number, name in enumerate(("train", "valid", "test")):
            Part.save(draft.path / name, {c: v[part == number] for c, v in rows.items()}, len(users) + 1)
        Strings.save(draft.path / "users", ["", *users])
        Strings.save(draft.path / "items", ["", *items])
        (draft.path / "features").mkdir()
        for side, count in (("user", len(users)), ("item", len(items))):
            np.save(draft.path / f"features/{side}_dense.npy", np.zeros((count + 1, 0), np.float32))
            np.save(draft.path / f"features/{side}_category.npy", np.zeros((count + 1, 0), np.int32))
        end = int(rows["time"][part == 0].max(initial=0))
        schema = Schema(
            len(users) + 1, len(items) + 1, ["", "buy"], 5, [], 0, 0, 0, [], [], end, [False, True]
        )
        (draft.path / "schema.json").write_bytes(msgspec.json.encode(schema))
    return Dataset.open(folder)


@pytest.fixture(params=SPLITS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    dataset = log_dataset(tmp_path / "dataset", LOG, SPLITS[request.param])
    assert len(dataset.train) < len(LOG), "the split holds something out"
    return dataset


def recommended(ranker: Ranker, user: str, **changes: Any) -> list[str]:
    (answer,) = ranker.recommend([RecommendRequest(user, **changes)])
    return [scored.item for scored in answer.items]


@pytest.mark.parametrize("model", ["popularity", "two_tower"])
def test_nobody_is_recommended_an_item_that_they_met_in_a_part_held_out(
    dataset: Dataset, tmp_path: Path, model: str
) -> None:
    ranker = bundle_of(build_model(model, {}, dataset).eval(), dataset, tmp_path / "bundle")
    assert {user: recommended(ranker, user) for user in UNMET} == UNMET


def test_histories_popularity_and_fresh_items_hold_every_event(dataset: Dataset, tmp_path: Path) -> None:
    bundle_of(build_model("popularity", {}, dataset).eval(), dataset, tmp_path / "bundle")
    histories = Histories.open(tmp_path / "bundle/history")
    users = {name: row for row, name in enumerate(dataset.users)}
    for user in UNMET:
        met = [item for owner, item in LOG if owner == user]
        assert [dataset.items[row] for row in histories.recent_items(users[user])] == met, "oldest first"
    assert np.load(tmp_path / "bundle/popularity.npy").tolist() == [0, 2, 2, 3, 2]
    candidates = tmp_path / "bundle/candidates"
    assert np.load(candidates / "popular.npy").tolist() == [3, 1, 2, 4]
    assert np.load(candidates / "fresh.npy").tolist() == [4, 3, 2, 1], "first met last is first"


def test_neighbours_hold_every_event(dataset: Dataset, tmp_path: Path) -> None:
    model = random_model("mlp", dataset)
    bundle_of(model, dataset, tmp_path / "bundle", settings={"candidates": 2})
    met = np.zeros((4, 5), np.float32)
    for user, item in LOG:
        met["_abc".index(user), int(item[1:])] = 1
    rows, similarity = neighbours(sparse.csr_array(met), 4, 10.0)
    candidates = tmp_path / "bundle/candidates"
    assert np.load(candidates / "neighbour.npy").tolist() == rows.tolist()
    np.testing.assert_allclose(np.load(candidates / "similarity.npy"), similarity, atol=1e-3)


def test_a_test_file_s_dropped_items_are_nobodys(tmp_path: Path) -> None:
    dataset = log_dataset(tmp_path / "dataset", LOG, SPLITS["given"])
    part = dataset.test
    columns = {c: np.array(getattr(part, c)) for c in ("user", "item", "time", "event", "value", "label")}
    columns["item"][0] = 0  # the k-core dropped i3 of a
    Part.save(dataset.path / "test", columns, dataset.schema.users)
    changed = Dataset.open(dataset.path, verify=False)
    ranker = bundle_of(random_model("mlp", changed), changed, tmp_path / "bundle", settings={"candidates": 2})
    assert sorted(recommended(ranker, "a")) == ["i3", "i4"]
    assert np.load(tmp_path / "bundle/popularity.npy").tolist() == [0, 2, 2, 2, 2]
    neighbour = np.load(tmp_path / "bundle/candidates/neighbour.npy")
    similarity = np.load(tmp_path / "bundle/candidates/similarity.npy")
    assert not neighbour[0].any() and not similarity[neighbour == 0].any(), "row 0 is no item"


def test_the_recall_of_the_first_stage_is_of_items_that_users_have_not_met(tmp_path: Path) -> None:
    """Lists made of a user's own events would bring these very items back."""
    dataset = tiny_dataset(tmp_path / "dataset", users=40, items=60, events=700)
    model, settings = random_model("mlp", dataset), {"candidates": 10}
    ranker = bundle_of(model, dataset, tmp_path / "bundle", settings=settings)
    sample = sample_requests(dataset, ranker.histories, ranker.info, 0)
    assert len(sample) == 40
    last = max(int(part.time.max()) for part in dataset.parts)
    for encoded in sample:
        met = {
            int(item)
            for part in dataset.parts
            for item in part.item[part.indptr[encoded.user] : part.indptr[encoded.user + 1]]
        }
        assert set(encoded.rows.tolist()) == met | {0} and encoded.now == last


@pytest.mark.parametrize("export", [{"candidates": 2}, {"index": "ivf_sq8"}])
def test_users_who_met_everything_do_not_spoil_the_recall(tmp_path: Path, export: dict[str, Any]) -> None:
    log = [(user, f"i{row}") for user in ("a", "b", "c") for row in range(1, 7)]
    dataset = log_dataset(tmp_path / "dataset", log, {"method": "leave_last"})
    model = random_model("two_tower" if "index" in export else "mlp", dataset)
    ranker = bundle_of(model, dataset, tmp_path / "bundle", settings=export)
    assert ranker.figures["retrieval"]["recall@20"] == 1.0
    assert recommended(ranker, "a") == []


def test_the_card_says_what_weights_and_histories_have_seen(tmp_path: Path) -> None:
    dataset = log_dataset(tmp_path / "dataset", LOG, SPLITS["leave_last"])
    model = build_model("popularity", {}, dataset).eval()
    bundle_of(model, dataset, tmp_path / "plain")
    card = (tmp_path / "plain/card.md").read_text()
    assert "weights have seen the 3 events of the training part" in card
    assert "seen items, popularity and candidates hold all 9 events" in card
    refit = {"epochs": 4, "events": 9, "chosen_by": "ndcg@10"}
    bundle_of(model, dataset, tmp_path / "refit", figures={"refit": refit})
    card = (tmp_path / "refit/card.md").read_text()
    assert "trained once more on all 9 events, for the 4 epochs" in card
    assert "of the weights before that" in card, "the figures are not of these weights"


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    folder = tmp_path_factory.mktemp("cold")
    dataset = tiny_dataset(folder / "dataset", users=30, items=40, events=400, untrained=5)
    return bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle")


@pytest.mark.parametrize(
    ("user", "items", "expected"),
    [
        ("u1", ["i1", "i2"], False),
        ("u1", ["i1", "i40"], True),
        ("u30", ["i1", "i2"], False),
        ("stranger", ["i1"], True),
        ("u1", ["i1", "nowhere"], True),
    ],
)
def test_what_training_did_not_meet_is_a_cold_start(
    cold: Ranker, user: str, items: list[str], expected: bool
) -> None:
    (answer,) = cold.rank([RankRequest(user, items)])
    assert answer.cold_start is expected


def test_a_recommendation_for_an_untrained_user_is_a_cold_start(cold: Ranker) -> None:
    answers = cold.recommend([RecommendRequest("u1"), RecommendRequest("u30"), RecommendRequest("nobody")])
    assert [answer.cold_start for answer in answers] == [False, False, True]


def test_the_basis_of_an_untrained_item_is_its_content(cold: Ranker, tmp_path: Path) -> None:
    assert (cold.trained_on("i1"), cold.trained_on("i40"), cold.trained_on("nowhere")) == (True, False, False)
    assert (cold.knows_item("i1"), cold.knows_item("i40"), cold.knows_item("nowhere")) == (True, True, False)
    assert cold.basis_of("i1") == "training" and cold.basis_of("i40") == cold.basis_of("nowhere")


def test_trained_files_are_the_checkpoints(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=30, items=40, events=400, untrained=5)
    bundle_of(random_model("mlp", dataset), dataset, tmp_path / "bundle")
    for name in ("user", "item"):
        trained = np.load(tmp_path / f"bundle/{name}s/trained.npy")
        assert trained.dtype == bool and trained.tolist() == dataset.trained[name].tolist()
        assert not trained[0] and 0 < trained.sum() < len(trained) - 1
