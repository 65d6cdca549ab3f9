"""How sure a difference between two models is that were asked the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.evaluation.measure import bootstrap
from app.evaluation.metrics import Floats

RESAMPLES = 2000  # of the users, for an interval
SIGNS = 10_000  # draws of signs, for a p-value; where there are not more, all are tried
DRAWN = 1 << 22  # signs drawn at a time
ROUNDING = 1e-9  # of the sum of the absolute values, by which two sums that are equal may differ


@dataclass(frozen=True)
class Differences:
    """Mean differences of F figures over U users, each (F,).

    `low` and `high` bound the 95 % interval of a bootstrap over users; `p` is two-sided.
    """

    value: Floats
    low: Floats
    high: Floats
    p: Floats


def paired_differences(difference: Floats, seed: int) -> Differences:
    """Judge differences (U, F) between what two models reach for the same users.

    A user who is hard for one model is hard for the other, too: because users are drawn with both values,
    what they have in common does not widen the interval (Efron and Tibshirani 1993, "An Introduction to the
    Bootstrap", chapter 8).
    """
    rng = np.random.default_rng(seed)
    drawn = bootstrap(difference, np.ones_like(difference), RESAMPLES, rng)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return Differences(difference.mean(0), low, high, p_values(difference, rng))


def p_values(difference: Floats, rng: np.random.Generator) -> Floats:
    """(F,) two-sided p-values of differences (U, F), by a permutation test.

    If the models were alike, each user's difference would have either sign alike: p is the share of all
    choices of signs whose sum is as far from 0 as the one seen (Fisher 1935, "The Design of Experiments",
    section 21). Up to SIGNS choices are all tried, of more that many are drawn and the one seen is added.
    """
    difference = difference[(difference != 0).any(1)]  # the others have no sign
    users = len(difference)
    least = np.abs(difference.sum(0)) - ROUNDING * np.abs(difference).sum(0)
    if 1 << min(users, 60) <= SIGNS:
        every = np.arange(1 << users)[:, None] >> np.arange(users) & 1
        shares: Floats = (_sums(every, difference) >= least).mean(0)
        return shares
    extreme, step = np.ones_like(least), max(1, DRAWN // users)
    for start in range(0, SIGNS, step):
        count = min(step, SIGNS - start)
        bits = np.unpackbits(
            np.frombuffer(rng.bytes(count * -(-users // 8)), np.uint8).reshape(count, -1), axis=1
        )
        extreme += (_sums(bits[:, :users], difference) >= least).sum(0)
    drawn: Floats = extreme / (SIGNS + 1)
    return drawn


def _sums(signs: np.ndarray, difference: Floats) -> Floats:
    """(S, F) absolute sums of differences (U, F) with signs (S, U), 1 for plus and 0 for minus."""
    sums: Floats = np.abs(2 * (signs.astype(np.float32) @ difference) - difference.sum(0))
    return sums
