"""Change under way, under load: deploy, rollback and scaling; damaged bundles; slow and wrong canaries."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import ArtifactError
from app.recipe import Serve
from app.serving.rollout import admin, discovery
from app.serving.rollout.state import Command
from app.serving.rollout.status import status
from app.serving.service import running, store_folder
from app.terminal.console import say
from tests import versions
from tests.bench.serving_systems import free_port
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset
from tests.traffic import Traffic

Bars = list[dict[str, Any]]
USERS, ITEMS, EVENTS = 500, 200, 8000
CANDIDATES = 100
LIMIT_S = 60.0


def bar(
    name: str, value: float, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """A figure and what it needs to be; exactly one of the limits is given."""
    need = at_most if at_least is None else at_least
    assert need is not None and None in (at_least, at_most)
    holds = value <= need if at_least is None else value >= need
    return {"name": name, "value": value, "need": need, "at_most": at_least is None, "holds": holds}


@dataclass
class Site:
    """A service, and load on it through all that happens."""

    folder: Path
    service: discovery.Service
    traffic: Traffic

    def deploy(self, name: str, **options: Any) -> str:
        """What became of it: "done", or the reason why not."""
        try:
            admin.deploy(self.service, Command("deploy", str(self.folder / name), **options))
        except ArtifactError as error:
            return error.what
        return "done"


@contextmanager
def serving(connections: int = 8) -> Iterator[Site]:
    """A service on a free port over a small bundle, with what may be deployed beside it."""
    folder = Path(tempfile.mkdtemp(prefix="rayrec-faults-"))
    dataset = tiny_dataset(folder / "dataset", users=USERS, items=ITEMS, events=EVENTS)
    model = random_model("mlp", dataset)
    bundle_of(model, dataset, folder / "first")
    versions.good(model, dataset, folder / "good")
    versions.wrong(dataset, folder / "wrong")
    versions.slow(dataset, folder / "slow")
    port = free_port()
    users = [f"u{row}" for row in range(1, USERS + 1)]
    items = [f"i{row}" for row in range(1, CANDIDATES + 1)]
    try:
        with (
            running(folder / "first", Serve(port=port)) as url,
            Traffic(url, users, items, connections) as load,
        ):
            yield Site(folder, discovery.find(str(store_folder(folder / "first", Serve()))), load)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def change(site: Site, requests: int) -> tuple[Bars, dict[str, Any]]:
    """Deploy, roll back and scale 1, 2, 1, under at least so many requests."""
    first, steps = site.traffic.total, {}
    failed = site.traffic.failed
    for name, step in (
        ("deploy", lambda: site.deploy("good")),
        ("rollback", lambda: admin.roll_back(site.service)),
        ("scale to 2", lambda: admin.scale(site.service, 2)),
        ("scale to 1", lambda: admin.scale(site.service, 1)),
    ):
        steps[name] = _seconds(step)
        say(f"{name}: {steps[name]:.1f} s, {site.traffic.failed} of {site.traffic.total} requests failed")
    site.traffic.until(first + requests)
    sent, lost = site.traffic.total - first, site.traffic.failed - failed
    bars = [bar("change_failed", lost, at_most=0), bar("change_requests", sent, at_least=requests)]
    return bars, {
        "requests": sent,
        "seconds": steps,
        "slowest_ms": round(1e3 * site.traffic.slowest_s, 1),
        "failures": site.traffic.failures,
    }


def damage(site: Site, mutations: int) -> tuple[Bars, dict[str, Any]]:
    """Deploy damaged copies, each damaged in another way."""
    draw, refused, failed = random.Random(0), 0, site.traffic.failed
    sent, start = site.traffic.total, time.monotonic()
    for count in range(mutations):
        kind = versions.KINDS[count % len(versions.KINDS)]
        copy = versions.damage(site.folder / "good", site.folder / "damaged", draw, kind)
        refused += site.deploy("damaged").startswith("refused")
        shutil.rmtree(copy)
        if count % 100 == 99:
            say(f"{refused} of {count + 1} damaged bundles refused")
    served = [v["version"] for v in status(site.service)["versions"] if v["share"]]
    lost = site.traffic.failed - failed
    return [
        bar("damaged_refused", refused, at_least=mutations),
        bar("damaged_failed", lost, at_most=0),
    ], {
        "mutations": mutations,
        "requests": site.traffic.total - sent,
        "seconds": round(time.monotonic() - start, 1),
        "served": served,
    }


def canary(site: Site) -> tuple[Bars, dict[str, Any]]:
    """Deploy a wrong and a slow version; each must go by itself."""
    bars: Bars = []
    figures: dict[str, Any] = {}
    failed = site.traffic.failed
    for name, options in (("wrong", {}), ("slow", {"limits": {"min_agreement": -1.0}})):
        start = time.monotonic()
        reason = site.deploy(name, **options)
        took = round(time.monotonic() - start, 1)
        say(f"{name}: {reason} after {took} s")
        figures[name] = {"reason": reason, "seconds": took}
        bars.append(bar(f"{name}_canary_rolled_back", reason.startswith("rolled back"), at_least=1))
        bars.append(bar(f"{name}_canary_s", took, at_most=LIMIT_S))
    lost = site.traffic.failed - failed
    bars.append(bar("canary_failed", lost, at_most=0))
    return bars, figures


def _seconds(step: Callable[[], Any]) -> float:
    start = time.monotonic()
    outcome = step()
    if isinstance(outcome, str) and outcome != "done":
        raise SystemExit(outcome)
    return round(time.monotonic() - start, 1)
