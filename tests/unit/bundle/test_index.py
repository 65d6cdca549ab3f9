"""Indexes: exact search is a full sort, faiss finds nearly as much, and a damaged file is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.export.build_index import K, build, kind_of, recall, top
from app.bundle.format.layout import IndexInfo
from app.bundle.ranking.rows import Blocks
from app.bundle.retrieval.index import Approximate, Exact
from app.bundle.retrieval.item_filter import Match
from app.bundle.retrieval.pool import EligibleItems
from app.errors import ArtifactError, MachineError, RecipeError
from app.tables.rows import Rows
from app.tables.write import write_rows

ITEMS, WIDTH = 6000, 16
KINDS = ["ivf_sq8", "ivf_pq", "hnsw"]
few = st.sampled_from([-1.0, 0.0, 0.5, 2.0])


def rows_of(folder: Path, vectors: np.ndarray, precision: str = "float32") -> Rows:  # type: ignore[type-arg]
    write_rows(folder, "item", vectors, precision)  # type: ignore[arg-type]
    return Rows.open(folder, "item")


def everything(items: int, *left_out: int) -> EligibleItems:
    return EligibleItems(items, np.array(sorted({0, *left_out}), np.int64))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Clusters of unit vectors: what training makes of a catalogue, and what an index is for."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, WIDTH))
    vectors = centres[rng.integers(0, 60, ITEMS)] + 0.5 * rng.normal(size=(ITEMS, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows_of(tmp_path_factory.mktemp("index") / "rows", vectors, "int8")


@pytest.fixture(scope="module")
def states(rows: Rows) -> np.ndarray:  # type: ignore[type-arg]
    rng = np.random.default_rng(1)
    mean = rows.gather(rng.integers(0, ITEMS, (200, 3))).mean(1)
    return (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=KINDS)
def built(
    request: pytest.FixtureRequest,
    rows: Rows,
    states: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,  # type: ignore[type-arg]
) -> tuple[Path, IndexInfo, float]:
    path = tmp_path_factory.mktemp(request.param) / "index" / "faiss.index"
    return path, *build(request.param, rows, states, [everything(ITEMS)] * len(states), 0.95, path)


@given(
    st.lists(few, min_size=2, max_size=40),
    st.integers(1, 50),
    st.sets(st.integers(1, 39), max_size=10),
    st.booleans(),
)
def test_exact_is_a_full_sort(values: list[float], count: int, left_out: set[int], filtered: bool) -> None:
    scores = np.float32(values)
    blocks = [(start, scores[start : start + 7, None]) for start in range(0, len(values), 7)]
    mask = np.arange(len(values)) % 3 > 0
    gone = np.array(sorted({0, *(row for row in left_out if row < len(values))}))
    allowed = EligibleItems(len(values), gone, Match(mask) if filtered else None)
    (pool,) = Exact(blocks).search(np.ones((1, 1), np.float32), count, [allowed])  # type: ignore[arg-type]
    may = [r for r in range(len(values)) if r not in gone and (mask[r] or not filtered)]
    least = sorted((scores[r] for r in may), reverse=True)[:count][-1:] or [np.inf]
    assert pool.rows.tolist() == [r for r in may if scores[r] >= least[0]], "ties on top"
    assert pool.scores.tolist() == scores[pool.rows].tolist()


def test_the_recall_measured_is_that_of_the_search(
    built: tuple[Path, IndexInfo, float],
    rows: Rows,
    states: np.ndarray,  # type: ignore[type-arg]
) -> None:
    path, info, measured = built
    assert measured >= 0.93, "held-out states, the target being .95"
    allowed = [everything(ITEMS)] * len(states)
    truth = [top(pool) for pool in Exact(Blocks(rows)).search(states, K, allowed)]
    answers = [top(pool) for pool in Approximate(path, info, rows, 1).search(states, K, allowed)]
    assert recall(answers[1::2], truth[1::2]) == pytest.approx(measured)


def test_scores_are_those_of_the_rows(
    built: tuple[Path, IndexInfo, float],
    rows: Rows,
    states: np.ndarray,  # type: ignore[type-arg]
) -> None:
    path, info, _ = built
    pools = Approximate(path, info, rows, 1).search(states[:5], 20, [everything(ITEMS)] * 5)
    for state, pool in zip(states[:5], pools, strict=True):
        np.testing.assert_allclose(pool.scores, rows.gather(pool.rows) @ state, atol=1e-6)
        assert len(set(pool.rows.tolist())) == len(pool.rows) >= 20
        assert (np.diff(pool.rows) > 0).all()


def test_what_is_left_out_never_comes(
    built: tuple[Path, IndexInfo, float],
    rows: Rows,
    states: np.ndarray,  # type: ignore[type-arg]
) -> None:
    path, info, _ = built
    index = Approximate(path, info, rows, 1)
    (first,) = index.search(states[:1], 20, [everything(ITEMS)])
    met = everything(ITEMS, *top(first).tolist())
    (second,) = index.search(states[:1], 20, [met])
    assert not np.isin(second.rows, met.left_out).any() and len(second.rows) >= 20


def test_a_user_who_met_the_nearest_items_gets_those_behind_them(
    built: tuple[Path, IndexInfo, float],
    rows: Rows,
    states: np.ndarray,  # type: ignore[type-arg]
) -> None:
    path, info, _ = built
    exact = Exact(Blocks(rows))
    nearest = exact.search(states[:50], 400, [everything(ITEMS)] * 50)
    allowed = [everything(ITEMS, *pool.rows.tolist()) for pool in nearest]
    truth = [top(pool) for pool in exact.search(states[:50], K, allowed)]
    answers = [top(pool) for pool in Approximate(path, info, rows, 1).search(states[:50], K, allowed)]
    assert recall(answers, truth) > 0.8


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_filter_finds_nearly_what_exact_search_does(
    built: tuple[Path, IndexInfo, float],
    rows: Rows,
    states: np.ndarray,
    share: float,  # type: ignore[type-arg]
) -> None:
    path, info, _ = built
    match = Match(np.random.default_rng(2).random(ITEMS) < share)
    allowed = [EligibleItems(ITEMS, np.zeros(1, np.int64), match), everything(ITEMS)] * 50
    truth = Exact(Blocks(rows)).search(states[:100], K, allowed)
    answers = Approximate(path, info, rows, 1).search(states[:100], K, allowed)
    assert all(match.mask[pool.rows].all() for pool in answers[::2])
    assert recall([top(p) for p in answers], [top(p) for p in truth]) > 0.9


def test_less_effort_finds_less_or_as_much(
    built: tuple[Path, IndexInfo, float],
    rows: Rows,
    states: np.ndarray,  # type: ignore[type-arg]
) -> None:
    path, info, measured = built
    allowed = [everything(ITEMS)] * len(states)
    truth = [top(pool) for pool in Exact(Blocks(rows)).search(states, K, allowed)]
    hasty = Approximate(path, info, rows, 1).search(states, K, allowed, effort=0.25)
    assert recall([top(p) for p in hasty][1::2], truth[1::2]) <= measured + 1e-9


def test_a_damaged_file_is_refused(built: tuple[Path, IndexInfo, float], rows: Rows, tmp_path: Path) -> None:
    path, info, _ = built
    whole, damaged = path.read_bytes(), tmp_path / "faiss.index"
    for content in (whole[: len(whole) // 2], whole + b"x", b""):
        damaged.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"faiss\.index.*expected"):
            Approximate(damaged, info, rows, 1)
    damaged.write_bytes(b"gone" + whole[4:])
    with pytest.raises(ArtifactError, match=r"faiss\.index"):
        Approximate(damaged, info, rows, 1)
    with pytest.raises(ArtifactError, match=r"faiss\.index"):
        Approximate(tmp_path / "nowhere" / "faiss.index", info, rows, 1)


def test_an_index_of_other_rows_is_refused(built: tuple[Path, IndexInfo, float], tmp_path: Path) -> None:
    path, info, _ = built
    with pytest.raises(ArtifactError, match=f"{ITEMS} rows of {WIDTH}"):
        Approximate(path, info, rows_of(tmp_path, np.ones((3, WIDTH))), 1)


def test_without_faiss_the_remedy_is_to_install_it(
    built: tuple[Path, IndexInfo, float], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MachineError, match="pip install faiss-cpu"):
        Approximate(built[0], built[1], rows, 1)


def test_the_kind_follows_the_catalogue() -> None:
    assert kind_of("auto", 100_000, retrieves=True, model="m") == "exact"
    assert kind_of("auto", 100_001, retrieves=True, model="m") == "ivf_sq8"
    assert kind_of("hnsw", 10, retrieves=True, model="m") == "hnsw"
    assert kind_of("auto", 10**6, retrieves=False, model="m") == ""
    with pytest.raises(RecipeError, match="mlp has no user vector"):
        kind_of("hnsw", 10, retrieves=False, model="mlp")
