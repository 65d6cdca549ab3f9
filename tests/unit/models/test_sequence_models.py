"""Models of sequences: a state knows the events up to it alone, however long the batch and its padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.data.dataset import Dataset
from app.errors import RecipeError
from app.evaluation.contract import PROMISES, Subject, broken_by
from app.models.attention_parts import CausalFilter, elapsed
from app.models.base import History, Model, Sequences
from app.models.build import build_model
from tests.tiny import tiny_dataset

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sasrec": ("sasrec", {"norm": "post", "gated": False, "heads": 1}),
    "esasrec": ("sasrec", {"heads": 4, "layers": 1, "gaps": True}),
    "bsarec": ("sasrec", {"mixer": 0.7, "attributes": False}),
    "hstu": ("hstu", {"layers": 3, "heads": 4, "positions": False}),
    "gru": ("gru4rec", {}),
    "lstm": ("gru4rec", {"cell": "lstm", "layers": 2, "gaps": True}),
    "caser": ("caser", {}),
    "caser_wider_than_histories": ("caser", {"users": False, "window": 12}),
}
EXPORT = [promise for promise in PROMISES if promise.__name__ == "exports"]
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset", untrained=5)


def subject(name: str, dataset: Dataset) -> Subject:
    source, hyperparameters = MODELS[name]
    return Subject(source, dataset, {"width": 16, **hyperparameters})


def history(*lengths: int, inputs: Any, pad: int = 0, seed: int = 0) -> History:
    """Right-aligned histories of these lengths, with `pad` columns of padding more than they need."""
    random = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    item = torch.randint(1, inputs.items, (len(lengths), longest), generator=random)
    event = torch.randint(1, inputs.events, item.shape, generator=random)
    age, gap = (torch.rand(item.shape, generator=random) * 3 for _ in range(2))
    there = torch.arange(longest, 0, -1) <= torch.tensor(lengths)[:, None]
    columns = (F.pad(column * there, (pad, 0)) for column in (item, event, age, gap))
    return History(*columns)


def states(model: Model, histories: History) -> Tensor:
    users = torch.arange(1, len(histories.item) + 1)
    return model.states(model.user_rows(users), model.history_rows(histories.item), histories)


def user_state(model: Model, histories: History) -> Tensor:
    users = torch.arange(1, len(histories.item) + 1)
    context = torch.zeros(len(users), model.inputs.context)
    return model.user_state(model.user_rows(users), model.history_rows(histories.item), histories, context)


@every_model
@torch.no_grad()
def test_a_state_is_the_user_state_of_the_history_cut_there(name: str, dataset: Dataset) -> None:
    model = subject(name, dataset).model
    histories = history(8, 5, 1, 0, inputs=model.inputs, pad=1)
    every = states(model, histories)
    for cut in range(1, histories.item.shape[1] + 1):
        before = History(*(column[:, :cut] for column in vars(histories).values()))
        torch.testing.assert_close(every[:, cut - 1], user_state(model, before), atol=1e-5, rtol=1e-4)


@every_model
@torch.no_grad()
def test_padding_changes_nothing_and_holds_the_state_of_an_empty_history(name: str, dataset: Dataset) -> None:
    model = subject(name, dataset).model
    short = states(model, history(8, 3, inputs=model.inputs))
    long = states(model, history(8, 3, inputs=model.inputs, pad=4))
    torch.testing.assert_close(long[:, 4:], short, atol=1e-5, rtol=1e-4)
    empty = user_state(model, history(0, 0, inputs=model.inputs, pad=1))
    assert empty.isfinite().all()
    for padding in long[:, :4].unbind(1):
        torch.testing.assert_close(padding, empty, atol=1e-5, rtol=1e-4)


@every_model
@torch.no_grad()
def test_an_event_and_the_order_of_events_change_the_states_from_there_on(
    name: str, dataset: Dataset
) -> None:
    model = subject(name, dataset).model
    histories = history(6, inputs=model.inputs)
    before = states(model, histories)[0]
    histories.item[0, 3] = histories.item[0, 3] % (model.inputs.items - 1) + 1
    after = states(model, histories)[0]
    assert torch.equal(before[:3], after[:3])
    assert ((before - after).abs().amax(1) > 1e-4)[3:].all()
    histories.item[0, 4:] = histories.item[0, 4:].flip(0)
    assert not torch.allclose(after[5], states(model, histories)[0, 5], atol=1e-4)


@every_model
@pytest.mark.parametrize("promise", EXPORT, ids=lambda promise: promise.__name__)
def test_every_variant_keeps_the_promise(name: str, promise: Any, dataset: Dataset) -> None:
    assert broken_by(subject(name, dataset), promise) == ""


@every_model
def test_overfits_a_few_sequences_alike_under_a_seed(name: str, dataset: Dataset) -> None:
    source, hyperparameters = MODELS[name]
    losses = [_train(source, {"width": 32, "dropout": 0.1, **hyperparameters}, dataset) for _ in range(2)]
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.6 * losses[0][0]


@every_model
def test_trains_in_bfloat16(name: str, dataset: Dataset) -> None:
    source, hyperparameters = MODELS[name]
    with torch.autocast("cpu", torch.bfloat16):
        losses = _train(source, {"width": 32, "dropout": 0.1, **hyperparameters}, dataset, steps=10)
    assert losses[-1] < losses[0]


def _train(source: str, hyperparameters: dict[str, Any], dataset: Dataset, steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    model = build_model(source, {**hyperparameters, "table": "dense"}, dataset)
    batch = _sequences(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.sparse = False
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    every = torch.arange(model.inputs.items)
    for _ in range(steps):
        logits = model.states_of_targets(batch) @ model.item_rows(every).T
        loss = F.cross_entropy(logits.float(), batch.target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _sequences(model: Model) -> Sequences:
    """32 users of four events, each to be predicted from those before it; the first from none."""
    histories = history(*[4] * 32, inputs=model.inputs, pad=1)
    user, number = torch.meshgrid(torch.arange(32), torch.arange(4), indexing="ij")
    none = torch.zeros(0)
    owner = (user * 5 + number).flatten()
    return Sequences(
        torch.arange(1, 33),
        histories,
        owner,
        histories.item[:, 1:].flatten(),
        torch.ones(128),
        none.long(),
        none,
    )


def test_an_item_of_which_nothing_is_known_has_no_direction_at_first(dataset: Dataset) -> None:
    torch.manual_seed(0)
    model = build_model("sasrec", {"width": 16}, dataset)
    nothing, others = model.item_rows(torch.arange(30)).split([1, 29])
    assert not nothing.any()  # or all inputs would be nearly alike, and all users with them
    assert others.std(0).norm() > others.mean(0).norm()


def test_the_filter_is_the_published_one_at_the_last_event() -> None:
    torch.manual_seed(0)
    events = torch.randn(3, 50, 4)
    causal = CausalFilter(4, 50, frequencies=3)
    torch.nn.init.normal_(causal.rest)
    spectrum = torch.fft.rfft(events, dim=1, norm="ortho")
    spectrum[:, 3:] = 0
    low = torch.fft.irfft(spectrum, n=50, dim=1, norm="ortho")
    published = low + causal.rest.square() * (events - low)
    filtered = causal(events, torch.ones(3, 50), slice(None))
    torch.testing.assert_close(filtered[:, -1], published[:, -1])


def test_the_filter_that_keeps_every_frequency_changes_nothing() -> None:
    events = torch.randn(2, 9, 4)
    for length in (9, 10):
        torch.testing.assert_close(CausalFilter(4, length, 99)(events, torch.ones(2, 9), slice(None)), events)


def test_hours_between_events_are_the_sums_of_the_gaps_between_them() -> None:
    gap = torch.log1p(torch.tensor([[0.0, 5.0, 2.0, 0.0, 30.0]]))
    item = torch.tensor([[0, 1, 1, 1, 1]])
    none = torch.zeros(1, 5)
    hours = elapsed(History(item, item, none, gap))[0]
    assert hours[4].tolist() == pytest.approx([37, 32, 30, 30, 0], abs=1e-4)
    assert hours[1, 2:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_heads_must_divide_the_width(name: str, dataset: Dataset) -> None:
    with pytest.raises(RecipeError, match=r"heads = 3: .*width is 16"):
        build_model(name, {"width": 16, "heads": 3}, dataset)
