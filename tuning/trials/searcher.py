"""The ledger as Ray Tune's search algorithm."""

from __future__ import annotations

from typing import Any, cast

from ray.tune.search import Searcher

from tuning.trials.ledger import Ledger


class LedgerSearcher(Searcher):
    """Takes settings from the ledger and brings it the results."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Settings for the next trial, or FINISHED."""
        settings = self.ledger.next(trial_id)
        return cast(dict[str, Any], Searcher.FINISHED) if settings is None else settings

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Bring the ledger what the trial returned; nothing where its worker died."""
        self.ledger.close(trial_id, None if error else result)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, because a search goes on from its journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, because a search goes on from its journal."""
