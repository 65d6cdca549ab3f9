"""What an interrupted run needs to go on: weights, optimisers, position in the data, random state.

A folder without pickle: state.json; model.safetensors; best.safetensors, the weights of the
best epoch so far; optimizers.safetensors, each tensor named "optimiser.parameter.field"; and
random.safetensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.training.optimizers import Optimizers

STATE = "state.json"
BEST = "best.safetensors"


@dataclass
class TrainingProgress:
    """How far a run is, and what it has measured.

    `epoch` counts finished epochs, `step` the batches of the epoch under way. `best_epoch` is the one
    whose weights are kept, `best` its validation figure: None where validation gave none; `initial` is the
    figure of weights that the run was given to begin with. `seconds`, `waited` (for batches) and `samples`
    are of training alone, over all attempts.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0  # sum over the steps of the epoch under way
    best_epoch: int = 0
    best: float | None = None
    initial: float | None = None
    finished: bool = False
    resumed_from: int | None = None
    seconds: float = 0.0
    waited: float = 0.0  # seconds of these
    samples: int = 0
    valid_users: int = 0  # that each validation ranks; 0: not settled yet
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass
class State:
    """Everything of a run that outlives its process."""

    model: nn.Module
    optimizers: Optimizers
    progress: TrainingProgress
    best: dict[str, Tensor] = field(default_factory=dict)

    def keep_best(self) -> None:
        """Keep a copy of the present weights as the best."""
        self.best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write everything into a folder; state.json last."""
        save_file(_on_cpu(self.model.state_dict()), folder / "model.safetensors")
        save_file(_on_cpu(self.best), folder / BEST)
        tensors, numbers = _flatten([o.state_dict()["state"] for o in self.optimizers.each])
        save_file(tensors, folder / "optimizers.safetensors")
        save_file(_random_state(), folder / "random.safetensors")
        (folder / STATE).write_text(json.dumps({"progress": asdict(self.progress), "optimizers": numbers}))

    def load(self, folder: Path, *, random: bool) -> None:
        """Take everything from a folder; `random`: with the random state of the worker that wrote it."""
        content = json.loads((folder / STATE).read_bytes())
        self.progress = TrainingProgress(**content["progress"])
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.best = load_file(folder / BEST)
        states = _unflatten(
            load_file(folder / "optimizers.safetensors"), content["optimizers"], len(self.optimizers.each)
        )
        for optimizer, state in zip(self.optimizers.each, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        if random:
            _set_random_state(load_file(folder / "random.safetensors"))


def read_progress(folder: Path) -> TrainingProgress:
    """How far the run was that wrote this checkpoint."""
    return TrainingProgress(**json.loads((folder / STATE).read_bytes())["progress"])


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flatten(states: list[dict[int, dict[str, Any]]]) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors, numbers = {}, {}
    for number, state in enumerate(states):
        for parameter, fields in state.items():
            for name, value in fields.items():
                key = f"{number}.{parameter}.{name}"
                if isinstance(value, Tensor):
                    tensors[key] = value.detach().cpu().contiguous()
                elif value is not None:
                    numbers[key] = value
    return tensors, numbers


def _unflatten(
    tensors: dict[str, Tensor], numbers: dict[str, float], count: int
) -> list[dict[int, dict[str, Any]]]:
    states: list[dict[int, dict[str, Any]]] = [{} for _ in range(count)]
    for key, value in (*tensors.items(), *numbers.items()):
        number, parameter, name = key.split(".")
        states[int(number)].setdefault(int(parameter), {})[name] = value
    return states


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
