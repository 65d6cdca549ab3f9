"""What `model.loss` of a recipe makes of a model and a batch: the scalar that training lowers.

Events have candidates of their own; the targets of sequences and sets share theirs, which are the whole
catalogue or a sample of it: of the items with a training event, because what says of the others that nobody
met them is the date of the log. The formulas are in losses.py and softmax.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from app.errors import RecipeError
from app.models import losses
from app.models.softmax import Sample, full_softmax, sampled_softmax, shares

if TYPE_CHECKING:
    from app.models.base import Batch, Model, Sequences


def refuse_unfit(model: Model) -> None:
    """Raise where a model cannot be trained by its loss.

    Raises:
        RecipeError: the loss needs inner products, vectors of one length, or values of events, and the
            model has none.
    """
    loss, name = model.config.loss, type(model).__name__
    if loss == "softmax" and not model.retrieves:
        raise RecipeError(
            f"softmax compares all items by inner products, and {name} scores in another way",
            where="model.loss",
            remedy="choose 'cross_entropy', which samples items, or a model such as two_tower",
        )
    if loss == "cosine" and not model.unit_rows:
        raise RecipeError(
            f"cosine learns directions alone, and {name} ranks by the length of vectors, too",
            where="model.loss",
            remedy="choose 'cross_entropy', or the model two_tower, whose vectors have length 1",
        )
    if loss == "mse" and model.trains_on != "events":
        raise RecipeError(
            f"mse learns the values of events, and {name} which item comes next",
            where="model.loss",
            remedy="choose 'softmax', or a model that learns from events, such as mlp",
        )


def loss_of_events(model: Model, batch: Batch) -> Tensor:
    """The loss of B events with candidates (B, C)."""
    loss, positive = model.config.loss, batch.item[:, 0]
    if loss == "sampled_softmax":
        scores = model.score_all(model.state(batch), model.rows("item", positive))
        return losses.in_batch_softmax(scores, positive, model.log_popularity)
    if loss == "softmax":
        owner = torch.arange(len(positive), device=positive.device)
        target, rows = model.position[positive], model.rows("item", model.known)
        return full_softmax(model.state(batch), rows, owner, target, batch.label[:, 0])
    if loss in losses.LISTWISE:
        return losses.LISTWISE[loss](model(batch), batch.label)
    states, rows = model.state(batch), model.rows("item", batch.item)
    if loss == "cosine":
        states, rows = F.normalize(states, dim=-1), F.normalize(rows, dim=-1)
    scores = model.score(states, rows)
    return _contrast(model, scores[:, 0], scores[:, 1:]).mean()


def loss_of_targets(model: Model, batch: Sequences) -> Tensor:
    """The loss of the T targets of sequences or sets."""
    loss, target = model.config.loss, batch.target
    states, owner = model.states_of(batch)
    if loss == "softmax":
        rows = model.rows("item", model.known)
        return full_softmax(states, rows, owner, model.position[target], batch.weight)
    states, sample = states[owner], _sample(model, batch)
    target_rows, rows = model.rows("item", target), model.rows("item", sample.negatives)
    if loss in ("cross_entropy", "sampled_softmax"):
        return sampled_softmax(states, target_rows, rows, sample, batch.weight)
    if loss == "cosine":
        states, target_rows, rows = (F.normalize(t, dim=-1) for t in (states, target_rows, rows))
    negative = (states @ rows.T).masked_fill(target.unsqueeze(1) == sample.negatives, float("-inf"))
    each = _contrast(model, (states * target_rows).sum(1), negative)
    return torch.dot(each.float(), shares(target, batch.weight))


def _sample(model: Model, batch: Sequences) -> Sample:
    """The negatives of a batch; for sampled_softmax about as many targets of the batch beside them.

    Each item of this mixture keeps the probability of the half that it was drawn from.
    """
    if model.config.loss != "sampled_softmax":
        return Sample(batch.target, batch.negatives, batch.log_q)
    step = max(1, len(batch.target) // max(1, len(batch.negatives)))
    others = batch.target[::step]
    log_q = torch.cat([batch.log_q, model.log_popularity[others]])
    return Sample(batch.target, torch.cat([batch.negatives, others]), log_q)


def _contrast(model: Model, positive: Tensor, negative: Tensor) -> Tensor:
    """The losses (T,) of scores (T,) beside those of negatives (T, K), where -inf stands for none."""
    config, count = model.config, negative.shape[1]
    if config.loss == "bpr":
        return losses.pairwise(positive, negative)
    if config.loss == "cosine":
        return losses.cosine_contrastive(positive, negative, config.cosine_margin, config.cosine_weight)
    calibration = config.gbce_t if config.loss == "gbce" else 0.0
    sampled = min(1.0, count / max(1, len(model.known) - 2))  # row 0 and the target are no negatives
    return losses.gbce(positive, negative, sampled, calibration)
