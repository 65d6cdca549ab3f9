"""The checkpoint artefact: a model's name, hyperparameters and weights; compressed rows where it has them.

model.json           {name, hyperparameters}
model.py             the file that defines the model, where it is the user's own; loading runs it
weights.safetensors
trained.safetensors  "user" (users,) and "item" (items,) bool: ids with an event in the part that the weights
                     were trained on; "log_popularity" (items,) float32: the share of its events, as log
rows/                stored rows "user", "history", "item", when compressed (app.tables.rows)
curve.json           [{epoch, loss, seconds, validation figures}]
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.artifact import Artifact, Draft, open_artifact, publish
from app.data.dataset import Array, Dataset
from app.errors import ArtifactError
from app.models.base import Model
from app.models.build import build_model
from app.models.discovery import MODEL_FILE, source_of
from app.tables.form import Precision
from app.tables.rows import Rows
from app.tables.write import Stored, write_stores

WEIGHTS, TRAINED = "weights.safetensors", "trained.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, in evaluation mode.

    `trained` has for "user" (users,) and "item" (items,) a bool an id: whether it had an event, of
    any label, in the part that the weights were trained on; row 0 is False. `rows` has the stored
    rows by name where the checkpoint is compressed, else it is None.
    """

    artifact: Artifact
    model: Model
    name: str
    hyperparameters: dict[str, Any]
    trained: dict[str, Array]
    rows: dict[str, Rows] | None

    @property
    def curve(self) -> list[dict[str, float]]:
        """Loss and validation figures of each epoch."""
        epochs: list[dict[str, float]] = json.loads((self.artifact.path / "curve.json").read_bytes())
        return epochs


def save_checkpoint(
    folder: Path,
    model: Model,
    name: str,
    hyperparameters: Mapping[str, Any],
    trained: Mapping[str, Array],
    rows: Mapping[str, Stored] | None = None,
    precision: Precision = "float32",
    group: int = 0,
    curve: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write a checkpoint's files into the folder of a Draft.

    Args:
        name, hyperparameters: what `build_model` made the model from.
        trained: "user" and "item" bool, as `Dataset.trained` of what it was trained on.
        rows: (N, D) float32 by name, to be stored at `precision`, with a scale for each `group` of
            columns, or product codes, or projected; None: not compressed.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    known = {key: torch.from_numpy(rows) for key, rows in trained.items()}
    save_file({**known, "log_popularity": model.log_popularity.cpu().contiguous()}, folder / TRAINED)
    if source := source_of(type(model)):
        (folder / MODEL_FILE).write_bytes(source)
    described = {"name": name, "hyperparameters": dict(hyperparameters)}
    (folder / "model.json").write_text(json.dumps(described, indent=1))
    (folder / "curve.json").write_text(json.dumps([dict(line) for line in curve], indent=1))
    write_stores(folder / "rows", rows or {}, precision, group)


def load_checkpoint(path: Path, dataset: Dataset) -> Checkpoint:
    """Open, verify and rebuild the checkpoint at `path`.

    Args:
        dataset: the one that it was trained on, or another with the same ids and features, such as the
            one whose parts were merged for it: what the weights saw comes with the checkpoint.

    Raises:
        ArtifactError: damaged, trained on another data set, or written by an older version.
    """
    artifact = open_artifact(path, "checkpoint")
    described = json.loads((artifact.path / "model.json").read_bytes())
    own_file = artifact.path / MODEL_FILE
    source = str(own_file) if own_file.exists() else described["name"]
    model = build_model(source, described["hyperparameters"], dataset, fit=False)
    trained = _read_trained(artifact.path / TRAINED)
    try:
        model.load_state_dict(load_file(artifact.path / WEIGHTS))
        model.log_popularity.copy_(trained.pop("log_popularity"))
        model.user_trained.copy_(trained["user"])
        model.item_trained.copy_(trained["item"])
    except (RuntimeError, SafetensorError) as error:
        raise ArtifactError(
            f"the weights do not fit the data set at {dataset.path}",
            where=str(path),
            remedy="give the data set that it was trained on, or train again",
        ) from error
    stored = sorted((artifact.path / "rows").glob("*.json"))
    rows = {file.stem: Rows.open(file.parent, file.stem) for file in stored} or None
    known = {key: tensor.numpy() for key, tensor in trained.items()}
    return Checkpoint(artifact, model.eval(), described["name"], described["hyperparameters"], known, rows)


def copy_checkpoint(source: Path, out: Path, parents: Mapping[str, str], version: int) -> Artifact:
    """Publish a copy of the checkpoint `source`, with its figures, at `out`."""
    original = open_artifact(source, "checkpoint")
    with publish(out, "checkpoint", {}, parents, version) as draft:
        copy_files(original, draft)
        draft.figures.update(original.figures)
    return open_artifact(out, "checkpoint", verify=False)


def copy_files(source: Artifact, draft: Draft) -> None:
    """Copy the files of an artefact into the folder of a draft."""
    for name in source.files:
        (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / name, draft.path / name)


def _read_trained(path: Path) -> dict[str, torch.Tensor]:
    if not path.exists():
        raise ArtifactError(
            "the file is missing: an older version wrote this checkpoint",
            where=str(path),
            remedy="train again",
        )
    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors


def weights_of(model: Model) -> tuple[int, int]:
    """Number of weights, and their bytes."""
    tensors: list[torch.Tensor] = list(model.state_dict().values())
    return sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
