"""The state of an offline run, in a folder beside its output: blocks of users, and the parts ranked so far.

A block is a file of requests. Once it is ranked there are a part of the output and a report, which
is written last: a part with a report is whole, and a run that was killed goes on with the blocks
that have none. The folder's name holds a digest of what the run is made from, so no run uses the
parts of another.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from app.bundle.request.requests import Context, RankRequest, RecommendRequest
from app.errors import DataError, MachineError
from app.files import AlreadyLocked, locked, replacing, write_atomically
from app.lists.users import Row

Json = dict[str, Any]
SCHEMA = pa.schema(
    [("user", pa.string()), ("rank", pa.int32()), ("item", pa.string()), ("score", pa.float32())]
)
_BLOCKS, _LOCK = "blocks.json", "lock"
_BLOCK_BYTES = 8 << 20  # of a block's file, at which the next block begins
_GROUP_ROWS = 500_000  # of a row group of the output
_encode = msgspec.json.Encoder().encode


class Parts:
    """The blocks and parts of a run.

    Args:
        folder: that holds them.
        suffix: ending of a part's file, ".parquet" or ".jsonl", as of the output.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix

    def block(self, number: int) -> Path:
        """The file of a block, which holds a request a line, as JSON."""
        return self.folder / f"{number:07}.in"

    def write(self, number: int, content: pa.Table | bytes, report: Json) -> None:
        """Write the part of a block (a table for Parquet, else lines of JSON), then its report."""
        with replacing(self.folder / f"{number:07}{self.suffix}", durable=True) as temporary:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                pq.write_table(content, temporary)
        self._write_json(f"{number:07}.json", report)

    def cut(self, rows: Iterable[Row], k: int, block_rows: int) -> Json:
        """Write the blocks, unless an earlier run did.

        All requests are of this moment, so that a run that goes on later ranks as it began.

        Args:
            rows: users and their candidates.
            k: items of a list at most.
            block_rows: users of a block at most.

        Returns:
            Number of `blocks`, `users` and `rejected` rows, and `fault`, why the first of these was.

        Raises:
            DataError: there is no user in the input.
        """
        done = self.folder / _BLOCKS
        if done.is_file():
            return self._read_json(done)
        summary: Json = {"blocks": 0, "users": 0, "rejected": 0, "fault": ""}
        lines: list[bytes] = []
        size, now = 0, Context(time.time())
        for user, items, fault in rows:
            if fault:
                summary["rejected"] += 1
                summary["fault"] = summary["fault"] or fault
                continue
            if items is None:
                lines.append(_encode(RecommendRequest(user, k, context=now)))
            else:
                lines.append(_encode(RankRequest(user, items, k, context=now)))
            size += len(lines[-1])
            if len(lines) == block_rows or size >= _BLOCK_BYTES:
                self._write_block(lines, summary)
                lines, size = [], 0
        if lines:
            self._write_block(lines, summary)
        if not summary["users"]:
            raise DataError("no users", where="--users", remedy=summary["fault"] or "give a file with rows")
        self._write_json(_BLOCKS, summary)
        return summary

    def _write_block(self, lines: list[bytes], summary: Json) -> None:
        write_atomically(self.block(summary["blocks"]), b"\n".join(lines), durable=True)
        summary["blocks"] += 1
        summary["users"] += len(lines)

    def waiting(self, blocks: int) -> list[int]:
        """Numbers of the blocks that have no part yet."""
        return [number for number in range(blocks) if not (self.folder / f"{number:07}.json").is_file()]

    def reports(self, blocks: int) -> Iterator[Json]:
        """The reports of all parts, in their order."""
        for number in range(blocks):
            yield self._read_json(self.folder / f"{number:07}.json")

    def join(self, out: Path, blocks: int) -> None:
        """Write the output from all parts, in the order of the input; an older output is replaced."""
        paths = [self.folder / f"{number:07}{self.suffix}" for number in range(blocks)]
        with replacing(out, durable=True) as temporary, temporary.open("wb") as file:
            if self.suffix == ".parquet":
                _join_tables(paths, file)
            else:
                for path in paths:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, file)

    def _write_json(self, name: str, content: Json) -> None:
        write_atomically(self.folder / name, json.dumps(content).encode(), durable=True)

    def _read_json(self, path: Path) -> Json:
        content: Json = json.loads(path.read_bytes())
        return content


@contextmanager
def open_parts(out: Path, key: str, suffix: str) -> Iterator[Parts]:
    """The parts of the run with this key, for one process at a time; removed when the block ends well.

    Raises:
        MachineError: another process makes the same output.
    """
    folder = out.with_name(f".{out.name}.parts-{key[:12]}")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / _LOCK, wait=False))
        except AlreadyLocked:
            raise MachineError(
                "another run makes this output", where=str(out), remedy="wait for it"
            ) from None
        for other in out.parent.glob(f".{out.name}.parts-*"):  # of other input, bundles or settings
            if other != folder:
                _remove(other)
        for unfinished in out.parent.glob(f".{out.name}.*.tmp"):  # of a run killed while it joined its parts
            unfinished.unlink(missing_ok=True)
        yield Parts(folder, suffix)
        shutil.rmtree(folder)


def _remove(folder: Path) -> None:
    """Remove the parts of another run, unless a process works on them."""
    with suppress(AlreadyLocked, OSError), locked(folder / _LOCK, wait=False):
        shutil.rmtree(folder, ignore_errors=True)


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
