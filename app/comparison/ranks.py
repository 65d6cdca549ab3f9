"""What the report of a run keeps of its ranking, and whether two runs were asked the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from app.artifact import open_artifact
from app.data.dataset import Array
from app.errors import ArtifactError, DataError
from app.evaluation import metrics
from app.evaluation.metrics import Floats
from app.evaluation.report import RANKS

SHOWN = 40  # characters of an id in a message
REMEDY = "compare runs of the same data, [split], [evaluate] and seed"


@dataclass(frozen=True)
class RankedRun:
    """The ranks of T targets that a run reports, sorted alike whatever the run numbers its users by.

    Attributes:
        name: the folder, with as much of its path as tells the compared runs apart.
        model: the name of its model.
        part: "test" or "valid".
        protocol: of the evaluation.
        cuts: lengths of the lists that it reports.
        ranks: columns user, item, owner (the request, from 0), rank (infinite where never ranked), candidates
            and pool.
    """

    name: str
    model: str
    part: str
    protocol: dict[str, Any]
    cuts: list[int]
    ranks: pl.DataFrame

    @property
    def requests(self) -> int:
        """U, how many requests were ranked."""
        return int(self.ranks["owner"][-1]) + 1

    def figures(self, cuts: Sequence[int]) -> dict[str, Floats]:
        """Ranking figures at each cut-off as "name@k", each (U,): one value a request."""
        owner, rank = self.ranks["owner"].to_numpy(), self.ranks["rank"].to_numpy()
        return metrics.at_k(owner, rank, self.requests, cuts)

    def refuse_other_test(self, other: RankedRun) -> None:
        """Refuse to compare with a run that was asked something else.

        Raises:
            DataError: says what differs: the protocol, the users, what is to be found, or the candidates.
        """
        what = self._other_protocol(other) or self._other_targets(other) or self._other_candidates(other)
        if what:
            raise DataError(what, where=f"{self.name} and {other.name}", remedy=REMEDY)

    def _other_protocol(self, other: RankedRun) -> str:
        if self.part != other.part:
            return f"one is measured on the {self.part} part, the other on the {other.part} part"
        keys = ["candidates", "exclude_seen", "negatives"]
        keys += ["seed"] if self.protocol["candidates"] == "sampled" else []
        for key in keys:
            values = [run.protocol.get(key) for run in (self, other)]
            if values[0] != values[1]:
                return f"the protocols differ: {key} is {values[0]!r} and {values[1]!r}"
        return ""

    def _other_targets(self, other: RankedRun) -> str:
        users = [set(run.ranks["user"].unique()) for run in (self, other)]
        alone = [sorted(users[0] - users[1]), sorted(users[1] - users[0])]
        if alone[0] or alone[1]:
            example = (alone[0] or alone[1])[0]
            return (
                f"the test parts differ: {len(alone[0]):,} users are in the first alone, {len(alone[1]):,} in"
                f" the second (user {_shown(example)} for one), of {len(users[0] | users[1]):,}"
            )
        if self.ranks.select("user", "item", "owner").equals(other.ranks.select("user", "item", "owner")):
            return ""
        wanted = [
            run.ranks.group_by("user").agg(pl.col("item", "owner")).sort("user") for run in (self, other)
        ]
        differ = (wanted[0]["item"] != wanted[1]["item"]) | (wanted[0]["owner"] != wanted[1]["owner"])
        row = int(differ.to_numpy().argmax())
        user, items = wanted[0]["user"][row], [_shown(", ".join(w["item"][row])) for w in wanted]
        return (
            f"the test parts differ: other items are to be found for {differ.sum():,} of {len(users[0]):,}"
            f" users (for user {_shown(user)} {items[0]} and {items[1]})"
        )

    def _other_candidates(self, other: RankedRun) -> str:
        differ = (self.ranks["pool"] != other.ranks["pool"]).to_numpy()
        differ |= (self.ranks["candidates"] != other.ranks["candidates"]).to_numpy()
        if not differ.any():
            return ""
        owner = self.ranks["owner"].to_numpy()
        row = int(differ.argmax())
        counts = [run.ranks["candidates"][row] for run in (self, other)]
        return (
            f"the candidates differ for {len(np.unique(owner[differ])):,} of {self.requests:,} requests: user"
            f" {_shown(self.ranks['user'][row])} has {counts[0]:,} and {counts[1]:,}"
            + (", not the same" if counts[0] == counts[1] else "")
        )


def read_runs(folders: Sequence[Path]) -> list[RankedRun]:
    """The ranks of runs that were asked the same.

    Args:
        folders: of `rayrec run`, each with a report.

    Raises:
        ArtifactError: a run without a report, or one that keeps no ranks.
        DataError: fewer than two runs, or runs that were asked different things.
    """
    if len(folders) < 2:
        raise DataError(f"{len(folders)} run to compare", where="compare", remedy="name two runs or more")
    runs = [_read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]
    for other in runs[1:]:
        runs[0].refuse_other_test(other)
    return runs


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of paths, as long as needed to tell them apart; a folder that is named twice is numbered."""
    paths = [folder.absolute().parts for folder in folders]
    length = next(n for n in range(1, 1 + max(map(len, paths))) if _distinct(paths, n) == len(set(paths)))
    names = ["/".join(path[-length:]) for path in paths]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def _distinct(paths: Sequence[tuple[str, ...]], length: int) -> int:
    return len({path[-length:] for path in paths})


def _read_run(folder: Path, name: str) -> RankedRun:
    artifact = open_artifact(folder / "report", "report")
    report = json.loads((artifact.path / "report.json").read_bytes())
    if not report["figures"]:
        raise ArtifactError(
            "nothing was held out, so there is nothing to compare",
            where=str(folder),
            remedy="give [split] a test part and run it again",
        )
    if report["protocol"]["candidates"] == "logged":
        raise ArtifactError(
            "measured by logged labels, of which no ranks are kept",
            where=str(folder),
            remedy='set evaluate.candidates to "all", or read the intervals in the reports',
        )
    if RANKS not in artifact.files:
        raise ArtifactError(
            f"no {RANKS}: an older version wrote this report",
            where=str(artifact.path),
            remedy="`rayrec evaluate RECIPE --out RUN` writes it anew",
        )
    table = _sorted(pl.read_parquet(artifact.path / RANKS))
    cuts = [int(figure.removeprefix("ndcg@")) for figure in report["figures"] if figure.startswith("ndcg@")]
    return RankedRun(name, report["model"], report["part"], report["protocol"], cuts, table)


def _sorted(table: pl.DataFrame) -> pl.DataFrame:
    """By user and item, so that runs which number users in another way stand in the same order.

    Unknown users all have the id "" and are told apart by the moment of their request.
    """
    moment = pl.when(pl.col("user") == "").then(pl.col("time")).otherwise(0)
    table = table.sort("user", moment, "item", "request")
    return table.select(
        "user",
        "item",
        pl.col("request").rle_id().cast(pl.Int64).alias("owner"),
        pl.col("rank").cast(pl.Float64).fill_null(float("inf")),
        "candidates",
        "pool",
    )


def _shown(identifier: str) -> str:
    return repr(identifier if len(identifier) <= SHOWN else f"{identifier[: SHOWN - 3]}...")


def values_of(run: RankedRun, names: Sequence[str]) -> Array:
    """(U, figures): the figures "name@k" of each request."""
    cuts = sorted({int(name.partition("@")[2]) for name in names})
    figures = run.figures(cuts)
    return np.stack([figures[name] for name in names], 1)
