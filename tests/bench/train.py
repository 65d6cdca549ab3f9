"""Training against a bare PyTorch loop: `python -m tests.bench.train`.

Same model, batch size, optimisers and number of threads, in many short turns, on a data set
of MovieLens-1M's users and items. The bare loop has all its inputs as tensors in memory, histories
included, draws negatives without looking whether the user has them, and neither reports nor
saves anything. Writes runs/bench/train.json and .md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from app.data.dataset import Dataset
from app.models.base import Batch, History, Model
from app.models.build import build_model
from app.recipe import Recipe, parse
from app.terminal.console import say
from app.training.optimizers import RowwiseAdagrad, table_parameters
from app.training.sampler import first_of_moment
from app.training.train import fit
from tests.tiny import tiny_dataset

OUT = Path(__file__).resolve().parents[2] / "runs" / "bench"
MODELS = ("neumf", "mlp")
NEED = 0.9
HISTORY = 20
Figures = dict[str, Any]


def recipe_of(name: str) -> Recipe:
    training = {"epochs": 1, "workers": 0, "valid_users": 100, "id_dropout": 0.0}
    return parse({"model": {"name": name}, "train": training}, "bench")


def ours(recipe: Recipe, dataset: Dataset) -> float:
    """Samples a second of the stage, as its manifest says."""
    with tempfile.TemporaryDirectory() as folder:
        return float(fit(recipe, dataset, Path(folder) / "checkpoint").figures["samples_per_second"])


class Bare:
    """The training data as tensors in memory."""

    def __init__(self, dataset: Dataset) -> None:
        part = dataset.train
        self.items = dataset.schema.items
        self.user = torch.from_numpy(part.user.astype(np.int64))
        self.item = torch.from_numpy(part.item.astype(np.int64))
        ends = np.stack([part.indptr[part.user], first_of_moment(part.user, part.time)], 1)
        item, event, time_ = dataset.history(ends)
        hours = np.log1p(np.clip(part.time[:, None] - time_, 0, None) / 3.6e9)
        self.past = torch.from_numpy(item)
        self.event = torch.from_numpy(event)
        self.age = torch.from_numpy(np.where(item > 0, hours, 0).astype(np.float32))
        self.context = torch.zeros(len(part), dataset.schema.context_width)

    def batch(self, rows: Tensor, negatives: int) -> Batch:
        drawn = torch.randint(1, self.items, (len(rows), negatives))
        items = torch.cat([self.item[rows, None], drawn], 1)
        label = torch.zeros(items.shape)
        label[:, 0] = 1
        history = History(self.past[rows].long(), self.event[rows].long(), self.age[rows])
        return Batch(self.user[rows], items, history, self.context[rows], label)


def bare(recipe: Recipe, data: Bare, model: Model) -> float:
    """Samples a second of one epoch."""
    settings = recipe.train
    tables = table_parameters(model)
    known = {id(p) for p in tables}
    dense = [p for p in model.parameters() if id(p) not in known]
    adam = torch.optim.Adam(dense, lr=settings.learning_rate, fused=True)
    adagrad = RowwiseAdagrad(iter(tables), lr=settings.table_learning_rate)
    loss_of = torch.nn.BCEWithLogitsLoss()
    samples, begun = 0, time.perf_counter()
    for rows in torch.randperm(len(data.user)).split(settings.batch_size):  # type: ignore[no-untyped-call]
        batch = data.batch(rows, settings.negatives)
        adam.zero_grad()
        adagrad.zero_grad()
        loss_of(model(batch), batch.label).backward()
        adam.step()
        adagrad.step()
        samples += batch.item.numel()
    return samples / (time.perf_counter() - begun)


def compare(name: str, dataset: Dataset, data: Bare, rounds: int) -> Figures:
    """Both in turns; the ratio is the median of the rounds'."""
    recipe = recipe_of(name)
    pairs = []
    for number in range(rounds):
        turns = {
            "ours": lambda: ours(recipe, dataset),
            "bare": lambda: bare(recipe, data, build_model(name, {}, dataset)),
        }
        # Each goes first as often as the other: what slows the machine for a while meets both.
        order = sorted(turns, reverse=number % 2 == 0)
        rates = {who: turns[who]() for who in order}
        pairs.append((rates["ours"], rates["bare"]))
        say(f"{name}: {pairs[-1][0]:,.0f} samples/s, bare {pairs[-1][1]:,.0f}")
    return {
        "ours": statistics.median(pair[0] for pair in pairs),
        "bare": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def report(results: dict[str, Figures], rounds: int, events: int) -> Figures:
    ratios = {f"bare_{name}": round(figures["ratio"], 3) for name, figures in results.items()}
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {
        "name": "train",
        "machine": {"cores": os.cpu_count(), "memory_gib": memory, "python": platform.python_version()},
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "numpy")},
        "ratios": ratios,
        "bars": [
            {"name": name, "value": value, "need": NEED, "holds": value >= NEED}
            for name, value in ratios.items()
        ],
        "figures": {
            **{f"{kind}_{name}": round(f[kind]) for name, f in results.items() for kind in ("ours", "bare")},
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            "events": events,
        },
    }


def write(result: Figures) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "train.json").write_text(json.dumps(result, indent=1) + "\n")
    figures = result["figures"]
    lines = [
        "# Training, samples a second",
        "",
        f"{figures['events']:,} events, {figures['threads']} threads, median of {figures['rounds']} rounds.",
        "",
        "| model | ours | bare PyTorch | ratio | needed |",
        "|---|---|---|---|---|",
    ]
    for name in (key.removeprefix("bare_") for key in result["ratios"]):
        rates = f"{figures[f'ours_{name}']:,} | {figures[f'bare_{name}']:,}"
        lines.append(f"| {name} | {rates} | {result['ratios'][f'bare_{name}']:.2f} | {NEED} |")
    (OUT / "train.md").write_text("\n".join(lines) + "\n")
    say("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = tiny_dataset(
            Path(folder) / "dataset",
            users=6040,
            items=3700,
            events=options.events,
            history=HISTORY,
            content=False,
        )
        data = Bare(dataset)
        results = {name: compare(name, dataset, data, options.rounds) for name in MODELS}
    result = report(results, options.rounds, options.events)
    write(result)
    raise SystemExit(0 if all(bar["holds"] for bar in result["bars"]) else 1)


if __name__ == "__main__":
    main()
