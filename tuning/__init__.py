"""Ray Tune and Optuna: the cheapest settings that keep the quality.

    import tuning
    front = tuning.search(recipe, Path("runs/tune"), trials=40, budget="p95_ms<=8, mb<=20")
    front.frame()          # a pandas table of all trials
    tuning.ship(front)     # train on train plus validation, export, measure as it is served

Names are imported on first use, so that `import tuning` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "search": ("tuning.tune", "search"),
    "opened": ("tuning.tune", "opened"),
    "explain": ("tuning.results.explain", "explain"),
    "ship": ("tuning.ship", "ship"),
    "Front": ("tuning.front", "Front"),
}
__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tuning' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(importlib.import_module(module), attribute)
