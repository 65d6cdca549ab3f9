"""Further models of one service: bundles by name, opened when they are first called."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from app.artifact import Artifact, open_artifact
from app.bundle.runtime import Ranker
from app.errors import RayRecError, RecipeError
from app.recipe import Serve
from app.serving.bundle_cache import open_copy
from app.serving.http.calls import Endpoint, ModelDescription, ModelReady, State
from app.serving.http.problems import Problem
from app.serving.metrics import Served
from app.serving.scoring.call import Call
from app.serving.scoring.example import example_of
from app.serving.scoring.factory import ScoringFactory
from app.serving.versions.shadow import Shadow
from app.serving.versions.traffic_split import TrafficSplit, Variant

RETRY_S = 30.0  # before a bundle that could not be opened is tried again
SHOWN = 8  # names in a problem document
_log = logging.getLogger("ray.serve")


class LoadedModel:
    """A model that is open.

    Args:
        name: of the model.
        ranker: its bundle.
        factory: makes what answers its calls.
    """

    def __init__(self, name: str, ranker: Ranker, factory: ScoringFactory) -> None:
        self.ranker, self.variant = ranker, Variant(ranker, ranker.artifact.digest)
        traffic_split = TrafficSplit(self.variant, Shadow(factory.settings.rollout.shadow_every))
        self.starts, _ = factory.calls_of(traffic_split, lambda endpoint: endpoint.path_of(name))


class Model:
    """A further model, whatever its state. `bytes` is what its bundle maps, once that is known.

    Args:
        name: of the model.
        bundle: folder or URI of its bundle.
    """

    def __init__(self, name: str, bundle: str) -> None:
        self.name, self.bundle, self.bytes = name, bundle, 0
        self.loaded: LoadedModel | None = None
        self.loading: asyncio.Task[None] | None = None
        self.waiting: list[tuple[Callable[[], None], Call]] = []  # what starts a call, and the call
        self.error, self.retry_at = "", 0.0

    @property
    def state(self) -> State:
        """Its state now; a model that is refused is tried again after a while."""
        if self.loaded is not None:
            return "loaded"
        if self.loading is not None:
            return "loading"
        return "refused" if time.monotonic() < self.retry_at else "not loaded"

    def refusal(self) -> Problem:
        """Why its calls are not answered now."""
        seconds = max(1, round(self.retry_at - time.monotonic()))
        return Problem(503, self.error, headers={"Retry-After": str(seconds)})


class ModelRegistry:
    """All further models of a replica; used on its event loop.

    Args:
        settings: the recipe's [serve] section, which names the models.
        opener: opens the bundle in a folder.
        factory: makes what answers their calls.
    """

    def __init__(self, settings: Serve, opener: Callable[[str], Ranker], factory: ScoringFactory) -> None:
        self.settings, self._open, self._factory = settings, opener, factory
        self.models = {name: Model(name, bundle) for name, bundle in settings.models.items()}
        self._used: OrderedDict[str, Model] = OrderedDict()  # those that are loaded, by their last call
        # Calls that wait leave most of what the replica may hold to the models that answer.
        self._max_waiting = max(1, (settings.max_ongoing_requests + settings.max_queued_requests) // 4)
        self._lock = asyncio.Lock()  # one is loaded at a time, so that the limit holds

    def start(self, name: str, endpoint: Endpoint[Any], call: Call, body: Any) -> None:
        """Answer a call of a model, after that was loaded.

        Raises:
            Problem: it cannot be loaded; after a while it is tried again.
        """
        model = self.models[name]
        if model.loaded is not None:
            self._used.move_to_end(name)
            model.loaded.starts[endpoint](call, body)
            return
        if model.state == "refused":
            raise model.refusal()
        if sum(len(other.waiting) for other in self.models.values()) >= self._max_waiting:
            raise _loading(model)
        model.waiting.append((partial(self.start, name, endpoint, call, body), call))
        loop = asyncio.get_running_loop()
        loop.call_later(self.settings.request_timeout_s, self._time_out, model, call)
        if model.loading is None:
            model.loading = loop.create_task(self._load(model))
            model.loading.add_done_callback(partial(self._end_load, model))

    def served(self) -> Iterator[Served]:
        """Those that are loaded, for the metrics."""
        for model in self._used.values():
            assert model.loaded is not None
            variant = model.loaded.variant
            yield Served(model.name, variant.label, 1.0, variant.stats)

    def description(self, name: str) -> ModelDescription:
        """Name, versions, figures and state of a model."""
        model = self.models[name]
        return describe(name, [model.loaded.variant] if model.loaded else [], model.state)

    def readiness(self, name: str) -> ModelReady:
        """Whether calls of a model are answered; the first of one that is not loaded loads it.

        Raises:
            Problem: it is refused.
        """
        model = self.models[name]
        if model.state == "refused":
            raise model.refusal()
        return ModelReady(name, True, model.state)

    async def _load(self, model: Model) -> None:
        async with self._lock:
            model.loaded = await self._loaded(model)
            self._used[model.name] = model

    def _end_load(self, model: Model, task: asyncio.Task[None]) -> None:
        """Answer the calls that wait for a model, whatever became of its loading."""
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:  # whatever is wrong with it, the others go on
            _log.error("model %s was refused", model.name, exc_info=error)
            what = error.what if isinstance(error, RayRecError) else type(error).__name__
            model.error = f"model {model.name} cannot be loaded: {what}; see the service's log"
            model.retry_at = time.monotonic() + RETRY_S
        waiting, model.waiting, model.loading = model.waiting, [], None
        for start, call in waiting:
            _start(start, call)

    async def _loaded(self, model: Model) -> LoadedModel:
        copy = await asyncio.to_thread(open_copy, model.bundle, self.settings)
        try:
            model.bytes = (await asyncio.to_thread(_opened, copy.path)).bytes
            self._make_room(model)
            ranker = await asyncio.to_thread(self._open, str(copy.path))
        except BaseException:
            copy.close()
            raise
        copy.keep_while(ranker)
        return LoadedModel(model.name, ranker, self._factory)

    def _make_room(self, model: Model) -> None:
        limit = int(self.settings.models_mb * 2**20)
        if model.bytes > limit:
            raise RecipeError(
                f"its bundle takes {model.bytes >> 20} MiB, serve.models_mb is {self.settings.models_mb:g}",
                where=model.name,
                remedy="raise serve.models_mb",
            )
        while self._used and sum(other.bytes for other in self._used.values()) + model.bytes > limit:
            _, least_used = self._used.popitem(last=False)
            least_used.loaded = None  # calls that it has begun are answered yet

    def _time_out(self, model: Model, call: Call) -> None:
        """Fail a call that has waited for too long, if it still waits; the loading goes on."""
        for index, (_, waiting) in enumerate(model.waiting):
            if waiting is call:
                del model.waiting[index]
                call.fail(_loading(model))
                return


def describe(name: str, variants: Sequence[Variant], state: State) -> ModelDescription:
    """The description of a model by the versions that users are assigned to, the main one first."""
    return ModelDescription(
        name,
        [variant.label for variant in variants],
        "rayrec",
        [],
        [],
        variants[0].ranker.figures if variants else {},
        state,
        example_of(variants[0].ranker) if variants else None,
    )


def check_names(settings: Serve, main: str) -> None:
    """Refuse a further model with the name of the main one.

    Raises:
        RecipeError: it has.
    """
    if main in settings.models:
        raise RecipeError(
            f"{main!r} is the name of the main bundle, too",
            where="serve.models",
            remedy="give this one another name",
        )


def _start(start: Callable[[], None], call: Call) -> None:
    """Start a call that waited; whatever goes wrong with it, those behind it go on."""
    try:
        start()
    except Exception as error:
        try:
            call.fail(error)
        except Exception as fault:
            _log.error("request %s could not be answered", call.request_id, exc_info=fault)


def _loading(model: Model) -> Problem:
    return Problem(503, f"model {model.name} is being loaded; try again", headers={"Retry-After": "1"})


def unknown(names: Collection[str]) -> Problem:
    """The problem of a name that no model has."""
    listed = ", ".join(list(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return Problem(404, f"no model of this name; there are: {listed}")


def _opened(folder: Path) -> Artifact:
    return open_artifact(folder, "bundle", verify=False)
