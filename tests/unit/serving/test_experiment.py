"""Experiments: who was served, outcomes per user, and whether the interval holds what it says."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from app.errors import MachineError
from app.events import Event
from app.serving.rollout.state import DesiredState, Experiment, Service, Version
from app.serving.rollout.state_dir import StateDir
from app.serving.rollout.status import report
from app.serving.versions import experiment
from app.serving.versions.experiment import Exposures, difference, outcomes, remove_other_experiments
from app.stores.schema import FILE
from app.stores.sqlite_store import SqliteStore


def test_a_difference_by_hand() -> None:
    gap = difference([0, 2], [1, 3, 5])
    # Means 1 and 3; variances of the means 2 / 2 and 4 / 3.
    half = 1.959964 * math.sqrt(1 + 4 / 3)
    assert (gap.value, gap.low, gap.high) == pytest.approx((2, 2 - half, 2 + half))
    assert not gap.decides
    assert difference([0] * 50 + [1] * 50, [1] * 50 + [2] * 50).decides


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    # Counts of users who differ among each other, as people do: geometric with mean 1.
    trials, inside = 1000, 0
    for _ in range(trials):
        gap = difference((rng.geometric(0.5, 300) - 1).tolist(), (rng.geometric(0.5, 200) - 1).tolist())
        inside += not gap.decides
    assert 0.93 < inside / trials < 0.97  # 95 %, standard deviation 0.7 %


def test_outcomes_count_users_without_any_and_only_what_belongs(tmp_path: Path) -> None:
    exposures = Exposures(tmp_path)
    for user, variant in (("u1", "a"), ("u2", "a"), ("u3", "b"), ("u1", "a")):
        exposures.note("s", user, variant)
    exposures.note("earlier", "u9", "a")
    exposures.flush()
    exposures.note("s", "u3", "b")
    exposures.flush()
    store = SqliteStore(tmp_path)
    store.append(
        [
            Event("u1", "i", "buy", 1000.0, variant="a"),
            Event("u1", "i", "buy", 1001.0, variant="a"),
            Event("u1", "i", "view", 1002.0, variant="a"),
            Event("u1", "i", "buy", 999.0, variant="a"),  # before the experiment
            Event("u3", "i", "buy", 1000.0, variant="a"),  # of a version that did not serve u3
            Event("u9", "i", "buy", 1000.0, variant="a"),  # not served in it
        ]
    )
    store.close()
    by_version = outcomes(tmp_path, "s", 1000.0, "buy")
    assert {variant: sorted(counts) for variant, counts in by_version.items()} == {"a": [0, 2], "b": [0]}
    assert sorted(outcomes(tmp_path, "s", 1000.0)["a"]) == [0, 3]


def test_the_report_says_what_is_known(tmp_path: Path) -> None:
    service = Service("http://127.0.0.1:1", str(tmp_path), 1, "", 2)
    versions = [Version("a", "/a", "da", 0.5), Version("b", "/b", "db", 0.5)]
    last = Experiment("s", 0.0, ["a", "b"])
    StateDir(tmp_path).publish(DesiredState(versions, "experiment", "s", experiment=last))
    assert report(service)["verdict"] == "too few users so far"
    exposures, store = Exposures(tmp_path), SqliteStore(tmp_path)
    for n in range(200):
        exposures.note("s", f"u{n}", "ab"[n % 2])
    exposures.flush()
    store.append([Event(f"u{n}", "i", "buy", 1.0, variant="b") for n in range(1, 100, 2)])
    store.close()
    result = report(service, "buy")
    assert [(arm["users"], arm["outcomes"], arm["rate"]) for arm in result["arms"]] == [
        (100, 0, 0.0),
        (100, 50, 0.5),
    ]
    assert result["verdict"] == "b is better"
    assert result["difference"]["low"] > 0.4


def served(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "served.sqlite")) as database:
        return [user for (user,) in database.execute("SELECT user FROM served ORDER BY user")]


def test_what_could_not_be_written_is_written_with_the_next_one(tmp_path: Path) -> None:
    exposures = Exposures(tmp_path)
    (tmp_path / "served.sqlite").write_bytes(b"no database at all" * 100)
    exposures.note("s", "u1", "a")
    for user in ("u2", "u1"):
        exposures.note("s", user, "a")
        with pytest.raises(MachineError, match=r"served\.sqlite"):
            exposures.flush()
    (tmp_path / "served.sqlite").unlink()
    exposures.note("s", "u3", "a")
    exposures.flush()
    assert served(tmp_path) == ["u1", "u2", "u3"]


def test_users_beyond_those_that_may_wait_are_noted_with_a_later_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "WAITING", 2)
    exposures = Exposures(tmp_path)
    for user in ("u1", "u2", "u3"):
        exposures.note("s", user, "a")
    exposures.flush()
    assert served(tmp_path) == ["u1", "u2"]
    exposures.note("s", "u3", "a")
    exposures.flush()
    assert served(tmp_path) == ["u1", "u2", "u3"]


def test_the_file_has_a_bound_and_takes_users_again_where_room_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(experiment, "FILE_BYTES", 1 << 17)
    exposures = Exposures(tmp_path)
    for turn in range(100):
        for user in range(500):
            exposures.note("s", f"user {turn} {user}", "a version with some name")
        exposures.flush()
    size = (tmp_path / "served.sqlite").stat().st_size
    assert (1 << 17) <= size < (1 << 18)
    assert [r.getMessage().count("further users are not counted") for r in caplog.records] == [1]
    remove_other_experiments(tmp_path, "next")
    exposures.note("next", "u1", "a")
    exposures.flush()
    assert served(tmp_path) == ["u1"]


def test_rows_of_other_experiments_go_and_outcomes_of_this_one_stay(tmp_path: Path) -> None:
    exposures, store = Exposures(tmp_path), SqliteStore(tmp_path)
    for salt in ("before", "running", "canary"):
        for user in range(20):
            exposures.note(salt, f"u{user}", "a")
    exposures.flush()
    store.append([Event("u1", "i", "buy", 10.0, variant="a")])
    store.close()
    before = outcomes(tmp_path, "running", 0.0)
    assert (len(before["a"]), sum(before["a"])) == (20, 1)
    remove_other_experiments(tmp_path, "running")
    assert outcomes(tmp_path, "running", 0.0) == before
    assert outcomes(tmp_path, "canary", 0.0) == outcomes(tmp_path, "before", 0.0) == {}


def test_where_nobody_was_served_there_is_nothing_to_remove(tmp_path: Path) -> None:
    remove_other_experiments(tmp_path, "s")
    assert list(tmp_path.iterdir()) == []


def test_a_log_of_an_older_version_gets_the_column(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / FILE)
    old.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, user TEXT NOT NULL, item TEXT NOT NULL,"
        " event TEXT NOT NULL, time INTEGER NOT NULL, value REAL)"
    )
    old.execute("INSERT INTO events (user, item, event, time) VALUES ('u', 'a', 'view', 1)")
    old.commit()
    old.close()
    for _ in range(2):  # a second replica finds it done
        store = SqliteStore(tmp_path)
    store.append([Event("u", "b", timestamp=2, variant="v")])
    assert [event.item for event in store.recent("u", 9)] == ["a", "b"]
    rows = store._reader.execute("SELECT item, variant FROM events ORDER BY id").fetchall()
    assert rows == [("a", ""), ("b", "v")]
