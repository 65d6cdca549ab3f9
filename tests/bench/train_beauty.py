"""An epoch of SASRec on Beauty against RecBole's and a plain loop's: `python -m tests.bench.train_beauty`.

The same network (64 floats, 2 layers, 2 heads, normalised after each branch, dropout .5), sequences of up to
50 events and the softmax over all 12,101 items. RecBole 1.2.1 runs in an environment of its own, with its own
batch of 2,048 sequences. The plain loop pads every sequence to 50 events, as many a batch as ours holds.
Systems run in turns. Writes runs/bench/train_beauty.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from app.data.dataset import Dataset
from app.models.build import build_model
from app.pipeline import prepare
from app.recipe import Recipe
from app.recipe_toml import load
from app.terminal.console import say
from app.training.defaults import settled
from app.training.train import fit
from tests.bench import train_sequences as sequences
from tests.bench.clicks import write_table
from tests.bench.faults import publish, result_of
from tests.bench.faults_change import bar
from tests.bench.recbole_peer.environment import recbole_python

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("RAYREC_DATA", REPOSITORY.parent / "shared" / "data"))
OUT = REPOSITORY / "runs" / "bench" / "train_beauty"
PEER = REPOSITORY / "tests" / "bench" / "recbole_peer" / "sasrec.py"
NEED = {"recbole": 5.0, "plain": 2.0}
NETWORK: dict[str, Any] = {
    "name": "sasrec",
    "width": 64,
    "layers": 2,
    "heads": 2,
    "norm": "post",
    "gated": False,
    "dropout": 0.5,
}
TRAINING = {"train.epochs": 1, "train.workers": 0, "train.batch_size": 2048, "train.valid_users": 100}
RECBOLE = {
    "hidden_size": 64,
    "inner_size": 256,
    "n_layers": 2,
    "n_heads": 2,
    "MAX_ITEM_LIST_LENGTH": 50,
    "train_batch_size": 2048,
}


def ours(recipe: Recipe, dataset: Dataset) -> float:
    """Seconds of the stage's epoch, as its manifest says."""
    with tempfile.TemporaryDirectory() as folder:
        return float(fit(recipe, dataset, Path(folder) / "checkpoint").figures["seconds"])


def plain(recipe: Recipe, dataset: Dataset, batches: list[Any]) -> float:
    """Seconds of an epoch over sequences that are all padded, with whole logits."""
    model = build_model("sasrec", recipe.model.hyperparameters, dataset)
    rate = sequences.bare(recipe, model, batches, sequences.whole_softmax)
    return float(sum(batch.samples for batch in batches) / rate)


def recbole(python: Path) -> float:
    """Seconds of RecBole's epoch, by its own trainer."""
    command = [str(python), str(PEER), str(OUT / "peer"), json.dumps(RECBOLE)]
    done = subprocess.run(command, cwd=OUT, capture_output=True, text=True)
    (OUT / "recbole.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"RecBole failed, see {OUT / 'recbole.log'}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def write_peer_data(dataset: Dataset) -> None:
    """All events in order, as RecBole reads them, which then cuts off the last two of each user itself."""
    rows = []
    for number, part in enumerate((dataset.train, dataset.valid, dataset.test)):
        rows.append(pd.DataFrame({"user_id:token": part.user, "item_id:token": part.item, "part": number}))
    table = pd.concat(rows).sort_values(["user_id:token", "part"], kind="stable")
    table["timestamp:float"] = range(len(table))
    (OUT / "peer" / "beauty").mkdir(parents=True, exist_ok=True)
    write_table(table.drop(columns="part"), OUT / "peer" / "beauty" / "beauty.inter")


def main() -> None:
    """Run the systems in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if not (DATA / "s3rec-beauty").is_dir():
        raise SystemExit(f"s3rec-beauty is not in {DATA}; name the folder of the data in RAYREC_DATA")
    os.environ["RAYREC_DATA"] = str(DATA)  # which the recipe names
    recipe = load(REPOSITORY / "examples" / "beauty.toml")
    prepare(recipe, OUT)
    dataset = Dataset.open(OUT / "dataset")
    own = settled(recipe.override({"model": NETWORK, **TRAINING}))
    write_peer_data(dataset)
    python = recbole_python(REPOSITORY / "runs" / "bench" / "environments")
    batches = sequences.padded(sequences.batches(own, dataset), dataset.schema.history)
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "recbole": []}
    turns = {
        "ours": lambda: ours(own, dataset),
        "plain": lambda: plain(own, dataset, batches),
        "recbole": lambda: recbole(python),
    }
    for _ in range(options.rounds):
        for name, turn in turns.items():
            seconds[name].append(turn())
            say(f"{name}: {seconds[name][-1]:.1f} s an epoch")
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds["ours"], seconds[name], strict=True))
        for name in NEED
    }
    bars = [bar(f"{name}: seconds over ours", round(ratios[name], 2), at_least=NEED[name]) for name in NEED]
    publish({**result_of("train_beauty", bars, {"seconds": seconds}), "ratios": ratios})


if __name__ == "__main__":
    main()
