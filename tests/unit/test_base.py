"""Small parts that everything stands on: ids on disk, times, errors, the SDK's names."""

from __future__ import annotations

import errno
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import app
from app.errors import DataError, MachineError, RayRecError, disk_errors
from app.events import microseconds
from app.tables.strings import Strings


@given(values=st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_strings_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    folder = tmp_path_factory.mktemp("strings")
    Strings.save(folder, values)
    loaded = Strings.load(folder)
    assert list(loaded) == values
    assert len(loaded) == len(values)
    assert [loaded[i] for i in range(len(loaded))] == values


def test_times() -> None:
    assert microseconds(1.5) == 1_500_000
    assert microseconds("1970-01-01T00:00:02") == 2_000_000
    assert microseconds("1970-01-01T01:00:00+01:00") == 0
    for bad in ("yesterday", float("nan"), float("inf"), 1e300):
        with pytest.raises(ValueError, match=r".+"):
            microseconds(bad)


def test_errors_travel_between_processes_with_their_place_and_remedy() -> None:
    error = DataError("bad", where="f.csv, row 3", remedy="mend it")
    same = pickle.loads(pickle.dumps(error))
    assert (type(same), str(same)) == (DataError, "f.csv, row 3: bad - mend it")
    assert same.exit_code == 1
    assert RayRecError("x").exit_code == 2


def test_disk_errors_are_translated_and_others_are_not() -> None:
    with pytest.raises(MachineError, match="disk is full"), disk_errors("out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), disk_errors("out"):
        raise FileNotFoundError(errno.ENOENT, "none")


def test_every_public_name_resolves() -> None:
    for name in app.__all__:
        assert getattr(app, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = app.nonsense


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    code = "import app, sys; print([m for m in ('ray', 'torch', 'pandas', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_the_newest_of_the_changelog() -> None:
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    newest = next(line for line in changelog.splitlines() if re.match(r"## \[\d", line))
    assert newest.startswith(f"## [{app.__version__}]")
