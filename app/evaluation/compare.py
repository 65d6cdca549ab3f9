"""Paired comparison of two evaluations of the same requests, and what a report keeps for later ones.

A request that is hard for one model is hard for another, too. Resamples therefore draw requests and take
both models' values of each: the interval of the difference is narrower than those of the two figures
suggest (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from app.data.dataset import Array, Dataset
from app.data.values.text import stable_hash
from app.evaluation.candidates import excluded_of, listed_of
from app.evaluation.measure import Measured, Measurement, bootstrap, interval
from app.evaluation.metrics import Floats
from app.evaluation.ranking import Protocol
from app.evaluation.requests import BLOCK, Requests
from app.tables.strings import Strings

HEADLINE_CUT = 10  # of the figure that a comparison is about


class Difference(NamedTuple):
    """How far the first model's figure is above the second's, with the 95 % interval of that.

    The bounds are NaN where nothing was resampled, or where a figure cannot be computed.
    """

    value: float
    low: float
    high: float


def paired(first: Measurement, second: Measurement, figure: str, resamples: int, seed: int) -> Difference:
    """Compare a figure of two evaluations of the same requests in the same order.

    Args:
        figure: one of `Measurement.ratios`, such as "ndcg@10" or "auc".
        resamples: of the requests, drawn with `seed`; 0: no interval.

    Raises:
        ValueError: the evaluations have different numbers of requests.
    """
    value = first.figures[figure] - second.figures[figure]
    if not resamples:
        return Difference(value, np.nan, np.nan)
    drawn = _drawn(first, second, figure, resamples, seed)
    low, high = interval(drawn[:, 0] - drawn[:, 1])
    return Difference(value, low, high)


def kept(after: Measurement, before: Measurement, resamples: int, seed: int) -> dict[str, list[float]]:
    """The share of the headline that is left of what it was, {name: [share, low, high]}; {} where it was 0.

    The other arguments, and the interval, are those of `paired`.
    """
    figure = headline(after.figures)
    if not before.figures[figure] > 0:
        return {}
    value = after.figures[figure] / before.figures[figure]
    if not resamples:
        return {figure: [value, np.nan, np.nan]}
    drawn = _drawn(after, before, figure, resamples, seed)
    drawn = drawn[drawn[:, 1] > 0]
    return {figure: [value, *interval(drawn[:, 0] / drawn[:, 1])]}


def kept_notes(shares: Mapping[str, Sequence[float]]) -> list[str]:
    """What `kept` gave, in words."""
    return [
        f"compressed, the model keeps {share:.1%} of its {figure}"
        + (f" (95 % interval {low:.1%} to {high:.1%})" if np.isfinite(low) else "")
        for figure, (share, low, high) in shares.items()
    ]


def _drawn(first: Measurement, second: Measurement, figure: str, resamples: int, seed: int) -> Floats:
    """(resamples, 2): the figure of both evaluations, of the same requests."""
    (over, under), (other_over, other_under) = first.ratios[figure], second.ratios[figure]
    if len(over) != len(other_over):
        raise ValueError(f"{len(over)} and {len(other_over)} requests cannot be paired")
    pairs = np.stack([over, other_over], 1), np.stack([under, other_under], 1)
    return bootstrap(*pairs, resamples, np.random.default_rng(seed))


def headline(figures: Iterable[str]) -> str:
    """The figure that comparisons, plots and warnings are about: the NDCG at the cut-off nearest to 10.

    It is the area under the curve where nothing was ranked (`evaluate.candidates = "logged"`).
    """
    cuts = [int(name[5:]) for name in figures if name.startswith("ndcg@")]
    return f"ndcg@{min(cuts, key=lambda cut: abs(cut - HEADLINE_CUT))}" if cuts else "auc"


def ranks_of(dataset: Dataset, requests: Requests, measured: Measured, protocol: Protocol) -> pa.Table:
    """The rank of each target by ids, so that reports can be compared without data sets and models.

    Returns:
        T rows: request (number), user and item (ids, "" where unknown), time (microseconds, of the request),
        rank (from 1, null where it is never ranked), candidates (how many were ranked, the target included)
        and pool (a hash of which these are, 0 where they were drawn), the last two of the request.
    """
    owner, rank = requests.owner, measured.rank
    ranked = np.isfinite(rank)
    return pa.table(
        {
            "request": owner.astype(np.int32),
            "user": _ids(dataset.users).take(pa.array(requests.user[owner])),
            "time": requests.now[owner],
            "item": _ids(dataset.items).take(pa.array(requests.target)),
            "rank": pa.array(np.where(ranked, rank, 0).astype(np.int32), mask=~ranked),
            "candidates": measured.ranked.candidates[owner].astype(np.int32),
            "pool": _pools(dataset, requests, protocol)[owner],
        }
    )


def _ids(strings: Strings) -> pa.Array:
    buffers = (pa.py_buffer(np.ascontiguousarray(part)) for part in (strings.offsets, strings.data))
    return pa.LargeStringArray.from_buffers(len(strings), *buffers)


def _pools(dataset: Dataset, requests: Requests, protocol: Protocol) -> Array:
    """(U,) uint64: the sum, modulo 2^64, of the hashes of the ids that each request ranks."""
    pools = np.zeros(len(requests), np.uint64)
    if protocol.candidates == "sampled":
        return pools
    hashes = stable_hash(pl.Series(pl.from_arrow(_ids(dataset.items))))
    hashes[0] = 0  # the unknown item is no candidate
    for start in range(0, len(requests), BLOCK):
        chosen = slice(start, start + BLOCK)
        targets = requests.padded(chosen, requests.target)
        if protocol.candidates == "listed":
            pools[chosen] = hashes[listed_of(requests, chosen, targets)].sum(1)
            continue
        pools[chosen] = hashes.sum()
        if protocol.exclude_seen:
            rows, items = excluded_of(requests, chosen, targets)
            rows, items = np.divmod(np.unique(rows * dataset.schema.items + items), dataset.schema.items)
            np.subtract.at(pools[chosen], rows, hashes[items])
    return pools
