"""Starts and stops the service: `running` for a block, `serve` in the foreground."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.artifact import open_artifact
from app.bundle.format.ids import Ids
from app.bundle.runtime import Ranker
from app.errors import ArtifactError, MachineError, RecipeError
from app.ray import haproxy, processes
from app.ray.session import dead_part, ray_session
from app.recipe import Serve, parse
from app.serving.bundle_cache import absolute, held, is_remote, state_folder
from app.serving.http.guard import BODY_S, key_digest
from app.serving.listen import ADMIN_KEY, API_KEY, base_url, check_exposure, check_port, example
from app.serving.rollout.controller import begin, controlling
from app.serving.rollout.discovery import announced, check_free
from app.serving.rollout.state import Service, Version
from app.serving.rollout.state_dir import StateDir
from app.serving.scoring.registry import check_names
from app.stores.base import open_store
from app.terminal.console import progress, say

APPLICATION = "rayrec"
STORE = "RAYREC_STORE"  # variable with the location of the store, for services of a configuration file
LOG = {"enable_access_log": False, "log_level": "ERROR"}
READY_S = 30.0
STOPPED_S = 15.0
LOOK_BACK_S = 12.0  # the calls held are averaged over so long; Serve wants more than 10


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
    place, settings = absolute(str(bundle)), _with_absolute_models(settings)
    key = os.environ.get(API_KEY, "")
    check_exposure(settings, key)
    processes.end_dead_runs()  # what a killed service left may hold the port
    check_port(settings)
    board, url = StateDir(store_folder(place, settings)), base_url(settings)
    with held(place, settings) as folder:
        ranker = Ranker.open(folder)  # refuses a damaged bundle now and not in a replica's log
        check_names(settings, ranker.name)
        check_free(board)
        open_store(store_location(place, settings)).close()  # the same for the store
        begin(board, Version(ranker.version, str(folder), ranker.artifact.digest))
    with ray_session(verbose=verbose or None):
        try:
            with progress("start the service"):
                check_cores(settings)
                _start(place, settings, key, verbose)
                _wait_until_ready(url)
            with controlling(board, settings), announced(_service(place, settings)):
                yield url
        finally:
            _stop()


def serve(bundle: Path | str, settings: Serve, *, verbose: bool = False) -> None:
    """Serve a bundle in the foreground until SIGTERM (returns) or Ctrl-C (KeyboardInterrupt).

    Raises:
        RayRecError: Ray has died; nothing is left of the service, so that it can start again.
    """
    with running(bundle, settings, verbose=verbose) as url:
        say(f"serving at {url} - a page to try it: {url}/ - end with Ctrl-C")
        release = StateDir(store_folder(absolute(str(bundle)), settings)).release()
        assert release is not None  # of a service that runs
        user = Ids.open(Path(release.main.bundle) / "users")[1]
        say(f"try: {example(url, user, bool(os.environ.get(API_KEY)))}")
        ended = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            ended.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


def _with_absolute_models(settings: Serve) -> Serve:
    """The further models by places that replicas know; a wrong one is told of, and refused when called."""
    models = {name: absolute(place) for name, place in settings.models.items()}
    for name, place in models.items():
        try:
            if not is_remote(place):
                open_artifact(Path(place), "bundle", verify=False)
        except ArtifactError as error:
            say(f"model {name}: {error}; its calls are refused meanwhile")
    return settings.model_copy(update={"models": models})


def check_cores(settings: Serve) -> None:
    """Refuse what Ray would wait for without end: cores that its nodes do not have.

    Raises:
        MachineError: fewer replicas have room than there are to be.
    """
    import ray

    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room, wanted = sum(own // settings.cpus for own in cores), max(1, settings.min_replicas)
    if room < wanted:
        raise MachineError(
            f"{wanted} replicas of {settings.cpus} cores each; there is room for {room} on "
            f"{', '.join(map(str, cores))} cores",
            where="serve.cpus",
            remedy="ask for fewer with --replicas or --cpus, or add nodes",
        )
    if room < settings.max_replicas:
        say(f"there are cores for {room} of at most {settings.max_replicas} replicas")


def _service(bundle: str, settings: Serve) -> Service:
    store, pid = str(store_folder(bundle, settings)), os.getpid()
    return Service(base_url(settings), store, pid, processes.run_mark(pid), settings.max_replicas)


def store_folder(bundle: Path | str, settings: Serve) -> Path:
    """What a service keeps of its own on this machine: serve.store, or a folder beside the bundle.

    Of a bundle at a URI it is a folder in the user's ~/.local/state.
    """
    if settings.store and not _is_redis(settings):
        return Path(settings.store).absolute()
    place = str(bundle)
    if is_remote(place):
        return state_folder(place)
    path = Path(place).absolute()
    return path.with_name(f"{path.name}.store")


def store_location(bundle: Path | str, settings: Serve) -> str:
    """Where the feedback log of a bundle lies: a Redis, or the store's folder."""
    return settings.store if _is_redis(settings) else str(store_folder(bundle, settings))


def _is_redis(settings: Serve) -> bool:
    return settings.store.startswith(("redis://", "rediss://"))


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
    key = os.environ.get(API_KEY, "")
    check_exposure(settings, key)
    _check_shared_store(settings)
    return _application(bundle, settings, key, LOG)


def _check_shared_store(settings: Serve) -> None:
    """Refuse SQLite where replicas may run on several nodes: over a shared volume its file gets damaged."""
    import ray

    nodes = ray.nodes() if ray.is_initialized() else []  # type: ignore[no-untyped-call]
    computing = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    grows = bool(os.environ.get("RAY_CLUSTER_NAME")) and settings.max_replicas > 1  # KubeRay adds nodes
    if (len(computing) > 1 or grows) and not _is_redis(settings):
        raise RecipeError(
            f"{settings.store or 'a folder beside the bundle'} is a store for one machine, and replicas may "
            "run on several nodes",
            where="serve.store",
            remedy=f"name a Redis (rediss://...), in ${STORE} where its URL has a password",
        )


def _start(bundle: str, settings: Serve, key: str, verbose: bool) -> None:
    from ray import serve as ray_serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions

    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    log = {**LOG, "log_level": "INFO"} if verbose else LOG
    # Serve's own limit is the last resort: its answer is not a problem document.
    late = BODY_S + settings.request_timeout_s + 5  # a replica answers by then
    http = HTTPOptions(host=settings.host, port=settings.port, request_timeout_s=late)
    haproxy.limit(settings.max_ongoing_requests + settings.max_queued_requests)
    try:
        ray_serve.start(proxy_location="HeadOnly", http_options=http, logging_config=dict(log))
        board = str(store_folder(bundle, settings))
        ray_serve.run(_application(bundle, settings, key, log, board), name=APPLICATION, route_prefix="/")
    except (RuntimeError, RayError) as error:
        raise MachineError(
            "the service did not start", where=base_url(settings), remedy="run it with --verbose to see why"
        ) from error


def _application(
    bundle: str, settings: Serve, key: str, log: Mapping[str, Any], folder: str | None = None
) -> Any:
    """The deployment, bound to its bundle; `folder` is where its board lies, if it has one.

    The replica itself refuses what exceeds max_ongoing + max_queued requests, with a problem
    document. Serve therefore lets twice as many in, and refuses only what is beyond that.
    """
    from ray import serve as ray_serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig

    from app.serving.replica import Replica

    held = settings.max_ongoing_requests + settings.max_queued_requests
    deployment = ray_serve.deployment(
        name="ingress",
        ray_actor_options={"num_cpus": settings.cpus},
        max_ongoing_requests=2 * held,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            look_back_period_s=LOOK_BACK_S,
            # Scale has patience of its own, so that what a person asks for comes at once.
            upscale_delay_s=0,
            downscale_delay_s=0,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function="app.serving.autoscaling:Scale",
                policy_kwargs={
                    "store": folder or "",
                    "target": settings.target_ongoing_requests,
                    "up_s": settings.scale_up_s,
                    "down_s": settings.scale_down_s,
                    "least": settings.min_replicas,
                },
            ),
        ),
        user_config={},
        max_surge_percent=100,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        logging_config=dict(log),
    )(Replica)
    store = store_location(bundle, settings)
    admin = _digest(os.environ.get(ADMIN_KEY, ""))
    return deployment.bind(bundle, store, settings, _digest(key), folder, admin)


def _digest(key: str) -> bytes | None:
    return key_digest(key) if key else None


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise MachineError(
                    f"the service does not answer ({error})", where=url, remedy="see --verbose"
                ) from error
            time.sleep(0.1)


def _stop() -> None:
    """End Serve. Its own shutdown would leave Ray to print an error on stdout."""
    import ray
    from ray import serve as ray_serve

    if dead_part():
        return
    deadline = time.monotonic() + STOPPED_S
    controller = _controller()
    if controller is not None:
        ray.get(controller.graceful_shutdown.remote(wait=False))
    while _controller() is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    ray_serve.shutdown()  # type: ignore[no-untyped-call]  # forgets the connection


def _controller() -> Any:
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None  # there is none
