"""front.csv: the points of a front as a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from app.files import replacing
from tuning.front import Front
from tuning.points import COSTS


def write_csv(front: Front, path: Path) -> None:
    """One row a point: trial, figures, and every setting in a column of its own; then the baselines.

    A baseline has its name for a trial, and its quality alone.
    """
    names = sorted({name for p in front.points for name in p.settings})
    with replacing(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trial", front.best.metric, *COSTS, "bytes", "reused", *names])
        for p in front.points:
            cells = [_cell(p.settings.get(name, "")) for name in names]
            writer.writerow([p.trial, *p.figures().values(), p.bytes, int(p.reused), *cells])
        for name, quality in front.baselines.items():
            writer.writerow([name, quality, *[""] * (len(COSTS) + 2 + len(names))])


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
