"""Files that other processes read meanwhile: written whole, synced, locked. Nothing else renames or locks.

Only the standard library is imported at the top, because the serving runtime loads bundles through
this module; `locked` needs filelock.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class AlreadyLocked(Exception):
    """Another process holds the lock."""


def sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on disk before this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling to write; it takes the place of `path` when the block ends well.

    Readers see the old file or the new one, never a part. When the block raises, the old file stays and
    nothing is left of the new one.

    Args:
        path: the file; its folder must exist.
        durable: whether the new file survives a loss of power from then on.
    """
    # Threads, and processes of other machines that share the folder, may write the same file at once.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace a file's content whole; see `replacing`. Makes the folder where it is absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def private_folder(path: Path) -> None:
    """Make a folder that its user alone can enter; one that is there already keeps its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file's content into a file of its own, which shares disk blocks where the file system can."""
    with Path(source).open("rb") as original, Path(target).open("wb") as copy:
        left = os.fstat(original.fileno()).st_size
        try:
            while left > 0 and (copied := os.copy_file_range(original.fileno(), copy.fileno(), left)):
                left -= copied
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
    if left:  # between file systems that cannot do it
        shutil.copyfile(source, target)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is made, for the block.

    The system lets go of it when the process dies, however it dies.

    Args:
        path: of the lock's own file; its folder is made where it is absent.
        wait: whether to wait for another holder.

    Raises:
        AlreadyLocked: another process holds it, and `wait` is false.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0, is_singleton=False)
    try:
        lock.acquire()
    except Timeout:
        raise AlreadyLocked(str(path)) from None
    try:
        yield
    finally:
        lock.release()
