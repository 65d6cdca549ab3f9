"""The versions that a replica serves, and who meets which: always the same for the same user."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.bundle.request.requests import Answer, RankRequest, RecommendRequest
from app.bundle.runtime import PreparedRequest, Ranker
from app.events import HistoryEvent
from app.serving.versions.experiment import Exposures
from app.serving.versions.shadow import Shadow
from app.serving.versions.stats import Comparison, VersionStats

if TYPE_CHECKING:
    from app.serving.scoring.scoring import Call

REMEMBERED = 32  # requests, to warm a new version with


class Variant:
    """A loaded version and what it did here.

    Args:
        ranker: the opened bundle.
        digest: of the bundle.
    """

    def __init__(self, ranker: Ranker, digest: str) -> None:
        self.ranker, self.digest, self.label = ranker, digest, ranker.version
        self.stats, self.compared = VersionStats(), Comparison()

    def noted(self, score: float) -> None:
        """Count the best score of an answer; one that is no number is a fault."""
        if math.isfinite(score):
            self.stats.scores.add(score)
        else:
            self.stats.errors += 1


class TrafficSplit:
    """Who meets which version; used on one event loop.

    `shared`: users are shared between versions now. `recent` are live requests. `shadow` scores
    a sample of them by the version on trial.

    Args:
        main: what is served to everybody until `share` says otherwise.
        exposures: told who met which version while users are shared.
    """

    def __init__(self, main: Variant, shadow: Shadow, exposures: Exposures | None = None) -> None:
        self.main, self.shadow, self.exposures = main, shadow, exposures
        self.trial: Variant | None = None
        self.shared, self.salt = False, ""
        self.recent: deque[RankRequest | RecommendRequest] = deque(maxlen=REMEMBERED)
        self._table: list[tuple[float, Variant]] = []

    def share(self, main: Variant, others: Sequence[tuple[float, Variant]], salt: str) -> None:
        """Give `others` their shares of the users from now on, and main the rest.

        A share that grows keeps the users that it had; another salt draws them anew.
        """
        table, bound = [], 0.0
        for share, variant in others:
            if share > 0:
                bound += share
                table.append((bound, variant))
        self.main, self._table, self.salt, self.shared = main, table, salt, bool(table)

    def of(self, user: str) -> Variant:
        """The version that a user meets."""
        if self.shared:
            place = place_of(self.salt, user)
            for bound, variant in self._table:
                if place < bound:
                    return variant
        return self.main

    def note(
        self,
        calls: Sequence[Call],
        questions: Sequence[PreparedRequest],
        stored: Sequence[list[HistoryEvent]],
        answers: Sequence[Answer | Exception],
    ) -> None:
        """Learn from a batch that was answered: best scores, who was served, what to compare."""
        self.recent.append(questions[-1].request)
        for call, question, events, answer in zip(calls, questions, stored, answers, strict=True):
            variant = call.variant
            if variant is None or isinstance(answer, Exception):
                continue
            if answer.items:
                variant.noted(answer.items[0].score)
            self.record_exposure(question.request.user, variant)
            if self.trial is not None and variant is self.main:
                new = self.trial
                self.shadow.offer(variant.ranker, new.ranker, new.compared, question.request, events)

    def record_exposure(self, user: str, variant: Variant) -> None:
        """Note who met which version while users are shared."""
        if self.exposures is not None and self.shared:
            self.exposures.note(self.salt, user, variant.label)

    def served(self) -> list[Variant]:
        """The versions that some user meets."""
        return [self.main, *(variant for _, variant in self._table)]

    def share_of(self, digest: str) -> float:
        """The share of the users that a version has."""
        begin, shares = 0.0, {}
        for bound, variant in self._table:
            shares[variant.digest] = bound - begin
            begin = bound
        return shares.get(digest, 0.0) if digest != self.main.digest else 1.0 - begin


def place_of(salt: str, user: str) -> float:
    """Where a user stands, evenly from 0 to below 1; the same on every machine."""
    digest = hashlib.blake2b(user.encode(), key=salt.encode()[:64], digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
