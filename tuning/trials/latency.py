"""How fast the bundle of a trial ranks, so that trials which ran at different times can be compared."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from app.bundle.benchmark import measure
from app.bundle.runtime import Ranker
from app.files import locked, write_atomically
from tuning.trials.dirs import SearchDirs

CANDIDATES = 100
REPEATS, CALLS = 9, 100
LOW = 1  # the second least of nine is the lower end of the 95 % interval of their median (binomial)
REFERENCE_MS = "p95_ms"  # file of the reference: its own latency


def latency(bundle: Path, dirs: SearchDirs) -> tuple[float, float, float]:
    """p95 in ms of one request at a time on one thread, and its 95 % interval.

    It is measured in turns with a reference, the bundle of the first trial, as a ratio: a machine that is
    slow for a while is slow for both. The milliseconds are those of the reference when it was alone. Only one
    trial measures at a time.
    """
    ranker = Ranker.open(bundle, threads=1, verify=False)
    with locked(dirs.out / "measure.lock"):
        if not (dirs.reference / REFERENCE_MS).is_file():
            _keep_reference(bundle, dirs)
        reference = Ranker.open(dirs.reference, threads=1, verify=False)
        ratios = sorted(_p95(ranker) / _p95(reference) for _ in range(REPEATS))
    own = float((dirs.reference / REFERENCE_MS).read_text())
    return own * statistics.median(ratios), own * ratios[LOW], own * ratios[-1 - LOW]


def _keep_reference(bundle: Path, dirs: SearchDirs) -> None:
    shutil.rmtree(dirs.reference, ignore_errors=True)
    shutil.copytree(bundle, dirs.reference)
    ranker = Ranker.open(dirs.reference, threads=1, verify=False)
    own = statistics.median(_p95(ranker) for _ in range(REPEATS))
    write_atomically(dirs.reference / REFERENCE_MS, str(own).encode())


def _p95(ranker: Ranker) -> float:
    return measure(ranker, candidates=CANDIDATES, calls=CALLS)["p95_ms"]
