"""Fixtures that several suites share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.ray.session import ray_session

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes do not name a test: gzip puts the time into them, and all workers must find the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray node for the whole run; starting one a test would cost seconds each."""
    with ray_session():
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets; skips where it is absent."""
    folder = Path(os.environ.get("RAYREC_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"public data sets are absent: set RAYREC_DATA (looked in {folder})")
    return folder
