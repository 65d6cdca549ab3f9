"""Counts and times of one replica in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import NamedTuple, Protocol

from app.serving.versions.stats import VersionStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Histogram:
    """How many values fell below each bound.

    Args:
        bounds: upper bounds, inclusive, ascending; a last bucket without bound is added.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: Mapping[str, str]) -> Iterator[str]:
        """The histogram's samples: cumulative buckets, sum and count."""
        total = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            yield _sample(f"{name}_bucket", {**labels, "le": bound}, total)
        yield _sample(f"{name}_sum", labels, self.sum)
        yield _sample(f"{name}_count", labels, total)


class Served(NamedTuple):
    """A version, the share of the users who meet it, and what it did."""

    model: str
    version: str
    share: float
    stats: VersionStats


class Cache(Protocol):
    """Something that keeps what it found."""

    hits: int
    misses: int

    @property
    def bytes(self) -> int:
        """That it takes, about."""
        ...


class Metrics:
    """What a replica has done since it started; used from its event loop alone.

    Args:
        replica: label of every sample, because one scrape shows all replicas.
    """

    def __init__(self, replica: str) -> None:
        self.labels = {"replica": replica}
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.batches: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SIZES))
        self.stages: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.degraded: Counter[str] = Counter()
        self.bulk_lines: Counter[int] = Counter()  # by status
        self.cold_starts = self.events = self.joined = 0
        self.parse_s = 0.0  # of requests that no batch has met yet
        self.caches: Mapping[str, Cache] = {}
        self.queues: dict[str, Sized] = {}  # by route: what waits for a batch

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer. `route` must be one of a fixed set: each makes a series."""
        self.requests[route, status] += 1
        self.seconds[route].observe(seconds)

    def render(self, in_flight: int, served: Sequence[Served]) -> str:
        """All samples. `in_flight`: requests that wait or are being scored now."""
        lines = [
            *self._versions(served),
            *_family("rayrec_in_flight", "gauge", "Requests held now.", [(self.labels, in_flight)]),
            *_family(
                "rayrec_queued",
                "gauge",
                "Requests that wait for a batch now.",
                [({**self.labels, "route": route}, len(queue)) for route, queue in self.queues.items()],
            ),
            *_family(
                "rayrec_requests_total",
                "counter",
                "Answers by route and status.",
                [({**self.labels, "route": r, "status": str(s)}, n) for (r, s), n in self.requests.items()],
            ),
            *_family(
                "rayrec_cold_starts_total",
                "counter",
                "Answers for a user or items unknown to training.",
                [(self.labels, self.cold_starts)],
            ),
            *_family(
                "rayrec_joined_total",
                "counter",
                "Calls answered with an equal one.",
                [(self.labels, self.joined)],
            ),
            *self._caches(),
            *_family(
                "rayrec_degraded_total",
                "counter",
                "Answers with less than was asked for, by what was left out.",
                [({**self.labels, "left_out": text}, n) for text, n in self.degraded.items()],
            ),
            *_family(
                "rayrec_bulk_lines_total",
                "counter",
                "Answered lines of batches by status.",
                [({**self.labels, "status": str(status)}, n) for status, n in self.bulk_lines.items()],
            ),
            *_family("rayrec_events_total", "counter", "Events stored.", [(self.labels, self.events)]),
            *self._histograms("rayrec_request_seconds", "Time to answer.", self.seconds),
            *self._histograms("rayrec_batch_size", "Requests scored together.", self.batches),
            *self._histograms("rayrec_stage_seconds", "Time of a batch in a stage.", self.stages, "stage"),
        ]
        return "\n".join(lines) + "\n"

    def _versions(self, served: Sequence[Served]) -> Iterator[str]:
        names = [{**self.labels, "model": one.model, "version": one.version} for one in served]
        for name, kind, text, values in (
            ("rayrec_model_info", "gauge", "The served versions.", [1] * len(served)),
            ("rayrec_version_share", "gauge", "Share of the users.", [one.share for one in served]),
            (
                "rayrec_version_requests_total",
                "counter",
                "Rankings answered.",
                [one.stats.requests for one in served],
            ),
            (
                "rayrec_version_errors_total",
                "counter",
                "Rankings that failed.",
                [one.stats.errors for one in served],
            ),
        ):
            yield from _family(name, kind, text, list(zip(names, values, strict=True)))

    def _caches(self) -> Iterator[str]:
        found = {name: {**self.labels, "cache": name} for name in self.caches}
        for kind, each in (("hits", "Found."), ("misses", "Not found.")):
            counts = [(labels, float(getattr(self.caches[name], kind))) for name, labels in found.items()]
            yield from _family(f"rayrec_cache_{kind}_total", "counter", each, counts)
        sizes = [(labels, float(self.caches[name].bytes)) for name, labels in found.items()]
        yield from _family("rayrec_cache_bytes", "gauge", "Kept now, about.", sizes)

    def _histograms(
        self, name: str, text: str, found: Mapping[str, Histogram], label: str = "route"
    ) -> Iterator[str]:
        yield from _head(name, "histogram", text)
        for value, histogram in found.items():
            yield from histogram.lines(name, {**self.labels, label: value})


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _family(name: str, kind: str, text: str, samples: list[tuple[dict[str, str], float]]) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield from (_sample(name, labels, value) for labels, value in samples)


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def together(texts: Iterable[str]) -> str:
    """Several texts as one, each family in one piece as the format wants it."""
    families: dict[str, dict[str, None]] = {}
    for text in texts:
        name = ""
        for line in filter(None, text.split("\n")):  # names may hold other ends of lines
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
            families.setdefault(name, {})[line] = None
    return "\n".join(line for family in families.values() for line in family) + "\n"
