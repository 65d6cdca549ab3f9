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

# torch's threads wait for each other by spinning. Where other processes use the cores, a step then
# takes up to ten times as long; without any spinning, a step on idle cores takes a third longer. So
# they spin briefly (NeuMF on two cores, ms a step, idle and beside two busy processes: 300,000
# spins, the default, 10 and 56 to 500; 4,000 spins 11 and 38; 1,000 spins 19 and 25). It is set
# here, because torch reads it when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

# Nothing of what runs here is reported to anybody. ONNX Runtime would store a device id and events in
# the user's cache folder, and reads this when it is loaded; its disable_telemetry_events() comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_EXPORTS = {
    "load_recipe": ("app.recipe_toml", "load"),
    "Recipe": ("app.recipe", "Recipe"),
    "prepare": ("app.pipeline", "prepare"),
    "train": ("app.pipeline", "train"),
    "compress": ("app.pipeline", "compress"),
    "evaluate": ("app.pipeline", "evaluate"),
    "refit": ("app.pipeline", "refit"),
    "export": ("app.pipeline", "export"),
    "run": ("app.pipeline", "run"),
    "compare": ("app.comparison.runs", "compare"),
    "cross_validate": ("app.comparison.folds", "cross_validate"),
    "bench_models": ("app.comparison.models", "bench_models"),
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
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'app' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
