"""Training against a bare PyTorch loop: `python -m tests.bench.train`.

Same model, batch size, optimisers and number of threads, in many short turns, on a data set
of MovieLens-1M's users and items. The bare loop has all its inputs as tensors in memory, histories
included, draws negatives without looking whether the user has them, and neither reports nor
saves anything. SASRec also runs against a plain loop over sequences padded to 50 events, with whole
logits, on a sparse log with 12,000 items. Writes runs/bench/train.json and .md.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from app.data.dataset import Dataset
from app.features.context import ages
from app.models.base import Batch, History, Model
from app.models.build import build_model
from app.recipe import Recipe, parse
from app.terminal.console import say
from app.training.batches.moments import first_of_moment
from app.training.defaults import fitting_batch_size, settled
from app.training.optimizers import RowwiseAdagrad, table_parameters
from app.training.train import fit
from tests.bench import train_sequences as sequences
from tests.tiny import tiny_dataset

OUT = Path(__file__).resolve().parents[2] / "runs" / "bench"
EVENTS = ("neumf", "mlp", "dlrm")  # models that learn from events
NEED = 0.95
PADDED = 2.0
HISTORY = 20
POSITIONS = 2048  # of a batch of sequences
Figures = dict[str, Any]


def recipe_of(name: str, **settings: Any) -> Recipe:
    training = {"epochs": 1, "workers": 0, "valid_users": 100, "id_dropout": 0.0, **settings}
    return settled(parse({"model": {"name": name}, "train": training}, "bench"))


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
        self.past = torch.from_numpy(item)
        self.event = torch.from_numpy(event)
        self.age = torch.from_numpy(ages(time_))
        self.context = torch.zeros(len(part), dataset.schema.context_width)

    def batch(self, rows: Tensor, negatives: int) -> Batch:
        drawn = torch.randint(1, self.items, (len(rows), negatives))
        items = torch.cat([self.item[rows, None], drawn], 1)
        label = torch.zeros(items.shape)
        label[:, 0] = 1
        age = self.age[rows]
        history = History(self.past[rows].long(), self.event[rows].long(), age, age[:, :0])
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
    size = settings.batch_size or fitting_batch_size(len(data.user))
    samples, begun = 0, time.perf_counter()
    for rows in torch.randperm(len(data.user)).split(size):  # type: ignore[no-untyped-call]
        batch = data.batch(rows, settings.negatives)
        adam.zero_grad()
        adagrad.zero_grad()
        loss_of(model(batch), batch.label).backward()
        adam.step()
        adagrad.step()
        samples += batch.item.numel()
    return samples / (time.perf_counter() - begun)


def compare(name: str, turns: dict[str, Callable[[], float]], rounds: int) -> Figures:
    """Ours and the bare loop in turns; the ratio is the median of the rounds'."""
    pairs = []
    for number in range(rounds):
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


def of_events(folder: Path, events: int, rounds: int) -> dict[str, Figures]:
    """Models of events against loops over tensors in memory; and a model of sequences."""
    dataset = tiny_dataset(folder, users=6040, items=3700, events=events, history=HISTORY, content=False)
    data, results = Bare(dataset), {}
    for name in EVENTS:
        recipe = recipe_of(name)
        model = partial(build_model, name, {}, dataset)
        turns = {
            "ours": partial(ours, recipe, dataset),
            "bare": lambda recipe=recipe, model=model: bare(recipe, data, model()),
        }
        results[f"bare_{name}"] = compare(name, turns, rounds)
    results["bare_sasrec"] = of_sequences(dataset, rounds, plain=False)
    return results


def of_sequences(dataset: Dataset, rounds: int, *, plain: bool) -> Figures:
    """SASRec against a bare loop over its own batches, or a plain one over padded ones with whole logits."""
    recipe = recipe_of("sasrec", batch_size=POSITIONS)
    batches = sequences.batches(recipe, dataset)
    if plain:
        batches = sequences.padded(batches, dataset.schema.history)
    loss: sequences.Objective = sequences.whole_softmax if plain else Model.loss
    turns = {
        "ours": lambda: ours(recipe, dataset),
        "bare": lambda: sequences.bare(recipe, build_model("sasrec", {}, dataset), batches, loss),
    }
    return compare("sasrec", turns, rounds)


def report(results: dict[str, Figures], rounds: int, events: int) -> Figures:
    ratios = {name: round(figures["ratio"], 3) for name, figures in results.items()}
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    needs = {name: PADDED if name.startswith("padded") else NEED for name in ratios}
    return {
        "name": "train",
        "machine": {"cores": os.cpu_count(), "memory_gib": memory, "python": platform.python_version()},
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "numpy")},
        "ratios": ratios,
        "bars": [
            {"name": name, "value": value, "need": needs[name], "holds": value >= needs[name]}
            for name, value in ratios.items()
        ],
        "figures": {
            **{f"{name}_{side}": round(f[side]) for name, f in results.items() for side in ("ours", "bare")},
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
        "| against | ours | PyTorch | ratio | needed |",
        "|---|---|---|---|---|",
    ]
    for bar in result["bars"]:
        rates = " | ".join(f"{figures[bar['name'] + side]:,}" for side in ("_ours", "_bare"))
        lines.append(f"| {bar['name']} | {rates} | {bar['value']:.2f} | {bar['need']} |")
    (OUT / "train.md").write_text("\n".join(lines) + "\n")
    say("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = of_events(Path(folder) / "dataset", options.events, options.rounds)
        # As sparse as a shop: nine events a user, of 12,000 items.
        sparse = tiny_dataset(
            Path(folder) / "sparse", users=2000, items=12_000, events=18_000, history=50, content=False
        )
        results["padded_sasrec"] = of_sequences(sparse, options.rounds, plain=True)
    result = report(results, options.rounds, options.events)
    write(result)
    raise SystemExit(0 if all(bar["holds"] for bar in result["bars"]) else 1)


if __name__ == "__main__":
    main()
