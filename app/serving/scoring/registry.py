"""Several models in one service: further bundles by name, opened when they are first called."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

from app.artifact import Artifact, open_artifact
from app.bundle.request.requests import RankRequest, RecommendRequest, SimilarRequest
from app.bundle.runtime import Ranker
from app.errors import RayRecError, RecipeError
from app.recipe import Serve
from app.serving.bundle_cache import copy_of
from app.serving.feedback.user_events import UserEventCache
from app.serving.http.problems import Problem
from app.serving.metrics import Metrics, Served
from app.serving.scoring.response_cache import ResponseCache
from app.serving.scoring.scoring import Call, Scoring
from app.serving.versions.shadow import Shadow
from app.serving.versions.traffic_split import TrafficSplit, Variant

PREFIX = "/v1/models/"
KINDS: dict[str, type] = {"rank": RankRequest, "recommend": RecommendRequest, "similar": SimilarRequest}
REST_S = 30.0  # before a bundle that could not be opened is tried again
SHOWN = 8  # names in a problem document
Content = RankRequest | RecommendRequest | SimilarRequest
State = Literal["not loaded", "loading", "loaded", "refused"]
_log = logging.getLogger("ray.serve")


class ScoringFactory:
    """Where a model's calls are scored: with the replica's own memory of users, for each model apart.

    Args:
        recent: the users' stored events.
        metrics: of the replica.
        settings: the recipe's [serve] section.
        executor: for what takes long.
    """

    def __init__(self, recent: UserEventCache, metrics: Metrics, settings: Serve, executor: Executor) -> None:
        self.recent, self.metrics, self.settings, self.executor = recent, metrics, settings, executor

    def scoring(self, variants: TrafficSplit, path: str, *, long: bool) -> Scoring:
        """Of the calls of a path.

        Scoring candidates takes less time than a change of threads, and hardly more than to find
        an answer that is kept. Scoring all items is `long`: it leaves the loop, and is worth keeping.
        """
        share = self.settings.cache_mb * 2**20 / (1 + len(self.settings.models))
        known = ResponseCache(int(share), self.settings.cache_s) if long else None
        executor, limit = self.executor if long else None, self.settings.max_batch_candidates
        return Scoring(variants, self.recent, self.metrics, path, limit, executor, known)


class LoadedModel:
    """A model that is open.

    Args:
        name: of the model.
        ranker: its bundle.
        shelf: where its calls are scored.
    """

    def __init__(self, name: str, ranker: Ranker, shelf: ScoringFactory) -> None:
        self.ranker, self.variant = ranker, Variant(ranker, ranker.artifact.digest)
        variants = TrafficSplit(self.variant, Shadow(shelf.settings.rollout.shadow_every))
        self._scoring = {
            kind: shelf.scoring(variants, path_of(name, kind), long=kind == "recommend")
            for kind in ("rank", "recommend")
        }

    def take(self, call: Call, content: Content) -> None:
        """Have a call answered."""
        if isinstance(content, SimilarRequest):
            call.variant = self.variant
            call.answer(self.ranker.similar([content])[0])
        else:
            self._scoring["rank" if isinstance(content, RankRequest) else "recommend"].add(call, content)


class Model:
    """A further model, whatever its state. `bytes` is what its bundle maps, once that is known."""

    def __init__(self, name: str, place: str) -> None:
        self.name, self.place, self.bytes = name, place, 0
        self.loaded: LoadedModel | None = None
        self.loading: asyncio.Task[None] | None = None
        self.waiting: list[tuple[Call, Content]] = []
        self.error, self.rests_until = "", 0.0

    @property
    def state(self) -> State:
        """Of now; one that is refused is tried again by and by."""
        if self.loaded is not None:
            return "loaded"
        if self.loading is not None:
            return "loading"
        return "refused" if time.monotonic() < self.rests_until else "not loaded"

    def refusal(self) -> Problem:
        """Why its calls are not answered now."""
        seconds = max(1, round(self.rests_until - time.monotonic()))
        return Problem(503, self.error, headers={"Retry-After": str(seconds)})


class ModelRegistry:
    """All further models of a replica; used on its event loop.

    Args:
        settings: the recipe's [serve] section, whose models they are.
        opener: opens the bundle in a folder.
        shelf: where their calls are scored.
    """

    def __init__(self, settings: Serve, opener: Callable[[str], Ranker], shelf: ScoringFactory) -> None:
        self.settings, self._open, self._shelf = settings, opener, shelf
        self.named = {name: Model(name, place) for name, place in settings.models.items()}
        self._paths = {path_of(name, kind): model for name, model in self.named.items() for kind in KINDS}
        self._used: OrderedDict[str, Model] = OrderedDict()  # those that are loaded, by their last call
        # Calls that wait leave most of what the replica may hold to the models that answer.
        self._room = max(1, (settings.max_ongoing_requests + settings.max_queued_requests) // 4)
        self._turn = asyncio.Lock()  # one is loaded at a time, so that the limit holds

    def take(self, call: Call, content: Content) -> None:
        """Answer a call, after its model was loaded.

        Raises:
            Problem: it cannot be loaded; before long it is tried again.
        """
        model = self._paths[call.path]
        if model.loaded is not None:
            self._used.move_to_end(model.name)
            model.loaded.take(call, content)
            return
        if model.state == "refused":
            raise model.refusal()
        if sum(len(one.waiting) for one in self.named.values()) >= self._room:
            raise _loading(model)
        model.waiting.append((call, content))
        loop = asyncio.get_running_loop()
        loop.call_later(self.settings.request_timeout_s, self._late, model, call)
        if model.loading is None:
            model.loading = loop.create_task(self._load(model))

    def served(self) -> Iterator[Served]:
        """Those that are loaded, for the metrics."""
        for model in self._used.values():
            assert model.loaded is not None
            one = model.loaded.variant
            yield Served(model.name, one.label, 1.0, one.stats)

    def described(self, name: str) -> dict[str, Any]:
        """A model as its page tells of it.

        Raises:
            Problem: there is none of this name.
        """
        model = self.named.get(name)
        if model is None:
            raise unknown(self.named)
        return described(name, [model.loaded.variant] if model.loaded else [], model.state)

    def readiness(self, name: str) -> dict[str, Any]:
        """Whether calls of a model are answered; the first of one that is not loaded loads it.

        Raises:
            Problem: it is refused, or there is none of this name.
        """
        model = self.named.get(name)
        if model is None:
            raise unknown(self.named)
        if model.state == "refused":
            raise model.refusal()
        return {"name": name, "ready": True, "state": model.state}

    async def _load(self, model: Model) -> None:
        try:
            async with self._turn:
                model.loaded = await self._loaded(model)
        except Exception as error:  # whatever is wrong with it, the others go on
            _log.error("model %s was refused", model.name, exc_info=error)
            what = error.what if isinstance(error, RayRecError) else type(error).__name__
            model.error = f"model {model.name} cannot be loaded: {what}; the service's log tells more"
            model.rests_until = time.monotonic() + REST_S
        else:
            self._used[model.name] = model
        waiting, model.waiting, model.loading = model.waiting, [], None
        for call, content in waiting:
            try:
                self.take(call, content)
            except Exception as error:
                call.fail(error)

    async def _loaded(self, model: Model) -> LoadedModel:
        copy = await asyncio.to_thread(copy_of, model.place, self.settings)
        try:
            model.bytes = (await asyncio.to_thread(_described, copy.path)).bytes
            self._make_room(model)
            ranker = await asyncio.to_thread(self._open, str(copy.path))
        except BaseException:
            copy.close()
            raise
        copy.stay_for(ranker)
        return LoadedModel(model.name, ranker, self._shelf)

    def _make_room(self, model: Model) -> None:
        limit = int(self.settings.models_mb * 2**20)
        if model.bytes > limit:
            raise RecipeError(
                f"its bundle takes {model.bytes >> 20} MiB, serve.models_mb is {self.settings.models_mb:g}",
                where=model.name,
                remedy="raise serve.models_mb",
            )
        while self._used and sum(one.bytes for one in self._used.values()) + model.bytes > limit:
            _, least = self._used.popitem(last=False)
            least.loaded = None  # calls that it has are answered yet

    def _late(self, model: Model, call: Call) -> None:
        """A call has waited for long enough, if it still does; the loading goes on."""
        for place, (waiting, _) in enumerate(model.waiting):
            if waiting is call:
                del model.waiting[place]
                call.fail(_loading(model))
                return


def described(name: str, variants: Sequence[Variant], state: State) -> dict[str, Any]:
    """A model as its page tells of it, by the versions that users meet, the main one first."""
    return {
        "name": name,
        "versions": [variant.label for variant in variants],
        "platform": "rayrec",
        "inputs": [],
        "outputs": [],
        "figures": variants[0].ranker.figures if variants else {},
        "state": state,
    }


def path_of(name: str, kind: str) -> str:
    """Of the calls of a model: rank, recommend or similar."""
    return f"{PREFIX}{name}/{kind}"


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


def _loading(model: Model) -> Problem:
    return Problem(503, f"model {model.name} is being loaded; try again", headers={"Retry-After": "1"})


def unknown(names: Collection[str]) -> Problem:
    """The problem of a name that no model has."""
    listed = ", ".join(list(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return Problem(404, f"no model of this name; there are: {listed}")


def _described(folder: Path) -> Artifact:
    return open_artifact(folder, "bundle", verify=False)
