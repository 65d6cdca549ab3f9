"""Counts and times of one replica; prometheus_client writes them in Prometheus' text format.

Requests only add to plain numbers: what the format needs is made at a scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import accumulate
from typing import NamedTuple, Protocol

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.bundle.request.requests import Accepted
from app.serving.versions.stats import VersionStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TYPES = 10  # unknown types of events that have a series of their own
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
Samples = Iterable[tuple[tuple[str, ...], float]]  # values of the labels, and of the sample


class Histogram:
    """How many values fell below each bound.

    Args:
        bounds: upper bounds, inclusive, ascending; a last bucket without bound is added.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Count one value of those observed."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound as text, and how many values are at or below it."""
        return list(zip([*map(str, self.bounds), "+Inf"], accumulate(self.counts), strict=True))


class Served(NamedTuple):
    """A version, the share of the users that is assigned to it, and what it did."""

    model: str
    version: str
    share: float
    stats: VersionStats


class Cache(Protocol):
    """A cache that counts its look-ups and knows its size."""

    @property
    def hits(self) -> int:
        """Look-ups that were answered from the cache."""

    @property
    def misses(self) -> int:
        """Look-ups that were not answered from the cache."""

    @property
    def bytes(self) -> int:
        """The size of what is cached now, about."""


class Metrics:
    """What a replica has done since it started; used from its event loop alone.

    Args:
        replica: label of every sample, because one scrape shows all replicas.
    """

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.batches: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SIZES))
        self.stages: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.degraded: Counter[str] = Counter()
        self.bulk_lines: Counter[int] = Counter()  # by status
        self.unknown_events: Counter[str] = Counter()  # by type
        self.cold_starts = self.events = self.unknown_items = self.joined = 0
        self.parse_s = 0.0  # of requests that are in no batch yet
        self.caches: Mapping[str, Cache] = {}
        self.queues: dict[str, Sized] = {}  # by route: what waits for a batch

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer. `route` must be one of a fixed set: each makes a series."""
        self.requests[route, status] += 1
        self.seconds[route].observe(seconds)

    def stored(self, accepted: Accepted) -> None:
        """Count events that were stored. Of unknown types the first few make a series each."""
        self.events += accepted.accepted
        self.unknown_items += accepted.unknown_items or 0
        for kind, count in (accepted.unknown_events or {}).items():
            known = kind in self.unknown_events or len(self.unknown_events) < TYPES
            self.unknown_events[kind if known else "others"] += count

    def render(self, in_flight: int, served: Sequence[Served]) -> str:
        """All samples as text.

        Args:
            in_flight: requests that wait or are being scored now.
            served: the versions, of all models.
        """
        return generate_latest(_Families([*self._of_versions(served), *self._families(in_flight)])).decode()

    def _families(self, in_flight: int) -> Iterator[Metric]:
        of_route = [((route,), float(len(queue))) for route, queue in self.queues.items()]
        answers = [((route, str(status)), n) for (route, status), n in self.requests.items()]
        lines = [((str(status),), n) for status, n in self.bulk_lines.items()]
        left_out = [((text,), n) for text, n in self.degraded.items()]
        yield self._gauge("in_flight", "Requests held now.", [((), in_flight)])
        yield self._gauge("queued", "Requests that wait for a batch now.", of_route, "route")
        yield self._counter("requests", "Answers by route and status.", answers, "route", "status")
        text = "Answers for a user or items unknown to training."
        yield self._counter("cold_starts", text, [((), self.cold_starts)])
        yield self._counter("joined", "Calls answered with an equal one.", [((), self.joined)])
        yield from self._of_caches()
        text = "Answers with less than was asked for, by what was left out."
        yield self._counter("degraded", text, left_out, "left_out")
        yield self._counter("bulk_lines", "Answered lines of batches by status.", lines, "status")
        yield self._counter("events", "Events stored.", [((), self.events)])
        unknown = [((kind,), n) for kind, n in self.unknown_events.items()]
        text = "Events stored of types that the model does not know."
        yield self._counter("unknown_events", text, unknown, "event")
        text = "Events stored on items that the model does not know."
        yield self._counter("unknown_items", text, [((), self.unknown_items)])
        yield self._histograms("request_seconds", "Time to answer.", self.seconds)
        yield self._histograms("batch_size", "Requests scored together.", self.batches)
        yield self._histograms("stage_seconds", "Time of a batch in a stage.", self.stages, "stage")

    def _of_versions(self, served: Sequence[Served]) -> Iterator[Metric]:
        labels = [(version.model, version.version) for version in served]

        def samples(values: Iterable[float]) -> Samples:
            return zip(labels, values, strict=True)

        names = "model", "version"
        requests, errors = [v.stats.requests for v in served], [v.stats.errors for v in served]
        yield self._gauge("model_info", "The served versions.", samples([1.0] * len(served)), *names)
        yield self._gauge("version_share", "Share of the users.", samples(v.share for v in served), *names)
        yield self._counter("version_requests", "Rankings answered.", samples(requests), *names)
        yield self._counter("version_errors", "Rankings that failed.", samples(errors), *names)

    def _of_caches(self) -> Iterator[Metric]:
        hits, misses, sizes = (
            [((name,), float(getattr(cache, field))) for name, cache in self.caches.items()]
            for field in ("hits", "misses", "bytes")
        )
        yield self._counter("cache_hits", "Found.", hits, "cache")
        yield self._counter("cache_misses", "Not found.", misses, "cache")
        yield self._gauge("cache_bytes", "Kept now, about.", sizes, "cache")

    def _gauge(self, name: str, text: str, samples: Samples, *labels: str) -> Metric:
        family = GaugeMetricFamily(f"rayrec_{name}", text, labels=("replica", *labels))
        for values, value in samples:
            family.add_metric((self.replica, *values), value)
        return family

    def _counter(self, name: str, text: str, samples: Samples, *labels: str) -> Metric:
        family = CounterMetricFamily(f"rayrec_{name}", text, labels=("replica", *labels))
        for values, value in samples:
            family.add_metric((self.replica, *values), value)
        return family

    def _histograms(
        self, name: str, text: str, histograms: Mapping[str, Histogram], label: str = "route"
    ) -> Metric:
        family = HistogramMetricFamily(f"rayrec_{name}", text, labels=("replica", label))
        for value, histogram in histograms.items():
            family.add_metric((self.replica, value), histogram.buckets(), histogram.sum)
        return family


class _Families(Collector):
    """Hands families that are made to prometheus_client's writer."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def merge(texts: Iterable[str]) -> str:
    """The texts of several replicas as one, each family in one piece as the format wants it."""
    families: dict[str, dict[str, None]] = {}
    for text in texts:
        name = ""
        for line in filter(None, text.split("\n")):  # names may hold other ends of lines
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
            families.setdefault(name, {})[line] = None
    return "\n".join(line for family in families.values() for line in family) + "\n"
