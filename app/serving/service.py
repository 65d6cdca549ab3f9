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

from app import processes
from app.bundle.ids import Ids
from app.bundle.runtime import Ranker
from app.console import progress, say
from app.engine import ray_session
from app.errors import MachineError, RecipeError
from app.recipe import Serve, parse
from app.serving.address import API_KEY, base_url, check_exposure, check_port, example
from app.serving.guard import key_digest

APPLICATION = "rayrec"
LOG = {"enable_access_log": False, "log_level": "ERROR"}
READY_S = 30.0
STOPPED_S = 15.0


@contextmanager
def running(bundle: Path, settings: Serve, *, verbose: bool = False) -> Iterator[str]:
    """Serve a bundle for the block; yields the base URL. Afterwards no process of it is left.

    Args:
        bundle: folder of a bundle.
        settings: the recipe's [serve] section.
        verbose: show Ray's own log.

    Raises:
        ArtifactError: the bundle is damaged, before anything starts.
        MachineError: the port is in use.
        RecipeError: an address that others reach, without an API key.
    """
    bundle = bundle.absolute()
    key = os.environ.get(API_KEY, "")
    check_exposure(settings, key)
    processes.end_dead_runs()  # what a killed service left may hold the port
    check_port(settings)
    Ranker.open(bundle)  # refuses a damaged bundle now and not in a replica's log
    with ray_session(verbose=verbose or None):
        try:
            with progress("start the service"):
                _start(bundle, settings, key, verbose)
                url = base_url(settings)
                _wait_until_ready(url)
            yield url
        finally:
            _stop()


def serve(bundle: Path, settings: Serve, *, verbose: bool = False) -> None:
    """Serve a bundle in the foreground until SIGTERM (returns) or Ctrl-C (KeyboardInterrupt)."""
    with running(bundle, settings, verbose=verbose) as url:
        say(f"serving at {url} - a page to try it: {url}/ - end with Ctrl-C")
        say(f"try: {example(url, Ids.open(bundle / 'users')[1], bool(os.environ.get(API_KEY)))}")
        ended = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            ended.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


def store_folder(bundle: Path, settings: Serve) -> Path:
    """Where the feedback log of a bundle lies: serve.store, or a folder beside the bundle."""
    bundle = bundle.absolute()
    return Path(settings.store).absolute() if settings.store else bundle.with_name(f"{bundle.name}.store")


def build(args: Mapping[str, Any]) -> Any:
    """The application of a Serve configuration file (`import_path: app.serving.service:build`).

    The API key comes from the cluster's environment.

    Args:
        args: `bundle`, its folder, and any keys of the recipe's [serve] section; host and port
            say where the configuration's http_options listen.

    Raises:
        RecipeError: no bundle, an unknown key, or an open address without an API key.
    """
    content = dict(args)
    bundle = content.pop("bundle", "")
    if not bundle:
        raise RecipeError("no bundle", where="args.bundle", remedy="name the folder of a bundle")
    settings = parse({"serve": content}, "args").serve
    key = os.environ.get(API_KEY, "")
    check_exposure(settings, key)
    return _application(Path(bundle), settings, key, LOG)


def _start(bundle: Path, settings: Serve, key: str, verbose: bool) -> None:
    from ray import serve as ray_serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions

    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    log = {**LOG, "log_level": "INFO"} if verbose else LOG
    # Serve's own limit is the last resort: its answer is not a problem document.
    late = settings.request_timeout_s + 5
    http = HTTPOptions(host=settings.host, port=settings.port, request_timeout_s=late)
    try:
        ray_serve.start(proxy_location="HeadOnly", http_options=http, logging_config=dict(log))
        ray_serve.run(_application(bundle, settings, key, log), name=APPLICATION, route_prefix="/")
    except (RuntimeError, RayError) as error:
        raise MachineError(
            "the service did not start", where=str(bundle), remedy="run it with --verbose to see why"
        ) from error


def _application(bundle: Path, settings: Serve, key: str, log: Mapping[str, Any]) -> Any:
    """The deployment, bound to its bundle.

    The replica itself refuses what exceeds max_ongoing + max_queued requests, with a problem
    document. Serve therefore lets twice as many in, and refuses only what is beyond that.
    """
    from ray import serve as ray_serve
    from ray.serve.config import AutoscalingConfig, BackpressureConfig

    from app.serving.ingress import Ingress

    held = settings.max_ongoing_requests + settings.max_queued_requests
    deployment = ray_serve.deployment(
        name="ingress",
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=2 * held,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests,
        ),
        max_surge_percent=100,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        logging_config=dict(log),
    )(Ingress)
    store = store_folder(bundle, settings)
    return deployment.bind(str(bundle), str(store), settings, key_digest(key) if key else None)


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
