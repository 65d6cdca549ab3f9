"""Which form of a recommendation fits into the time that is left."""

from __future__ import annotations

FULL, FEWER, POPULAR = "", "fewer candidates", "popular"
STEPS = (FULL, FEWER, POPULAR)  # as answers call them, the best first
FORGET = 0.99  # of a step's time each time it is passed over, so that it is tried again


class LatencyBudget:
    """Learns what a request takes in each form; the last one is always in time."""

    def __init__(self) -> None:
        self._seconds = {FULL: 0.0, FEWER: 0.0}

    def step(self, left: float, requests: int) -> str:
        """The best form in which `requests` answered together take no longer than `left` seconds."""
        for step, seconds in self._seconds.items():
            if seconds * requests <= left:
                return step
            self._seconds[step] = seconds * FORGET
        return POPULAR

    def record(self, step: str, seconds: float) -> None:
        """Record the time of a request; a longer one counts at once, shorter ones by and by."""
        if step in self._seconds:
            expected = self._seconds[step]
            self._seconds[step] = max(seconds, expected + (seconds - expected) / 5)
