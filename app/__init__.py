"""RayRec: from an event log to a ranking service.

    import app
    recipe = app.load_recipe("recipe.toml")
    done = app.run(recipe, Path("runs/shop"))
    ranker = app.Ranker.open(done.artifacts["export"].path)

Names are imported on first use, so that `import app` is quick.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# torch's threads wait for each other by spinning. Where something else runs on the cores, a step
# then takes up to ten times as long; where they do not spin at all, idle cores lose a third. So
# they spin briefly (NeuMF on two cores, ms a step, idle and beside two busy processes: 300,000
# turns, the default, 10 and 56 to 500; 4,000 turns 11 and 38; 1,000 turns 19 and 25). Set here,
# because it is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

_PLACES = {
    "load_recipe": ("app.recipe", "load"),
    "Recipe": ("app.recipe", "Recipe"),
    "prepare": ("app.pipeline", "prepare"),
    "train": ("app.pipeline", "train"),
    "compress": ("app.pipeline", "compress"),
    "evaluate": ("app.pipeline", "evaluate"),
    "export": ("app.pipeline", "export"),
    "run": ("app.pipeline", "run"),
    "Dataset": ("app.data.dataset", "Dataset"),
    "Ranker": ("app.bundle.runtime", "Ranker"),
    "RankRequest": ("app.bundle.request.requests", "RankRequest"),
    "RecommendRequest": ("app.bundle.request.requests", "RecommendRequest"),
    "Client": ("app.client", "Client"),
    "AsyncClient": ("app.client", "AsyncClient"),
    "Event": ("app.events", "Event"),
    "RayRecError": ("app.errors", "RayRecError"),
}
__version__ = "0.1.0"
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'app' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
