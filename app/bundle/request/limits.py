"""What a ranker takes at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a ranker; a request beyond one of them is refused.

    Args:
        max_candidates: ids that a request may name.
        max_k: items that `recommend` and `similar` may return.
        budget_ms: of a recommendation that names none; 0: it takes as long as it takes.
        max_new_items: items that may come or change after training.
    """

    max_candidates: int = 1000
    max_k: int = 100
    budget_ms: float = 0.0
    max_new_items: int = 10_000


DEFAULT_LIMITS = Limits()
