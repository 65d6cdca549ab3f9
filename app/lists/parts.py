"""The state of an offline run, beside its output: what is to be ranked, and the parts that are.

A folder of its own holds a block of users a file and, once that is ranked, a part of the output
and a report. A report is written last, so a part with one is whole; a run that was killed goes on
with the blocks without one. The folder's name tells what the run is made from, so no run meets
the parts of another.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from app.bundle.request.requests import Context, RankRequest, RecommendRequest
from app.errors import DataError, MachineError
from app.lists.users import Row

Json = dict[str, Any]
SCHEMA = pa.schema(
    [("user", pa.string()), ("rank", pa.int32()), ("item", pa.string()), ("score", pa.float32())]
)
_BLOCKS, _LOCK = "blocks.json", "lock"
_BLOCK_BYTES = 8 << 20
_GROUP_ROWS = 500_000
_encode = msgspec.json.Encoder().encode


class Parts:
    """The folder of a run.

    Args:
        folder: with the blocks and parts.
        suffix: of a part, as of the output.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix

    def block(self, number: int) -> Path:
        """Requests, one a line."""
        return self.folder / f"{number:07}.in"

    def write(self, number: int, content: pa.Table | bytes, report: Json) -> None:
        """Keep the part of a block, Parquet or lines of JSON; whole or not at all."""
        with _replacing(self.folder / f"{number:07}{self.suffix}") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                pq.write_table(content, file)
        self._write_json(f"{number:07}.json", report)

    def cut(self, rows: Iterable[Row], k: int, block_rows: int) -> Json:
        """Write the blocks, unless that is done: their count, and users and faults of the input.

        All requests are of this moment, so that a run that goes on later ranks as it began.

        Raises:
            DataError: there is no user in the input.
        """
        done = self.folder / _BLOCKS
        if done.is_file():
            return self._read_json(done)
        found: Json = {"blocks": 0, "users": 0, "rejected": 0, "fault": ""}
        lines: list[bytes] = []
        size, now = 0, Context(time.time())
        for user, items, fault in rows:
            if fault:
                found["rejected"] += 1
                found["fault"] = found["fault"] or fault
                continue
            if items is None:
                lines.append(_encode(RecommendRequest(user, k, context=now)))
            else:
                lines.append(_encode(RankRequest(user, items, k, context=now)))
            size += len(lines[-1])
            if len(lines) == block_rows or size >= _BLOCK_BYTES:
                self._write_block(lines, found)
                lines, size = [], 0
        if lines:
            self._write_block(lines, found)
        if not found["users"]:
            raise DataError("no users", where="--users", remedy=found["fault"] or "give a file with rows")
        self._write_json(_BLOCKS, found)
        return found

    def _write_block(self, lines: list[bytes], found: Json) -> None:
        with _replacing(self.block(found["blocks"])) as file:
            file.write(b"\n".join(lines))
        found["blocks"] += 1
        found["users"] += len(lines)

    def waiting(self, blocks: int) -> list[int]:
        """Numbers of the blocks that are not ranked yet."""
        return [number for number in range(blocks) if not (self.folder / f"{number:07}.json").is_file()]

    def reports(self, blocks: int) -> Iterator[Json]:
        """Of all parts."""
        for number in range(blocks):
            yield self._read_json(self.folder / f"{number:07}.json")

    def join(self, out: Path, blocks: int) -> None:
        """Make the output of the parts, in the order of the input; an older one is replaced."""
        paths = [self.folder / f"{number:07}{self.suffix}" for number in range(blocks)]
        temporary = self.folder / "whole"
        with _replacing(temporary) as file:
            if self.suffix == ".parquet":
                _join_tables(paths, file)
            else:
                for path in paths:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, file)
        temporary.replace(out)
        _sync_folder(out.parent)

    def _write_json(self, name: str, content: Json) -> None:
        with _replacing(self.folder / name) as file:
            file.write(json.dumps(content).encode())

    def _read_json(self, path: Path) -> Json:
        content: Json = json.loads(path.read_bytes())
        return content


@contextmanager
def open_parts(out: Path, key: str, suffix: str) -> Iterator[Parts]:
    """The parts of the run with this key, for one process at a time; removed once all went well.

    Raises:
        MachineError: another process makes the same output.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.parts-{key[:12]}")
    folder.mkdir(exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        if not _locked(lock):
            raise MachineError("another run makes this output", where=str(out), remedy="wait for it")
        for other in out.parent.glob(f".{out.name}.parts-*"):  # of other input, bundles or settings
            if other != folder:
                _remove(other)
        yield Parts(folder, suffix)
        shutil.rmtree(folder)


def _remove(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("w") as lock:
            if _locked(lock):
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # gone meanwhile
        return


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is on disk; several processes may write the same."""
    temporary = path.with_name(f"{path.name}.tmp-{os.uname().nodename}-{os.getpid()}")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _join_tables(paths: Iterable[Path], file: IO[bytes]) -> None:
    with pq.ParquetWriter(file, SCHEMA) as writer:
        tables: list[pa.Table] = []
        rows = 0
        for path in paths:
            tables.append(pq.ParquetFile(path).read())
            rows += len(tables[-1])
            if rows >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(tables))
                tables, rows = [], 0
        if tables:
            writer.write_table(pa.concat_tables(tables))
