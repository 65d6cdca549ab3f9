"""The model of the serving benchmark in torch, as one writes it by hand: shared by all peers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = "BENCH_WEIGHTS"  # environment variable: the folder of weights and ids
Ask = tuple[str, list[str]]  # user and candidates


class Ranking(nn.Module):
    """User and item vectors, side by side, through dense layers."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.users = nn.Embedding.from_pretrained(weights["users"])  # type: ignore[no-untyped-call]
        self.items = nn.Embedding.from_pretrained(weights["items"])  # type: ignore[no-untyped-call]
        widths = [weights[f"{place}.weight"].shape for place in (0, 2, 4)]
        (first, both), (second, _), (out, _) = widths
        self.layers = nn.Sequential(
            nn.Linear(both, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, out)
        )
        self.layers.load_state_dict({name: v for name, v in weights.items() if name[0].isdigit()})

    def forward(self, user: Tensor, items: Tensor) -> Tensor:
        """(B,), (B, C) rows -> scores (B, C)."""
        vectors = self.items(items)
        both = torch.cat([self.users(user).unsqueeze(1).expand_as(vectors), vectors], 2)
        scores: Tensor = self.layers(both).squeeze(2)
        return scores


class Scorer:
    """From ids to a ranking. One thread: with more, the machine's cores get in each other's way."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        folder = Path(os.environ[WEIGHTS])
        self.model = Ranking(load_file(folder / "weights.safetensors")).eval()
        self.users, self.items = (
            {name: row for row, name in enumerate((folder / file).read_text().split("\n"), 1)}
            for file in ("users.txt", "items.txt")
        )

    @torch.inference_mode()
    def rank(self, asked: Sequence[Ask]) -> list[dict[str, Any]]:
        """The candidates of each request with their scores, best first; all scored together."""
        width = max(len(items) for _, items in asked)
        users = torch.tensor([self.users.get(user, 0) for user, _ in asked])
        find = self.items.get
        rows = torch.tensor([[find(i, 0) for i in items] + [0] * (width - len(items)) for _, items in asked])
        scores = self.model(users, rows)
        if any(len(items) < width for _, items in asked):
            lengths = torch.tensor([len(items) for _, items in asked])
            scores.masked_fill_(torch.arange(width) >= lengths[:, None], -torch.inf)
        found, order = scores.sort(1, descending=True)
        answers = []
        for (_, items), places, values in zip(asked, order.tolist(), found.tolist(), strict=True):
            best = zip(places, values[: len(items)], strict=False)
            answers.append({"items": [{"item": items[place], "score": value} for place, value in best]})
        return answers
