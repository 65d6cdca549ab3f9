"""Bundles to deploy over another: a good one, a wrong one, a slow one, damaged ones."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path

import torch

from app.data.dataset import Dataset
from app.models.base import Model
from app.models.build import build_model
from tests.bundles import bundle_of, random_model

KINDS = ("a byte", "a file", "a version")


def good(model: Model, dataset: Dataset, out: Path) -> Path:
    """As retraining would change a model: a little."""
    retrained = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in retrained.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    bundle_of(retrained, dataset, out, name="mlp")
    return out


def wrong(dataset: Dataset, out: Path) -> Path:
    """A model that has nothing to do with the data: as if its item rows were shuffled."""
    bundle_of(random_model("mlp", dataset, seed=99), dataset, out)
    return out


def slow(dataset: Dataset, out: Path) -> Path:
    """A model with dense layers far larger than the data need."""
    model = build_model("mlp", {"hidden": [64, 4096, 4096]}, dataset)
    bundle_of(model.eval(), dataset, out, name="mlp")
    return out


def damage(bundle: Path, out: Path, draw: random.Random, kind: str) -> Path:
    """A copy with a byte changed, a file missing, or the format of another version."""
    shutil.copytree(bundle, out)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size)
    path = draw.choice(files)
    if kind == "a byte":
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif kind == "a file":
        path.unlink()
    else:
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["format"] = draw.choice([0, 2, 99, "1", None])
        (out / "manifest.json").write_text(json.dumps(manifest))
    return out
