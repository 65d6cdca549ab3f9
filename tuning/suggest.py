"""Asks a trial for settings, by the keys of the recipe.

What [tune.space] gives for a key stands before what is asked for; without that, the recipe's own value always
belongs to what is tried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import BaseTrial

MODEL = "model.name"
Tried = list[Any] | tuple[Any, ...]  # values, or (low, high[, "log"])


class Suggest:
    """A trial that is asked for the settings of a model.

    A study knows a hyperparameter, and a setting of the training, as KEY@MODEL, because of two models each
    may have its own around which other values are tried.

    Args:
        given: of [tune.space], dotted key -> what is tried.
    """

    def __init__(self, trial: BaseTrial, model: str, given: Mapping[str, Tried]) -> None:
        self.trial, self.model, self.given = trial, model, given
        self.settings: dict[str, Any] = {}

    def any(self, key: str, tried: Tried, own: Any) -> Any:
        """A setting of a list of values or a range, and what the trial says."""
        if isinstance(tried, tuple):
            low, high, *scale = tried
            return self.number(key, low, high, own=own, log=scale == ["log"])
        return self.choice(key, tried, own)

    def choice(self, key: str, choices: list[Any], own: Any) -> Any:
        """One of some values."""
        if key in self.given:
            return self.suggest_given(key)
        return self._keep(key, self._choice(key, choices if own in choices else [*choices, own]))

    def number(self, key: str, low: Any, high: Any, *, own: Any, log: bool = False) -> Any:
        """A number of a range; of integers, where both ends are some."""
        if key in self.given:
            return self.suggest_given(key)
        return self._keep(key, self._number(key, min(low, own), max(high, own), log=log))

    def suggest_given(self, key: str) -> Any:
        """A setting as [tune.space] has it."""
        tried = self.given[key]
        if isinstance(tried, list):
            return self._keep(key, self._choice(key, tried))
        low, high, *scale = tried
        return self._keep(key, self._number(key, low, high, log=scale == ["log"]))

    def _keep(self, key: str, value: Any) -> Any:
        self.settings[key] = value
        return value

    def _choice(self, key: str, values: list[Any]) -> Any:
        encoded = [encoded_value(value) for value in values]
        return decoded_value(self.trial.suggest_categorical(parameter(key, self.model), encoded))

    def _number(self, key: str, low: Any, high: Any, *, log: bool) -> Any:
        if log and low <= 0:  # a logarithmic scale holds no 0
            log = False
        name = parameter(key, self.model)
        if isinstance(low, int) and isinstance(high, int):
            return self.trial.suggest_int(name, low, high, log=log)
        return self.trial.suggest_float(name, float(low), float(high), log=log)


def parameter(key: str, model: str) -> str:
    """The name by which a study knows a setting of a trial of a model."""
    own = key.startswith(("model.", "train.")) or key == "compress.steps"
    return f"{key}@{model}" if own and key != MODEL else key


def nearest(value: Any, tried: Tried) -> Any:
    """A value, or what comes nearest to it in a list or a range that does not hold it."""
    if isinstance(tried, list):
        return value if value in tried else tried[0]
    low, high = tried[:2]
    return min(max(value, low), high)


def encoded_value(value: Any) -> Any:
    """A value as a study stores it: lists as JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def decoded_value(value: Any) -> Any:
    """What `encoded_value` was given."""
    return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
