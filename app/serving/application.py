"""The Ray Serve application: its settings, and how it is started and stopped."""

from __future__ import annotations

import logging
import os
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.errors import MachineError, RecipeError
from app.ray import haproxy
from app.ray.session import dead_part
from app.recipe import Serve
from app.serving.http.guard import BODY_S, key_digest
from app.serving.listen import ADMIN_KEY, API_KEY, base_url
from app.terminal.console import say

APPLICATION = "rayrec"
STORE = "RAYREC_STORE"  # variable with the location of the store, for services of a configuration file
LOG = {"enable_access_log": False, "log_level": "ERROR"}
READY_S = 30.0
STOPPED_S = 15.0
LOOK_BACK_S = 12.0  # calls under way are averaged over so long; Serve wants more than 10


@dataclass(frozen=True)
class KeyDigests:
    """The digests of the keys that calls need; None: they need none."""

    calls: bytes | None
    admin: bytes | None

    @classmethod
    def of_environment(cls) -> KeyDigests:
        """Of RAYREC_API_KEY and RAYREC_ADMIN_KEY."""
        return cls(*(_digest(os.environ.get(name, "")) for name in (API_KEY, ADMIN_KEY)))


@contextmanager
def keys_of_environment() -> Iterator[KeyDigests]:
    """The same, for a block whose processes do not inherit the keys."""
    digests = KeyDigests.of_environment()
    keys = {name: os.environ.pop(name) for name in (API_KEY, ADMIN_KEY) if name in os.environ}
    try:
        yield digests
    finally:
        os.environ.update(keys)


def make_application(
    bundle: str,
    store: str,
    settings: Serve,
    log: Mapping[str, Any],
    keys: KeyDigests,
    folder: str | None = None,
) -> Any:
    """The deployment, bound to its bundle.

    The replica itself refuses what exceeds max_ongoing + max_queued requests, with a problem
    document. Serve therefore lets twice as many in, and refuses only what is beyond that.

    Args:
        bundle: absolute path or URI of the bundle.
        store: location of the feedback log.
        settings: the recipe's [serve] section.
        log: the logging configuration of replicas.
        keys: that calls need.
        folder: the service's store folder, with its state; None: nothing can be deployed to it.
    """
    from ray import serve as ray_serve
    from ray.serve.config import BackpressureConfig

    from app.serving.replica import Replica

    capacity = settings.max_ongoing_requests + settings.max_queued_requests
    deployment = ray_serve.deployment(
        name="ingress",
        ray_actor_options={"num_cpus": settings.cpus},
        max_ongoing_requests=2 * capacity,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config=_autoscaling(settings, folder or ""),
        user_config={},
        max_surge_percent=100,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        logging_config=dict(log),
    )(Replica)
    return deployment.bind(bundle, store, settings, keys.calls, folder, keys.admin)


def _autoscaling(settings: Serve, folder: str) -> Any:
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    return AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        look_back_period_s=LOOK_BACK_S,
        # Scale has patience of its own, so that what a person asks for comes at once.
        upscale_delay_s=0,
        downscale_delay_s=0,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function="app.serving.autoscaling:Scale",
            policy_kwargs={
                "store": folder,
                "target": settings.target_ongoing_requests,
                "up_s": settings.scale_up_s,
                "down_s": settings.scale_down_s,
                "least": settings.min_replicas,
            },
        ),
    )


def _digest(key: str) -> bytes | None:
    return key_digest(key) if key else None


def start_application(
    bundle: str, store: str, folder: str, settings: Serve, keys: KeyDigests, *, verbose: bool
) -> None:
    """Start Serve with the application, and wait until it answers; see make_application.

    Raises:
        MachineError: there are too few cores, or it did not start.
    """
    from ray import serve as ray_serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions

    check_cores(settings)
    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    log = {**LOG, "log_level": "INFO"} if verbose else LOG
    # Serve's own limit is the last resort: its answer is not a problem document.
    late = BODY_S + settings.request_timeout_s + 5  # a replica answers by then
    http = HTTPOptions(host=settings.host, port=settings.port, request_timeout_s=late)
    haproxy.limit(settings.max_ongoing_requests + settings.max_queued_requests)
    try:
        ray_serve.start(proxy_location="HeadOnly", http_options=http, logging_config=dict(log))
        application = make_application(bundle, store, settings, log, keys, folder)
        ray_serve.run(application, name=APPLICATION, route_prefix="/")
    except (RuntimeError, RayError) as error:
        raise MachineError(
            "the service did not start", where=base_url(settings), remedy="run it with --verbose to see why"
        ) from error
    _wait_until_ready(base_url(settings))


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise MachineError(
                    f"the service does not answer ({error})",
                    where=url,
                    remedy="run it with --verbose to see why",
                ) from error
            time.sleep(0.1)


def stop_application() -> None:
    """End Serve. Its own shutdown would leave Ray to print an error on stdout."""
    import ray
    from ray import serve as ray_serve

    if dead_part():
        return
    deadline = time.monotonic() + STOPPED_S
    controller = _serve_controller()
    if controller is not None:
        ray.get(controller.graceful_shutdown.remote(wait=False))
    while _serve_controller() is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    ray_serve.shutdown()  # type: ignore[no-untyped-call]  # forgets the connection


def _serve_controller() -> Any:
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None  # there is none


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


def is_redis(store: str) -> bool:
    """Whether a store's location is the URL of a Redis."""
    return store.startswith(("redis://", "rediss://"))


def check_shared_store(settings: Serve) -> None:
    """Refuse SQLite where replicas may run on several nodes: over a shared volume its file gets damaged.

    Raises:
        RecipeError: the store is for one machine and there may be several nodes.
    """
    import ray

    nodes = ray.nodes() if ray.is_initialized() else []  # type: ignore[no-untyped-call]
    computing = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    grows = bool(os.environ.get("RAY_CLUSTER_NAME")) and settings.max_replicas > 1  # KubeRay adds nodes
    if (len(computing) > 1 or grows) and not is_redis(settings.store):
        raise RecipeError(
            f"{settings.store or 'a folder beside the bundle'} is a store for one machine, and replicas may "
            "run on several nodes",
            where="serve.store",
            remedy=f"name a Redis (rediss://...), in ${STORE} where its URL has a password",
        )
