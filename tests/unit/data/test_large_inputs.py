"""Row numbers beyond 2^31, on the smallest unit that counts rows: no file here is large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from app.data.dataset import COLUMNS, Part, column_type
from app.data.merged import _user_blocks
from app.data.prepare.dedupe_sort import (
    PieceInfo,
    dedupe_sort,
    read_batch,
    write_rejects,
    write_table,
)
from app.data.prepare.plan import Plan
from app.data.prepare.rejected import _reasons
from app.data.prepare.selection.splits import Splitter
from app.recipe import Data, Split
from tests.tiny import tiny_dataset

FAR = 2**31 + 5


def plan_of(scratch: Path, **data: Any) -> Plan:
    settings = Data(**{"duplicates": "keep", **data})
    return Plan(settings, Split(), 0, str(scratch), 1, (), (), 1 << 62, -(1 << 62))


def test_rows_keep_their_number_and_order_far_into_the_input(tmp_path: Path) -> None:
    for name, count in (("first", 2), ("second", 3)):
        users = pa.table({"hash": np.array([9], np.uint64), "id": ["a"]})
        write_table(tmp_path / f"{name}.users", users)
        np.save(tmp_path / f"{name}.map.npy", np.arange(3, dtype=np.int32))
        columns = {
            "user": np.zeros(count, np.uint32),
            "item": np.arange(count, dtype=np.uint32),
            "event": np.zeros(count, np.uint8),
            "time": np.zeros(count, np.int64),
            "value": np.ones(count, np.float32),
            "row": np.arange(count, dtype=np.int64),
        }
        write_table(tmp_path / f"{name}.rows", pa.table(columns))
    infos = [PieceInfo("second", FAR + 2, False, (1,)), PieceInfo("first", FAR, False, (1,))]
    dedupe_sort(0, plan_of(tmp_path, timestamp="", row_order=True), infos)
    rows = read_batch(tmp_path / "bucket-0.rows")
    assert rows["row"].to_pylist() == [FAR + n for n in range(5)]
    assert not any(rows["time"].to_pylist())
    assert rows["item"].to_pylist() == [0, 1, 0, 1, 2]


def test_a_row_far_into_the_input_is_put_aside_under_its_reason(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    codes = np.array([0, plan.code("duplicate"), 0], np.uint8)
    write_rejects(tmp_path / "bucket-0.duplicates.npy", np.array([FAR - 1, FAR + 1, FAR + 2]), codes)
    codes = np.array([plan.code("core")], np.uint8)
    write_rejects(tmp_path / "bucket-0.dropped.npy", np.array([FAR + 2]), codes)
    split = type("Numbered", (), {"number": 0})()
    reasons = _reasons(split, plan, FAR, 4)  # type: ignore[arg-type]
    assert [plan.reasons[code] for code in reasons] == ["", "duplicate", "core", ""]


def test_random_splits_tell_rows_apart_that_are_equal_in_32_bits() -> None:
    splitter = Splitter(Split(method="random", test=0.5, valid=0), 1, (False, True))
    near = np.arange(1000)
    parts = []
    for row in (near, near + (1 << 32), near):
        rows = {"user": np.zeros(1000, int), "item": near, "event": np.ones(1000, int), "row": row}
        parts.append(splitter.assign(rows, np.zeros(1, np.uint64))[0])
    assert (parts[0] == parts[2]).all()
    assert 400 < (parts[0] != parts[1]).sum() < 600


def test_positions_in_a_part_that_is_longer_than_32_bits_count(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    part = sparse_part(tmp_path, FAR, {FAR - 3: 1, FAR - 2: 2, FAR - 1: 3})
    item, event, time = dataset.history(np.array([[FAR - 2, FAR]]), part, 3)
    assert (item.tolist(), event.tolist(), time.tolist()) == ([[0, 2, 3]], [[0, 2, 3]], [[0, 2, 3]])
    item, _, _ = dataset.recent(np.array([1, 0]), part)
    assert item[:, -3:].tolist() == [[1, 2, 3], [0, 0, 0]]
    assert dataset.labels(part, slice(FAR - 2, FAR)).tolist() == [1, 0]


def sparse_part(folder: Path, rows: int, values: dict[int, int]) -> Part:
    """A part of zeros whose files take no room, with these values in the given rows of each column.

    User 1 has all rows but the first.
    """
    columns = {}
    for name in ("item", "event", "time"):
        path, kind = folder / name, column_type(name)
        with path.open("wb") as stream:
            stream.truncate(rows * kind.itemsize)
        columns[name] = np.memmap(path, kind, "r+", shape=(rows,))
        for row, value in values.items():
            columns[name][row] = value
        assert path.stat().st_blocks * 512 < 1 << 20
    alike = np.broadcast_to(np.int32(1), rows)
    return Part(user=alike, value=alike, label=alike, indptr=np.array([0, 1, rows]), **columns)


def test_blocks_of_users_and_popularity_count_in_64_bits(tmp_path: Path) -> None:
    indptr = np.array([0, 0, FAR, FAR + 3, 2 * FAR])
    part = Part(**dict.fromkeys(COLUMNS, np.zeros(0, np.int32)), indptr=indptr)
    assert list(_user_blocks([part, part], 4)) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    dataset = tiny_dataset(tmp_path / "dataset")
    assert dataset.popularity.dtype == np.int64
