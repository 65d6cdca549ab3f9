"""`data.ties`: which events of one moment come before which, the same in training, evaluation and serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from app.data.dataset import Array, Dataset, Part
from app.data.stage import prepare
from app.evaluation.logged.events import logged_events
from app.evaluation.requests import requests_of
from app.recipe import Train, parse
from app.training.batches.events import EventBatches
from app.training.batches.sequences import SequenceBatches
from tests.tiny import tiny_dataset

MINUTE = 60_000_000
# (item, minute) of one user: a basket of three at minute 4, whose last item is held out; see `log`.
EVENTS = [(5, 1), (6, 2), (7, 4), (8, 4), (9, 4)]
BEFORE = {"order": {7: [5, 6], 8: [5, 6, 7], 9: [5, 6, 7, 8]}, "none": {7: [5, 6], 8: [5, 6], 9: [5, 6]}}


def log(folder: Path, ties: str, **parts: list[tuple[int, int]]) -> Dataset:
    """A data set of one user with these (item, minute) events a part."""
    dataset = tiny_dataset(folder / "dataset", users=1, events=5, history=3)
    for name in ("train", "valid", "test"):
        item, minute = np.array(parts.get(name, []), np.int64).reshape(-1, 2).T
        ones = np.ones(len(item))
        columns = {"user": ones, "item": item, "time": (minute + 1) * MINUTE, "event": ones, "value": ones}
        Part.save(dataset.path / name, {**columns, "label": ones}, dataset.schema.users)
    schema = msgspec.structs.replace(dataset.schema, ties=ties)
    (dataset.path / "schema.json").write_bytes(msgspec.json.encode(schema))
    return Dataset.open(dataset.path, verify=False)


def known(history: Array) -> list[int]:
    return [int(item) for item in history if item]


@pytest.mark.parametrize("ties", ["order", "none"])
def test_an_event_is_predicted_from_the_same_past_learned_or_held_out(tmp_path: Path, ties: Any) -> None:
    learned = log(tmp_path / "learned", ties, train=EVENTS)
    [batch] = EventBatches(learned, Train(id_dropout=0.0, negatives=0), "bce", 1).epoch(0)
    histories = batch.history.item.tolist()
    shown = {int(i): known(row) for [i], row in zip(batch.item.tolist(), histories, strict=True)}
    expected = BEFORE[ties]
    assert {item: shown[item] for item in expected} == {item: own[-3:] for item, own in expected.items()}

    [sequences] = SequenceBatches(learned, Train(id_dropout=0.0), "softmax", 1).epoch(0)
    columns = sequences.history.item.shape[1]
    at = {int(t): divmod(int(o), columns) for o, t in zip(sequences.owner, sequences.target, strict=True)}
    for item, own in expected.items():
        row, column = at[item]
        before = known(sequences.history.item[row, : column + 1])
        assert before == own[-len(before) :] and len(before) >= min(len(own), 2)

    held_out = log(tmp_path / "held-out", ties, train=EVENTS[:3], valid=EVENTS[3:4], test=EVENTS[4:])
    for part, item in (("valid", 8), ("test", 9)):
        request = requests_of(held_out, part).batch(held_out, slice(None), np.array([[item]]))
        assert known(request.history.item[0]) == expected[item][-3:]
        logged = logged_events(held_out, part).batch(held_out, slice(None), "recent")
        assert known(logged.history.item[0]) == expected[item][-3:]


def test_what_came_later_stays_in_the_history_of_a_random_split(tmp_path: Path) -> None:
    """Only the events of the moment itself are left out, and earlier ones take their room."""
    dataset = log(tmp_path, "none", train=[*EVENTS[:2], (7, 4), (8, 4), (4, 9)], test=[(9, 4)])
    request = requests_of(dataset, "test").batch(dataset, slice(None), np.array([[9]]))
    assert known(request.history.item[0]) == [5, 6, 4]


def test_a_delayed_request_still_does_not_see_its_targets_basket(tmp_path: Path) -> None:
    dataset = log(tmp_path, "none", train=EVENTS[:4], test=EVENTS[4:])
    delayed = requests_of(dataset, "test").delayed(dataset, 5 * MINUTE)
    assert delayed.now.tolist() == [(2 + 1 + 5) * MINUTE]  # five minutes after item 6
    batch = delayed.batch(dataset, slice(None), np.array([[9]]))
    assert known(batch.history.item[0]) == [5, 6]


SEVERAL = {"timestamp": ["timestamp", "place"]}
BASKETS = [
    f"u{user},i{item},2024-01-0{day},{item}" for user in range(4) for item, day in enumerate((1, 1, 2, 3))
]
ONE_DAY = [f"u{user},i{(user + item) % 5},2024-01-01,{item}" for user in range(4) for item in range(4)]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("data", "rows", "ties"),
    [
        ({}, BASKETS, "none"),
        ({"ties": "order"}, BASKETS, "order"),
        (SEVERAL, BASKETS, "order"),
        ({"ties": "none", **SEVERAL}, BASKETS, "none"),
        ({}, ONE_DAY, "order"),
    ],
)
def test_the_data_set_says_which(tmp_path: Path, data: dict[str, Any], rows: list[str], ties: str) -> None:
    """Further columns of the time order the events of a day; what is all of one moment is a sequence."""
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp,place", *rows]) + "\n")
    split = {"method": "leave_last"}
    recipe = parse({"data": {"events": [str(tmp_path / "log.csv")], **data}, "split": split}, "test")
    figures = prepare(recipe, tmp_path / "dataset").figures
    assert Dataset.open(tmp_path / "dataset").schema.ties == ties
    said = [note for note in figures.get("notes", []) if "have the moment of another" in note]
    assert [note.split()[0] for note in said] == (["4"] if ties == "none" else []), "one event a user of four"


@pytest.mark.usefixtures("ray_local")
def test_items_of_a_session_that_lie_on_one_day_are_told_by_their_order(tmp_path: Path) -> None:
    """The last item of each session is predicted from those before it, although all are of one day."""
    lines = [f"s{s},i{(s + n) % 7},2024-01-01,{n}" for s in range(1, 9) for n in range(4)]
    lines.append("s9,i1,2024-01-02,0")
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp,place", *lines]) + "\n")
    recipe = parse(
        {"data": {"events": [str(tmp_path / "log.csv")], **SEVERAL}, "split": {"method": "leave_last"}},
        "test",
    )
    prepare(recipe, tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    requests = requests_of(dataset, "test")
    batch = requests.batch(dataset, slice(None), np.zeros((len(requests), 1), np.int64))
    assert (batch.history.item > 0).sum(1).tolist() == [3] * 8
