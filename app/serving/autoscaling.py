"""How many replicas there should be: by the calls that are under way, or as many as a person asks for.

Calls that come over the fast path bypass Serve's own count of requests, so each replica reports how
many it has under way. Serve's controller asks `Scale` a few times a second.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from ray.serve.config import AutoscalingContext

from app.errors import RayRecError
from app.serving.rollout.state_dir import StateDir

ONGOING = "ongoing"  # name of the figure that replicas report to Serve's controller


class Load:
    """The mean number of calls under way, by Little's law: seconds that calls took over seconds passed.

    A look at one moment would mostly find none: calls are scored on the event loop, so that when
    it comes to anything else they are answered.
    """

    def __init__(self) -> None:
        self.mean = 0.0  # when it was last taken
        self._seconds, self._began = 0.0, time.perf_counter()

    def add(self, seconds: float) -> None:
        """Count a call that was answered after so many seconds."""
        self._seconds += seconds

    def take(self) -> float:
        """The mean since the last call of this method."""
        now = time.perf_counter()
        self.mean = self._seconds / max(now - self._began, 1e-3)
        self._seconds, self._began = 0.0, now
        return self.mean


class Scale:
    """Serve's autoscaling policy of the deployment.

    More replicas come once the load has asked for them through `up_s`, fewer after `down_s`. The
    first of a service that has none comes at once.

    Args:
        store: folder of the service, with its state; empty: it has none.
        target: calls under way that a replica should have.
        up_s, down_s: patience in seconds.
        least: replicas of an idle service.
    """

    def __init__(self, store: str, target: float, up_s: float, down_s: float, least: int = 1) -> None:
        self.state_dir = StateDir(Path(store)) if store else None
        self.target, self.up_s, self.down_s, self.least = target, up_s, down_s, least
        self._fingerprint, self._wanted = (0, 0), 0
        self._since: float | None = None  # when the load began to ask for another number
        self._goes_up = True

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted; Serve keeps it within the bounds of its configuration."""
        wanted = self.by_command()
        if wanted:
            return wanted, {}
        ongoing = sum((context.aggregated_metrics or {}).get(ONGOING, {}).values())
        if not self.least:  # Serve's proxy queues calls until the first replica is there
            ongoing += context.total_queued_requests
        return self.by_load(ongoing, context.target_num_replicas, time.monotonic()), {}

    def by_command(self) -> int:
        """How many replicas a person asked for, or a deployment needs; 0: nobody asked."""
        if self.state_dir is None:
            return 0
        try:
            fingerprint = self.state_dir.fingerprint()
            if fingerprint != self._fingerprint:
                desired = self.state_dir.desired_state()
                self._fingerprint, self._wanted = fingerprint, desired.replicas if desired else 0
                if desired and desired.phase != "steady" and not self.least:
                    self._wanted = max(1, self._wanted)  # a replica must load the new version
        except RayRecError:  # as long as the state cannot be read, the number stays
            pass
        return self._wanted

    def by_load(self, ongoing: float, current: int, now: float) -> int:
        """How many replicas the load asks for.

        Args:
            ongoing: calls under way on all replicas, averaged over the last seconds.
            current: replicas that there are to be so far.
            now: seconds on any clock.
        """
        wanted = max(self.least, math.ceil(ongoing / self.target))
        if wanted == current or not current:
            self._since = None
            return wanted
        goes_up = wanted > current
        if self._since is None or goes_up != self._goes_up:
            self._since, self._goes_up = now, goes_up
        if now - self._since < (self.up_s if goes_up else self.down_s):
            return current
        self._since = None
        return wanted
