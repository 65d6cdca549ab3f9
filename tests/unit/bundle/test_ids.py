"""Ids are looked up by hash over mapped files, exactly, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.bundle.format import ids as module
from app.bundle.format.ids import Ids
from app.errors import ArtifactError

NAMES = ["", "a", "b", "Ünï", "日本", "a b", "0", "-1"]


def stored(folder: Path, names: list[str]) -> Ids:
    Ids.write(folder, names)
    return Ids.open(folder)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=20))
def test_every_id_is_found_and_no_other(tmp_path: Path, names: set[str]) -> None:
    known = ["", *sorted(names)]
    ids = stored(tmp_path, known)
    assert ids.rows(known) == list(range(len(known)))
    assert [ids[row] for row in range(len(ids))] == known
    assert ids.row("no such id, surely") == 0


def test_remembered_ids_are_the_same_ids(tmp_path: Path) -> None:
    ids = stored(tmp_path, NAMES)
    assert ids.table_rows(NAMES).tolist() == [0] * len(NAMES), "the table is not built yet"
    ids.build_table()
    assert ids.table_rows([*NAMES, "missing"]).tolist() == [*range(len(NAMES)), 0]
    assert ids.rows([*NAMES, "missing"]) == [*range(len(NAMES)), 0]


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_a_remembered_id_is_never_taken_for_another(tmp_path: Path, count: int) -> None:
    ids = stored(tmp_path, ["", *(f"i{row}" for row in range(1, count + 1))])
    ids.build_table()
    looked_up = ids.table_rows([f"i{row}" for row in range(1, 2 * count + 2)])
    rows = np.arange(1, count + 1)
    left_out = looked_up[:count] == 0
    assert (looked_up[:count][~left_out] == rows[~left_out]).all()
    assert left_out.mean() < 0.01 if count else True
    assert not looked_up[count:].any()


def test_equal_hashes_are_told_apart_by_the_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "id_hash", lambda name: 7)
    ids = stored(tmp_path, NAMES)
    assert ids.rows([*NAMES[1:], "missing"]) == [*range(1, len(NAMES)), 0]


def test_memory_of_ids_in_use_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    ids = stored(tmp_path, NAMES)
    for _ in range(3):
        assert ids.rows(NAMES[1:]) == list(range(1, len(NAMES)))
        assert len(ids._row_cache) <= 3
    ids.rows(["unknown", "another"])
    assert not {"unknown", "another"} & ids._row_cache.keys(), "what is unknown takes no room"


def test_no_ids_at_all(tmp_path: Path) -> None:
    ids = stored(tmp_path, [""])
    assert len(ids) == 1 and ids.row("a") == 0


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    Ids.write(tmp_path, NAMES)
    np.save(tmp_path / "rows.npy", np.arange(3))
    with pytest.raises(ArtifactError, match="do not fit together"):
        Ids.open(tmp_path)
