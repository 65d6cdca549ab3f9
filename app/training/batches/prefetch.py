"""Batches that are made ahead of the training loop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from app.training.batches.base import AnyBatch

PREFETCH = 4  # batches that wait for the training loop


def prefetch(batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
    """The same batches, up to PREFETCH of them ahead, from a thread of its own."""
    ready: queue.Queue[AnyBatch | BaseException | None] = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(content: AnyBatch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(content, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (content := ready.get()) is not None:
            if isinstance(content, BaseException):
                raise content
            yield content
    finally:
        stop.set()
        thread.join()
