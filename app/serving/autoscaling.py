"""How many replicas there should be: by the calls that they hold, or as many as a person says.

Calls that come by the wire bypass Serve's own count of requests, so each replica reports how
many it holds. Serve's controller asks `Scale` a few times a second.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from ray.serve.config import AutoscalingContext

from app.errors import RayRecError
from app.serving.rollout.state_dir import StateDir

HELD = "held"


class Load:
    """The mean number of calls held, by Little's law: seconds that calls took over seconds passed.

    A look at one moment would mostly find none: calls are scored on the event loop, so that when
    it comes to anything else they are answered.
    """

    def __init__(self) -> None:
        self.mean = 0.0  # when it was last taken
        self._seconds, self._began = 0.0, time.perf_counter()

    def add(self, seconds: float) -> None:
        """A call was answered after so long."""
        self._seconds += seconds

    def take(self) -> float:
        """The mean since this was last asked."""
        now = time.perf_counter()
        self.mean = self._seconds / max(now - self._began, 1e-3)
        self._seconds, self._began = 0.0, now
        return self.mean


class Scale:
    """Serve's autoscaling policy of the ingress.

    More replicas come once the load has asked for them through `up_s`, fewer after `down_s`. The
    first of a service that has none comes at once.

    Args:
        store: folder of the service with its board; empty: it has none.
        target: calls that a replica should hold.
        up_s, down_s: patience in seconds.
        least: replicas of an idle service.
    """

    def __init__(self, store: str, target: float, up_s: float, down_s: float, least: int = 1) -> None:
        self.board = StateDir(Path(store)) if store else None
        self.target, self.up_s, self.down_s, self.least = target, up_s, down_s, least
        self._mark, self._wanted = (0, 0), 0
        self._since: float | None = None  # when the load began to ask for another number
        self._ups = True

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted; Serve keeps it within the bounds of its configuration."""
        wanted = self.asked()
        if wanted:
            return wanted, {}
        held = sum((context.aggregated_metrics or {}).get(HELD, {}).values())
        if not self.least:  # Serve's proxy holds calls until the first replica is there
            held += context.total_queued_requests
        return self.by_load(held, context.target_num_replicas, time.monotonic()), {}

    def asked(self) -> int:
        """How many a person asked for, or a deployment needs; 0: nobody did."""
        if self.board is None:
            return 0
        try:
            mark = self.board.changed()
            if mark != self._mark:
                release = self.board.release()
                self._mark, self._wanted = mark, release.replicas if release else 0
                if release and release.phase != "steady" and not self.least:
                    self._wanted = max(1, self._wanted)  # somebody must load the new version
        except RayRecError:  # as long as the board cannot be read, it is as it was
            pass
        return self._wanted

    def by_load(self, held: float, current: int, now: float) -> int:
        """How many the load asks for.

        Args:
            held: calls of all replicas, averaged over the last seconds.
            current: replicas that there are to be so far.
            now: seconds on any clock.
        """
        wanted = max(self.least, math.ceil(held / self.target))
        if wanted == current or not current:
            self._since = None
            return wanted
        ups = wanted > current
        if self._since is None or ups != self._ups:
            self._since, self._ups = now, ups
        if now - self._since < (self.up_s if ups else self.down_s):
            return current
        self._since = None
        return wanted
