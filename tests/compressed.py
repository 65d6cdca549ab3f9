"""A trained checkpoint compressed as a recipe says, and what is left of its quality."""

from __future__ import annotations

from pathlib import Path

from app.artifact import Artifact
from app.compression.compress import compress
from app.data.dataset import Dataset
from app.evaluation.evaluate import evaluate
from app.evaluation.scorer import ModelScorer
from app.recipe import Recipe
from app.training.checkpoint import load_checkpoint


def compressed(
    recipe: Recipe, dataset: Dataset, trained: Path, out: Path, part: str = "test"
) -> tuple[Artifact, float]:
    """The compressed checkpoint at `out`, and its NDCG@10 on a part."""
    artifact = compress(recipe, dataset, trained, out)
    checkpoint = load_checkpoint(artifact.path, dataset)
    scorer = ModelScorer(checkpoint.model, checkpoint.rows)
    return artifact, evaluate(recipe, dataset, scorer, part=part, baselines=False).figures["ndcg@10"]
