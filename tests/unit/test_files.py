"""Files are replaced whole or not at all, and a lock keeps others out until its holder is gone."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from app.files import AlreadyLocked, copy_file, locked, private_folder, replacing, write_atomically

HOLDER = """
import sys, pathlib
from app.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new", durable=True)
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        _ = 1 / 0
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_lock_keeps_other_processes_out_until_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(AlreadyLocked), locked(path, wait=False):
        pass
    holder.kill()
    holder.wait()
    with locked(path):
        pass


@pytest.mark.parametrize("size", [0, 5, 3 << 20])
def test_a_copy_is_a_file_of_its_own(size: int, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes() and len(target.read_bytes()) == size
    assert not target.samefile(source)


def test_a_copy_to_a_file_system_that_cannot_share_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: int) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("app.files.os.copy_file_range", refuses)
    (tmp_path / "source").write_bytes(b"abc")
    copy_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"abc"


def test_a_new_folder_is_its_users_alone_and_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    private_folder(tmp_path / "deep" / "store")
    assert (tmp_path / "deep" / "store").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    private_folder(tmp_path / "shared")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755
