"""The versions that a replica serves, and which users are assigned to which: always the same ones."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Sequence

from app.bundle.request.requests import Answer, RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
from app.events import HistoryEvent
from app.serving.versions.experiment import Exposures
from app.serving.versions.shadow import Shadow
from app.serving.versions.stats import Comparison, VersionStats

RECENT = 32  # requests, to warm a new version with


class Variant:
    """A loaded version and what it did on this replica.

    Args:
        ranker: the opened bundle.
        digest: of the bundle.
    """

    def __init__(self, ranker: Ranker, digest: str) -> None:
        self.ranker, self.digest, self.label = ranker, digest, ranker.version
        self.stats, self.compared = VersionStats(), Comparison()

    def record_score(self, score: float) -> None:
        """Count the best score of an answer; one that is no number is a fault."""
        if math.isfinite(score):
            self.stats.scores.add(score)
        else:
            self.stats.errors += 1


class TrafficSplit:
    """Assigns users to versions; used on one event loop.

    `splits` says whether users are assigned to more than one version now. `recent` are live
    requests. `trial` is a version that `shadow` compares with the main one on a sample of them.

    Args:
        main: the version of all users until `set_weights` says otherwise.
        shadow: compares versions.
        exposures: records which user was served by which version while traffic is split.
    """

    def __init__(self, main: Variant, shadow: Shadow, exposures: Exposures | None = None) -> None:
        self.main, self.shadow, self.exposures = main, shadow, exposures
        self.trial: Variant | None = None
        self.splits, self.salt = False, ""
        self.recent: deque[RankRequest | RecommendRequest] = deque(maxlen=RECENT)
        self._bounds: list[tuple[float, Variant]] = []  # cumulative weights, ascending

    def set_weights(self, main: Variant, others: Sequence[tuple[float, Variant]], salt: str) -> None:
        """Assign these shares of the users to `others` from now on, and the rest to `main`.

        A share that grows keeps the users that it had; another salt draws them anew.
        """
        bounds, bound = [], 0.0
        for weight, variant in others:
            if weight > 0:
                bound += weight
                bounds.append((bound, variant))
        self.main, self._bounds, self.salt, self.splits = main, bounds, salt, bool(bounds)

    def assign(self, user: str) -> Variant:
        """The version of a user."""
        if self.splits:
            position = position_of(self.salt, user)
            for bound, variant in self._bounds:
                if position < bound:
                    return variant
        return self.main

    def record_answer(
        self,
        variant: Variant,
        request: RankRequest | RecommendRequest,
        stored: list[HistoryEvent],
        answer: Answer,
    ) -> None:
        """Learn from an answer: its best score, who was served, and what to compare.

        Args:
            variant: that answered.
            request: that it answered.
            stored: the user's stored events, which it had.
            answer: whole or degraded.
        """
        self.recent.append(request)
        if answer.items:
            variant.record_score(answer.items[0].score)
        self.record_exposure(request.user, variant)
        trial = self.trial
        if trial is not None and variant is self.main:
            self.shadow.offer(variant.ranker, trial.ranker, trial.compared, request, stored)

    def record_exposure(self, user: str, variant: Variant) -> None:
        """Note which version served a user, while traffic is split."""
        if self.exposures is not None and self.splits:
            self.exposures.note(self.salt, user, variant.label)

    def served(self) -> list[Variant]:
        """The versions that some user is assigned to, the main one first."""
        return [self.main, *(variant for _, variant in self._bounds)]

    def weight_of(self, digest: str) -> float:
        """The share of the users that is assigned to a version, from 0 to 1."""
        lower, weights = 0.0, {}
        for bound, variant in self._bounds:
            weights[variant.digest] = bound - lower
            lower = bound
        return weights.get(digest, 0.0) if digest != self.main.digest else 1.0 - lower


def position_of(salt: str, user: str) -> float:
    """The position of a user, evenly distributed from 0 to below 1; the same on every machine."""
    digest = hashlib.blake2b(user.encode(), key=salt.encode()[:64], digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
