"""Starts and stops a service: `running` for a block, `serve` in the foreground, `build` for a cluster."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.artifact import open_artifact
from app.bundle.format.ids import Ids
from app.bundle.runtime import Ranker
from app.errors import ArtifactError, RecipeError
from app.ray import processes
from app.ray.session import ray_session
from app.recipe import Serve, parse
from app.serving.application import (
    LOG,
    STORE,
    KeyDigests,
    check_shared_store,
    is_redis,
    keys_of_environment,
    make_application,
    start_application,
    stop_application,
)
from app.serving.bundle_cache import absolute, is_remote, local_copy, state_folder
from app.serving.listen import API_KEY, base_url, check_exposure, check_port, example
from app.serving.rollout.controller import controlling
from app.serving.rollout.discovery import announced, holding_store
from app.serving.rollout.start import publish_first
from app.serving.rollout.state import Service, Version
from app.serving.rollout.state_dir import StateDir
from app.serving.scoring.registry import check_names
from app.stores.open import open_store
from app.terminal.console import progress, say


@contextmanager
def running(bundle: Path | str, settings: Serve, *, verbose: bool = False) -> Iterator[str]:
    """Serve a bundle for the block; yields the base URL. Afterwards no process of it is left.

    Args:
        bundle: folder of a bundle, or its URI.
        settings: the recipe's [serve] section.
        verbose: show Ray's own log.

    Raises:
        ArtifactError: the bundle is damaged, before anything starts.
        MachineError: the port is in use, the store cannot be used, or there are too few cores.
        RecipeError: an address that others reach, without an API key.
    """
    location, settings = absolute(str(bundle)), _with_absolute_models(settings)
    check_exposure(settings, os.environ.get(API_KEY, ""))
    processes.end_dead_runs()  # what a killed service left may listen at the port
    check_port(settings)
    folder = store_folder(location, settings)
    with holding_store(StateDir(folder)), keys_of_environment() as keys:
        _prepare_state(location, settings, StateDir(folder))
        with ray_session(verbose=verbose or None):
            try:
                with progress("start the service"):
                    store = store_location(location, settings)
                    start_application(location, store, str(folder), settings, keys, verbose=verbose)
                with controlling(StateDir(folder), settings), announced(_service(folder, settings)):
                    yield base_url(settings)
            finally:
                stop_application()


def _prepare_state(location: str, settings: Serve, state_dir: StateDir) -> None:
    """Refuse a bundle or a store that cannot be used, now and not in a replica's log; then publish it."""
    with local_copy(location, settings) as folder:
        ranker = Ranker.open(folder)
        check_names(settings, ranker.name)
        ranker.item_columns.check_default(settings.columns)
        open_store(store_location(location, settings)).close()
        publish_first(state_dir, Version(ranker.version, str(folder), ranker.artifact.digest))


def serve(bundle: Path | str, settings: Serve, *, verbose: bool = False) -> None:
    """Serve a bundle in the foreground until SIGTERM or SIGHUP (returns) or Ctrl-C (KeyboardInterrupt).

    A signal that is ignored, as SIGHUP is under `nohup`, stays so.

    Raises:
        RayRecError: Ray has died; nothing is left of the service, so that it can start again.
    """
    asks_for_key = bool(os.environ.get(API_KEY))
    with running(bundle, settings, verbose=verbose) as url:
        say(f"serving at {url} - a page to try it: {url}/ - end with Ctrl-C")
        desired = StateDir(store_folder(absolute(str(bundle)), settings)).desired_state()
        assert desired is not None  # of a service that runs
        user = Ids.open(Path(desired.main.bundle) / "users")[1]
        say(f"try: {example(url, user, asks_for_key)}")
        ended = threading.Event()
        heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, lambda *_: ended.set()) for number in heard}
        try:
            ended.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def build(args: Mapping[str, Any]) -> Any:
    """The application of a Serve configuration file (`import_path: app.serving.service:build`).

    The API key comes from the cluster's environment, and so may the store (RAYREC_STORE), because the
    URL of a Redis may hold a password.

    Args:
        args: `bundle`, its folder or URI, and any keys of the recipe's [serve] section; host and port
            say where the configuration's http_options listen.

    Raises:
        RecipeError: no bundle, an unknown key, an open address without an API key, or a store of
            one machine where replicas may run on several.
    """
    content = {"store": os.environ.get(STORE, ""), **args}
    bundle = content.pop("bundle", "")
    if not bundle:
        raise RecipeError("no bundle", where="args.bundle", remedy="name the folder of a bundle")
    settings = parse({"serve": content}, "args").serve
    check_exposure(settings, os.environ.get(API_KEY, ""))
    check_shared_store(settings)
    keys = KeyDigests.of_environment()
    return make_application(bundle, store_location(bundle, settings), settings, LOG, keys)


def _with_absolute_models(settings: Serve) -> Serve:
    """The settings with further models at absolute locations; warns of those that cannot be used."""
    models = {name: absolute(location) for name, location in settings.models.items()}
    for name, location in models.items():
        try:
            if not is_remote(location):
                open_artifact(Path(location), "bundle", verify=False)
        except ArtifactError as error:
            say(f"model {name}: {error}; its calls are refused meanwhile")
    return settings.model_copy(update={"models": models})


def _service(folder: Path, settings: Serve) -> Service:
    mark = processes.run_mark()
    return Service(base_url(settings), str(folder), os.getpid(), mark, settings.max_replicas)


def store_folder(bundle: Path | str, settings: Serve) -> Path:
    """Where a service keeps its own files on this machine: serve.store, or a folder beside the bundle.

    Of a bundle at a URI it is a folder in the user's ~/.local/state.
    """
    if settings.store and not is_redis(settings.store):
        return Path(settings.store).absolute()
    location = str(bundle)
    if is_remote(location):
        return state_folder(location)
    path = Path(location).absolute()
    return path.with_name(f"{path.name}.store")


def store_location(bundle: Path | str, settings: Serve) -> str:
    """Where the feedback log of a bundle lies: a Redis, or the store's folder."""
    return settings.store if is_redis(settings.store) else str(store_folder(bundle, settings))
