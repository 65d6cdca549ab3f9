"""Starts and stops the service: `running` for a block, `serve` in the foreground."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app import processes
from app.bundle.runtime import Ranker
from app.console import progress, say
from app.engine import ray_session
from app.errors import MachineError, RecipeError
from app.recipe import Serve

API_KEY = "RAYREC_API_KEY"
APPLICATION = "rayrec"
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
    with ray_session(verbose=verbose):
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
        say(example(url, bool(os.environ.get(API_KEY))))
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


def base_url(settings: Serve) -> str:
    """The address to call the service at from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{settings.port}"


def example(url: str, key: bool) -> str:
    """A command line that asks for a recommendation."""
    header = f' -H "X-API-Key: ${API_KEY}"' if key else ""
    body = '{"user": "1", "k": 5}'
    return f"""try: curl {url}/v1/recommend -H "Content-Type: application/json"{header} -d '{body}'"""


def check_exposure(settings: Serve, key: str) -> None:
    """Refuse an address that other machines reach, unless there is an API key."""
    try:
        loopback = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not (loopback or key):
        raise RecipeError(
            f"{settings.host!r} is open to other machines and there is no API key",
            where="serve.host",
            remedy=f"set the environment variable {API_KEY}, or serve.host = '127.0.0.1'",
        )


def check_port(settings: Serve) -> None:
    """Refuse a port that is taken or not ours to take, and name who holds it."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise MachineError(
            f"cannot listen at {settings.host}:{settings.port} ({error.strerror}){_holder(settings.port)}",
            where="serve.port",
            remedy="end that process, or choose another port with --port or serve.port",
        ) from error


def _holder(port: int) -> str:
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f": held by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return ""


def _start(bundle: Path, settings: Serve, key: str, verbose: bool) -> None:
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions

    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    log = {"enable_access_log": False, "log_level": "INFO" if verbose else "ERROR"}
    ray_serve.start(
        proxy_location="HeadOnly",
        # Serve's own limit is the last resort: its answer is not a problem document.
        http_options=HTTPOptions(
            host=settings.host, port=settings.port, request_timeout_s=settings.request_timeout_s + 5
        ),
        logging_config=log,
    )
    try:
        ray_serve.run(_application(bundle, settings, key, log), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise MachineError(
            "the service did not start", where=str(bundle), remedy="run it with --verbose to see why"
        ) from error


def _application(bundle: Path, settings: Serve, key: str, log: dict[str, Any]) -> Any:
    """The deployment, bound to its bundle.

    The replica itself refuses what exceeds max_ongoing + max_queued requests, with a problem
    document. Serve therefore lets twice as many in, and refuses only what is beyond that.
    """
    from ray import serve as ray_serve
    from ray.serve.config import AutoscalingConfig, BackpressureConfig

    from app.serving.ingress import Ingress, key_digest

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
        logging_config=log,
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
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    deadline = time.monotonic() + STOPPED_S
    with suppress(ValueError):  # raised once the controller is gone
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False))
        while time.monotonic() < deadline:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            time.sleep(0.1)
    ray_serve.shutdown()  # type: ignore[no-untyped-call]  # forgets the connection
