"""A small bundle with columns and a replica over it; and serving's log as a replica writes it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.data.dataset import Dataset
from app.recipe import Serve
from tests.bundles import bundle_of, describe_items, random_model
from tests.fakes import Conversation, close_replicas, replica_of
from tests.tiny import tiny_dataset


@pytest.fixture(autouse=True)
def serve_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its level and its way to the root, whatever a session of Ray made of them in this process."""
    logger = logging.getLogger("ray.serve")
    level = logger.level
    monkeypatch.setattr(logger, "propagate", True)
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)


BLURB = "It says more than a filter can use. " * 3


@pytest.fixture(scope="session")
def described(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A data set of 40 items with a title, a blurb that filters do not know, and prices from 1.5 on.

    The last three users and items have no event before the test part; i2 has a long blurb, i3 no price.
    """
    folder = tmp_path_factory.mktemp("described")
    dataset = tiny_dataset(folder / "dataset", users=40, items=40, events=500, untrained=3)
    rows = range(1, 41)
    describe_items(
        dataset,
        title=["", *(f"Item {row}" for row in rows)],
        blurb=["", *(BLURB * (30 if row == 2 else 1) for row in rows)],
        price=[None, *(None if row == 3 else row + 0.5 for row in rows)],
    )
    return dataset


@pytest.fixture(scope="session")
def bundle(described: Dataset) -> Path:
    """The folder of a two-tower model's bundle over `described`."""
    return bundle_of(
        random_model("two_tower", described), described, described.path.with_name("bundle")
    ).artifact.path


@pytest.fixture
def serve_bundle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path
) -> Iterator[Callable[..., Conversation]]:
    """Makes a replica over `bundle` with these keys of [serve], and talks to it."""
    conversations: list[Conversation] = []

    def make(key: str | None = None, **settings: Any) -> Conversation:
        replica = replica_of(monkeypatch, bundle, tmp_path / "store", Serve(**settings), key)
        conversations.append(Conversation(replica))
        return conversations[-1]

    yield make
    for conversation in conversations:
        conversation.close()
    conversations.clear()


@pytest.fixture(autouse=True)
def replicas_end() -> Iterator[None]:
    """No test leaves threads and open files to those that follow."""
    yield
    close_replicas()


@pytest.fixture(autouse=True, scope="module")
def bundles_close() -> Iterator[None]:
    """The bundles of a file's tests are unmapped with it, not when the collector comes by."""
    yield
    gc.collect()
