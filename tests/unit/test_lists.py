"""Offline lists without Ray: reading users, blocks and parts, and going on after an interruption."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import app.lists.parts
import app.lists.run
from app.bundle.request.requests import Context, RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
from app.errors import ArtifactError, DataError, MachineError, RequestError
from app.events import Event
from app.lists.parts import open_parts
from app.lists.ranking import Rankings
from app.lists.run import rank_users
from app.lists.users import Row, read_users
from app.stores.sqlite_store import SqliteStore
from tests.bundles import NOW, bundle_of, random_model
from tests.tiny import tiny_dataset
from tests.unit.test_cli import rayrec

ROWS = [Row("u1", ["i1", "i2"]), Row("7", None)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    dataset = tiny_dataset(folder / "dataset", users=60, items=40, events=900)
    bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle")
    return folder / "bundle"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks are ranked in this process, one after the other; returns their numbers."""
    ranked: list[int] = []

    def map_here(
        maker: Callable[..., Any], arguments: tuple[Any, ...], numbers: Sequence[int], where: str
    ) -> Iterator[Any]:
        work = maker(*arguments)
        for number in numbers:
            ranked.append(number)
            yield work(number)

    monkeypatch.setattr(app.lists.run, "map_in_actors", map_here)
    monkeypatch.setattr(app.lists.run, "ray_session", lambda: open("/dev/null"))  # noqa: SIM115, PTH123
    return ranked


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(out: Path) -> list[dict[str, Any]]:
    if out.suffix == ".parquet":
        return pq.ParquetFile(out).read().to_pylist()  # type: ignore[no-any-return]
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("u.csv", 'user,items,age\nu1,"i1,i2",3\n7,,4\n'),
        ("u.tsv", "user\titems\nu1\ti1 i2\n7\t\n"),
        ("u.jsonl", '{"user": "u1", "items": ["i1", "i2"], "age": 3}\n\n{"user": 7}\n'),
        ("u.jsonl.gz", gzip.compress(b'{"user": "u1", "items": ["i1", "i2"]}\n{"user": 7, "items": null}')),
    ],
)
def test_users_of_any_format(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert list(read_users([str(write(tmp_path / name, content))])) == ROWS


def test_users_of_text_and_parquet(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", "u1\r\n\n  7 \nuser")
    assert list(read_users([str(text)])) == [Row("u1"), Row("7"), Row("user")]
    pq.write_table(pa.table({"items": [["i1", "i2"], None], "user": ["u1", "7"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"user": [1.0, None, 12]}), tmp_path / "c.parquet")
    assert list(read_users([str(tmp_path / "b.parquet")])) == ROWS
    [first, nobody, twelve] = read_users([str(tmp_path / "c.parquet")])
    assert (first, twelve, "without a user" in nobody.fault) == (Row("1"), Row("12"), True)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("u.csv", "user,items\na,b\nc,d,e\nf,g\n", "line 3"),
        ("u.jsonl", '{"user": "a"}\n{"user": }\n{"user": "f"}\n', "line 2"),
        ("u.jsonl", '{"user": "a"}\n{"users": "b"}\n{"user": "f"}\n', "line 2"),
        ("u.txt", b"a\n\xff\nf\n", "line 2"),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_read(
    tmp_path: Path, name: str, content: str | bytes, line: str
) -> None:
    rows = list(read_users([str(write(tmp_path / name, content))]))
    assert [row.user for row in rows if not row.fault] == ["a", "f"]
    assert [line in row.fault for row in rows if row.fault] == [True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.csv", "id,items\na,b\n", "no column 'user'; there are id, items"),
        ("u.parquet", "user\na\n", "should be Parquet"),
        ("u.txt.gz", b"nothing of the kind", "cannot be read"),
        ("u.csv", "user\n", "no users"),
        ("u.txt", "\n\n", "no users"),
    ],
)
def test_files_that_cannot_be_used(
    bundle: Path, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    users = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        rank_users(bundle, str(users), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("out", ["out.parquet", "deep/out.jsonl"])
def test_lists_are_those_of_the_ranker(
    bundle: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder of files, in the order of their names and rows; k is the longest list."""
    monkeypatch.setattr(app.lists.parts.time, "time", lambda: NOW)
    (tmp_path / "users").mkdir()
    write(tmp_path / "users" / "a.txt", "u1\nu2\nstranger\n")
    write(tmp_path / "users" / "b.jsonl", '{"user": "u3", "items": ["i5", "i9", "i2", "i5", "new"]}\n')
    summary = rank_users(bundle, str(tmp_path / "users"), tmp_path / out, k=3, block_rows=2)
    ranker, then = Ranker.open(bundle), Context(NOW)
    requests = [RecommendRequest(user, 3, context=then) for user in ("u1", "u2", "stranger")]
    wanted = {request.user: ranker.recommend([request])[0] for request in requests}
    wanted["u3"] = ranker.rank([RankRequest("u3", ["i5", "i9", "i2", "new"], 3, context=then)])[0]
    rows = read(tmp_path / out)
    assert [(row["user"], row["rank"], row["item"]) for row in rows] == [
        (user, rank, scored.item)
        for user, answer in wanted.items()
        for rank, scored in enumerate(answer.items, 1)
    ]
    scores = [scored.score for answer in wanted.values() for scored in answer.items]
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-5)
    assert (summary["users"], summary["rows"], summary["rejected"]) == (4, 12, 0)
    assert summary["cold_start"] == 2  # a stranger, and an item that training never met
    assert list(tmp_path.rglob(".*")) == []


def test_what_cannot_be_ranked_is_left_out_and_counted(bundle: Path, tmp_path: Path) -> None:
    users = write(tmp_path / "u.jsonl", '{"user": "u1"}\n{"user": ""}\nx\n{"user": "u2", "items": []}\n')
    summary = rank_users(bundle, str(users), tmp_path / "out.parquet", k=2)
    assert (summary["users"], summary["rejected"]) == (1, 3)
    assert "line 3" in summary["fault"]
    assert {row["user"] for row in read(tmp_path / "out.parquet")} == {"u1"}


def test_stored_feedback_counts(bundle: Path, tmp_path: Path) -> None:
    users, out = write(tmp_path / "u.txt", "u1\n"), tmp_path / "out.jsonl"
    with pytest.raises(MachineError, match="no feedback log"):
        rank_users(bundle, str(users), out, store=str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()
    rank_users(bundle, str(users), out)
    best = read(out)[0]["item"]
    store = SqliteStore(tmp_path / "store")
    store.append([Event("u1", best, "view")])
    store.close()
    rank_users(bundle, str(users), out, store=str(tmp_path / "store"))
    assert best not in [row["item"] for row in read(out)]  # seen


def test_no_stored_event_is_too_old_to_be_seen(bundle: Path, tmp_path: Path) -> None:
    """A user with 10 events on the best items, and 250 later ones on another item."""
    users, out = write(tmp_path / "u.txt", "u1\nu2\n"), tmp_path / "out.jsonl"
    rank_users(bundle, str(users), out, k=11)
    items = [row["item"] for row in read(out) if row["user"] == "u1"]
    best, other = items[:10], items[10]
    store = SqliteStore(tmp_path / "store")
    store.append([Event("u1", item, "view", float(NOW + n)) for n, item in enumerate(best)])
    store.append([Event("u1", other, "view", float(NOW + 100 + n)) for n in range(250)])
    store.append([Event("u2", "i1", "view")])  # a user with few events
    store.close()
    rank_users(bundle, str(users), out, store=str(tmp_path / "store"))
    rows = read(out)
    assert not {*best, other} & {row["item"] for row in rows if row["user"] == "u1"}
    assert {row["rank"] for row in rows if row["user"] == "u1"} == set(range(1, 11))
    assert "i1" not in {row["item"] for row in rows if row["user"] == "u2"}


def test_an_interrupted_run_goes_on(
    bundle: Path, tmp_path: Path, here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off while the third of five blocks is ranked; again; then done, as one that never was."""
    users, out = write(tmp_path / "u.txt", "".join(f"u{n}\n" for n in range(1, 11))), tmp_path / "out.jsonl"
    monkeypatch.setattr(app.lists.parts.time, "time", lambda: NOW)
    rank_users(bundle, str(users), tmp_path / "whole.jsonl", k=3, block_rows=2)
    here.clear()
    work = Rankings.__call__

    def interrupted(self: Rankings, number: int) -> Any:
        if number == 2 and len(here) <= 4:
            monkeypatch.setattr(app.lists.parts.time, "time", lambda: NOW + 1e6)
            raise KeyboardInterrupt
        return work(self, number)

    monkeypatch.setattr(Rankings, "__call__", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            rank_users(bundle, str(users), out, k=3, block_rows=2)
    assert here == [0, 1, 2, 2]
    assert not out.exists()
    write(tmp_path / ".out.jsonl.0.tmp", "half of an output")  # as a kill leaves it
    summary = rank_users(bundle, str(users), out, k=3, block_rows=2)
    assert here[4:] == [2, 3, 4]
    assert (summary["resumed"], summary["users"]) == (2, 10)
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert list(tmp_path.glob(".*")) == []


def test_parts_of_other_input_are_never_used(bundle: Path, tmp_path: Path, here: list[int]) -> None:
    users, out = write(tmp_path / "u.txt", "u1\nu2\n"), tmp_path / "out.jsonl"
    rank_users(bundle, str(users), out, k=2, block_rows=1)
    with pytest.raises(KeyError), open_parts(out, "another key", ".jsonl") as parts:
        parts.cut([Row("u9")], 2, 1)
        parts.write(0, b'{"user": "u9"}\n', {"users": 1})
        raise KeyError
    left = next(tmp_path.glob(".out.jsonl.parts-*"))
    write(tmp_path / "u.txt", "u3\nu4\n")
    rank_users(bundle, str(users), out, k=2, block_rows=1)
    assert {row["user"] for row in read(out)} == {"u3", "u4"}
    assert not left.exists()
    assert here == [0, 1, 0, 1]


def test_two_runs_of_one_output_are_refused(bundle: Path, tmp_path: Path) -> None:
    with open_parts(tmp_path / "out.jsonl", "key", ".jsonl"):
        with (
            pytest.raises(MachineError, match="another run"),
            open_parts(tmp_path / "out.jsonl", "key", ".jsonl"),
        ):
            pass
        with open_parts(tmp_path / "out.jsonl", "other", ".jsonl"):
            assert len(list(tmp_path.glob(".out.jsonl.parts-*"))) == 2  # one in use is left alone


def test_a_part_without_its_report_is_made_again(tmp_path: Path) -> None:
    with open_parts(tmp_path / "out.jsonl", "key", ".jsonl") as parts:
        parts.cut([Row("a"), Row("b"), Row("", None, "broken")], 5, 1)
        parts.write(0, b"0\n", {"users": 1})
        write(parts.folder / "0000001.jsonl", b"half")  # the process died before the report
        assert parts.waiting(2) == [1]
        assert parts.cut([], 5, 1) == {"blocks": 2, "users": 2, "rejected": 1, "fault": "broken"}
        assert parts.block(1).read_bytes().startswith(b'{"user":"b","k":5,"context":{"timestamp":')


def test_mistakes(bundle: Path, tmp_path: Path) -> None:
    users = str(write(tmp_path / "u.txt", "u1\n"))
    with pytest.raises(RequestError, match=r"use .parquet or .jsonl"):
        rank_users(bundle, users, tmp_path / "out.csv")
    with pytest.raises(ArtifactError, match="no such folder"):
        rank_users(tmp_path / "absent", users, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="no such file"):
        rank_users(bundle, str(tmp_path / "absent.txt"), tmp_path / "out.jsonl")
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        rank_users(bundle, users, tmp_path / "dir.jsonl")


def test_the_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users, out = write(tmp_path / "u.txt", "u1\nu2\n"), tmp_path / "out.parquet"
    code, printed, _ = rayrec(capsys, "rank", bundle, "--users", users, "--out", out, "--k", 4, "--json")
    assert (code, json.loads(printed)["rows"], len(read(out))) == (0, 8, 8)
    code, printed, error = rayrec(capsys, "rank", bundle, "--users", users, "--out", tmp_path / "x.csv")
    assert (code, printed, len(error.splitlines())) == (1, "", 1)
