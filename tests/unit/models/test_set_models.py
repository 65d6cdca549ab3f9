"""What models of sets learn from a batch, against plain arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.data.dataset import Dataset
from app.models.base import Batch, History, Model, Sequences
from app.models.build import build_model
from app.models.cfgan import Cfgan
from app.recipe import Train
from app.training.batches.sets import SetBatches
from tests.tiny import tiny_dataset

MODELS = ("mult_vae", "simplex", "item2vec", "cfgan")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


def built(name: str, dataset: Dataset, **hyperparameters: Any) -> Model:
    torch.manual_seed(0)
    model = build_model(name, {"width": 6, **hyperparameters}, dataset)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def batch_of(dataset: Dataset, model: Model) -> Sequences:
    settings = Train(batch_size=200, negatives=8, id_dropout=0.0)
    return next(SetBatches(dataset, settings, model.config.loss, 3).epoch(0))


def without_targets(batch: Sequences) -> Batch:
    """A request a target: its user, with the set but for the target."""
    items = batch.history.item[batch.owner]
    rows = [row[(row != target) & (row > 0)] for row, target in zip(items, batch.target, strict=True)]
    padded = torch.zeros_like(items)
    for row, kept in zip(padded, rows, strict=True):
        row[len(row) - len(kept) :] = kept
    none = torch.zeros(len(items), 0)
    history = History(padded, padded, none, none)
    return Batch(batch.user[batch.owner], batch.target[:, None], history, none, none)


@pytest.mark.parametrize("name", MODELS)
def test_padding_means_nothing(name: str, dataset: Dataset) -> None:
    model = built(name, dataset)
    items, none = torch.tensor([[3, 5, 9]]), torch.zeros(1, 0)

    def state(items: Tensor) -> Tensor:
        history = History(items, (items > 0).long(), none, none)
        return model.user_state(model.user_rows(torch.tensor([2])), model.history_rows(items), history, none)

    torch.testing.assert_close(state(items), state(torch.cat([torch.zeros(1, 4).long(), items], 1)))
    assert bool(state(torch.zeros(1, 3).long()).isfinite().all())


def test_the_autoencoder_learns_the_likelihood_and_the_divergence(dataset: Dataset) -> None:
    """Without draws and dropout, the loss is that of the formulas, over targets."""
    model = built("mult_vae", dataset, latent=4, divergence=0.3)
    batch = batch_of(dataset, model)
    rows, mask = model.history_rows(batch.history.item), batch.history.mask.unsqueeze(2)
    hidden = torch.tanh((rows * mask).sum(1) / mask.sum(1).sqrt() + model.begin)
    mean, spread = model.encoder(hidden).chunk(2, 1)
    deviation = torch.distributions.Normal(mean, spread.exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    divergence = torch.distributions.kl_divergence(deviation, prior).sum(1)
    states, _ = model.states_of(batch)
    logits = states @ model.item_rows(torch.arange(1, model.inputs.items)).T
    likelihood = logits.log_softmax(1)[batch.owner, batch.target - 1]
    expected = (0.3 * divergence[batch.owner] - likelihood).mean()
    torch.testing.assert_close(model.loss(batch), expected)
    model.train()
    assert model.loss(batch) != model.loss(batch)  # draws, and items left out


def test_simplex_predicts_a_target_from_the_other_items(dataset: Dataset) -> None:
    model = built("simplex", dataset, own=0.4, temperature=1.0)
    batch = batch_of(dataset, model)
    states, owner = model.states_of(batch)
    torch.testing.assert_close(states[owner], model.state(without_targets(batch)))
    torch.testing.assert_close(states.norm(dim=1), torch.ones(len(states)))


@pytest.mark.parametrize("window", [1, 1000])
def test_item2vec_predicts_a_target_from_one_item_near_it(dataset: Dataset, window: int) -> None:
    model = built("item2vec", dataset, window=window)
    batch = batch_of(dataset, model)
    vectors = model.history_rows(torch.arange(model.inputs.items))
    drawn = torch.stack([model.states_of(batch)[0] for _ in range(30)])
    distances = torch.cdist(drawn[..., :-1].transpose(0, 1), vectors.expand(len(batch.target), -1, -1))
    chosen = distances.argmin(2)  # (T, 30)
    seen = 0
    for owner, target, own in zip(batch.owner.tolist(), batch.target.tolist(), chosen, strict=True):
        items = [item for item in batch.history.item[owner].tolist() if item]
        at = items.index(target)
        near = set(items[max(0, at - window) : at + window + 1]) - {target}
        assert set(own.tolist()) <= near
        seen += set(own.tolist()) == near
    assert window > 1 or seen > 0.9 * len(chosen)


def test_discriminator_and_generator_learn_each_its_part(dataset: Dataset) -> None:
    """The loss and the gradients of both sides, from matrices of users and items."""
    model = built("cfgan", dataset, zero=2.0, adversarial=0.5)
    assert isinstance(model, Cfgan)
    batch = batch_of(dataset, model)
    users, items = len(batch.user), model.inputs.items
    real = torch.zeros(users, items).index_put((batch.owner, batch.target), torch.ones(()))
    drawn = torch.zeros(items).index_add(0, batch.negatives, torch.ones(len(batch.negatives)))
    liked = torch.sigmoid(model.states_of(batch)[0] @ model.item_rows(torch.arange(items)).T)
    fake = liked * (real + (1 - real) * drawn)
    size = real.sum(1, keepdim=True).sqrt()
    vectors = model.judged_items.lookup(torch.arange(items))

    def judged(sets: Tensor) -> Tensor:
        logits: Tensor = model.judge(torch.cat([sets @ vectors / size, real @ vectors / size], 1))  # type: ignore[union-attr]
        return logits

    learned = F.softplus(-judged(real)) + F.softplus(judged(fake.detach()))
    deceived = F.softplus(-judged(fake)).mean()
    reconstructed = (real * (1 - liked) ** 2).sum() / real.sum()
    zeros = (liked**2 * (1 - real) * drawn).sum() / (users * len(batch.negatives))
    discriminator = 0.5 * learned.mean()
    generator = 0.5 * deceived + reconstructed + 2.0 * zeros
    torch.testing.assert_close(model.loss(batch), discriminator + generator)
    of_discriminator = [*model.judge.parameters(), *model.judged_items.parameters()]
    of_generator = [*model.hidden.parameters(), *model.outputs_of_items.parameters()]
    for part, weights in ((discriminator, of_discriminator), (generator, of_generator)):
        expected = torch.autograd.grad(part, weights, retain_graph=True)
        reached = torch.autograd.grad(model.loss(batch), weights)
        for gradient, own in zip(reached, expected, strict=True):
            torch.testing.assert_close(gradient.to_dense(), own.to_dense(), atol=1e-6, rtol=1e-4)
