"""What every model in app/models promises. A new file there is tested here without a word."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from app.bundle.export.static_rows import static_rows
from app.data.dataset import Dataset
from app.evaluation.evaluate import validate
from app.evaluation.scorer import ModelScorer
from app.models.base import Batch, History, Model
from app.models.build import build_model
from app.models.discovery import model_class, model_config, model_names
from app.recipe import Recipe, parse
from app.tables.rows import Rows, write_rows
from app.training.checkpoint import Checkpoint, load_checkpoint
from app.training.train import fit
from tests import bundles
from tests.tiny import tiny_dataset

TABLES: dict[str, dict[str, Any]] = {"dense": {}, "hashed": {"buckets": 16}}

pytestmark = pytest.mark.parametrize("name", model_names())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset", users=200, events=4000)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A data set with users and items that training did not meet."""
    return tiny_dataset(tmp_path_factory.mktemp("sparse") / "dataset", untrained=5)


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Each model after a few epochs, through a checkpoint on disk."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name in model_names():
        fit(recipe(name), dataset, folder / name)
        found[name] = load_checkpoint(folder / name, dataset)
    return found


def recipe(name: str) -> Recipe:
    training = {"epochs": 5, "batch_size": 128, "learning_rate": 0.01, "workers": 0, "valid_users": 200}
    return parse({"model": {"name": name}, "train": training, "evaluate": {"baselines": []}}, "test")


def batch(model: Model, rows: int, candidates: int, length: int, seed: int = 0) -> Batch:
    """Requests at random; the history of row 0 is empty and its user unknown."""
    sizes, random = model.inputs, torch.Generator().manual_seed(seed)

    def ids(limit: int, *shape: int) -> Tensor:
        return torch.randint(1, limit, shape, generator=random)

    history = History(
        ids(sizes.items, rows, length), ids(sizes.events, rows, length), torch.rand(rows, length) * 5
    )
    history.item[:1] = 0
    history.event[:1] = 0
    user = ids(sizes.users, rows)
    user[:1] = 0
    return Batch(
        user,
        ids(sizes.items, rows, candidates),
        history,
        torch.rand(rows, sizes.context),
        torch.zeros(rows, candidates),
    )


def unknown_row(model: Model, rows: str, row: int) -> Tensor:
    """What a piece gives for the unknown id, once the content of the unknown id is that of `row`."""
    side = "user" if rows == "user" else "item"
    buffers = [model.get_buffer(f"{side}_dense"), model.get_buffer(f"{side}_category")]
    kept = [buffer[0].clone() for buffer in buffers]
    for buffer in buffers:
        buffer[0] = buffer[row]
    values: Tensor = getattr(model, f"{rows}_rows")(torch.zeros(1, dtype=torch.int64))[0].detach()
    for buffer, content in zip(buffers, kept, strict=True):
        buffer[0] = content
    return values


@pytest.mark.parametrize("table", ["dense", "hashed"])
def test_an_untrained_id_has_the_row_of_the_unknown_with_its_own_content(
    name: str, table: str, sparse: Dataset, tmp_path: Path
) -> None:
    model = bundles.random_model(name, sparse, table=table, table_options=TABLES[table])
    served = static_rows(model)
    ids = {side: np.flatnonzero(~known)[1:] for side, known in sparse.trained.items()}
    assert all(len(rows) == 5 for rows in ids.values())
    for rows, values in served.items():
        for row in ids["user" if rows == "user" else "item"]:
            np.testing.assert_allclose(values[row], unknown_row(model, rows, int(row)), atol=1e-5)
        known = torch.from_numpy(np.flatnonzero(sparse.trained["user" if rows == "user" else "item"]))
        piece: Tensor = getattr(model, f"{rows}_rows")(known).detach()
        np.testing.assert_allclose(values[known.numpy()], piece.numpy(), atol=1e-6)
    requests = batch(model, 6, 8, sparse.schema.history)
    requests.user[1:3] = torch.from_numpy(ids["user"][:2])
    requests.item[:, :2] = torch.from_numpy(ids["item"][:2])
    requests.history.item[3, -1] = int(ids["item"][2])
    stored = {rows: served_rows_on_disk(tmp_path, rows, values) for rows, values in served.items()}
    live, from_disk = ModelScorer(model), ModelScorer(model, stored)
    torch.testing.assert_close(live.all(requests), from_disk.all(requests), atol=1e-5, rtol=1e-4)
    scores = live.candidates(requests)
    torch.testing.assert_close(scores, from_disk.candidates(requests), atol=1e-5, rtol=1e-4)


def served_rows_on_disk(folder: Path, name: str, values: Any) -> Rows:
    write_rows(folder, name, values, "float32")
    return Rows.open(folder, name)


@pytest.mark.parametrize(("rows", "candidates"), [(1, 1), (1, 7), (5, 1), (3, 4)])
def test_shapes(name: str, dataset: Dataset, rows: int, candidates: int) -> None:
    model = build_model(name, {}, dataset).eval()
    asked = batch(model, rows, candidates, dataset.schema.history)
    logits = model(asked)
    assert logits.shape == (rows, candidates)
    assert logits.dtype == torch.float32
    items = torch.arange(model.inputs.items)
    everything = model.score_all(model.state(asked), model.item_rows(items))
    assert everything.shape == (rows, len(items))
    torch.testing.assert_close(everything.gather(1, asked.item), logits, atol=1e-5, rtol=1e-4)


def test_rows_may_be_made_in_advance(name: str, trained: dict[str, Checkpoint]) -> None:
    model = trained[name].model
    asked = batch(model, 4, 6, model.inputs.history)
    users, items = torch.arange(model.inputs.users), torch.arange(model.inputs.items)
    user, past, item = model.user_rows(users), model.history_rows(items), model.item_rows(items)
    state = model.user_state(user[asked.user], past[asked.history.item], asked.history, asked.context)
    torch.testing.assert_close(model.score(state, item[asked.item]), model(asked))


def test_a_row_does_not_depend_on_its_neighbours(name: str, trained: dict[str, Checkpoint]) -> None:
    model = trained[name].model
    both = batch(model, 2, 5, model.inputs.history)
    h = both.history
    alone = Batch(
        both.user[1:],
        both.item[1:, ::2],
        History(h.item[1:], h.event[1:], h.age[1:]),
        both.context[1:],
        both.label[1:, ::2],
    )
    torch.testing.assert_close(model(alone), model(both)[1:, ::2], atol=1e-5, rtol=1e-4)


def test_every_weight_learns(name: str, dataset: Dataset) -> None:
    torch.manual_seed(0)
    model = build_model(name, {}, dataset)
    if not model.learns:
        assert not list(model.parameters())
        return
    asked = batch(model, 16, 1 if model.config.loss == "sampled_softmax" else 5, dataset.schema.history)
    asked.label[:, 0] = 1
    model.loss(asked).backward()  # type: ignore[no-untyped-call]
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.to_dense().any()]
    assert not still


def test_learns_the_planted_tastes(name: str, dataset: Dataset, trained: dict[str, Checkpoint]) -> None:
    def quality(model: Model) -> float:
        return validate(recipe(name), dataset, ModelScorer(model), 200, 0)["ndcg@10"]

    found, popularity = quality(trained[name].model), quality(trained["popularity"].model)
    if name == "popularity":
        shuffled = build_model(name, {}, dataset)
        popularity = quality(_shuffle(shuffled))
    assert found > 1.15 * popularity


def _shuffle(model: Model) -> Model:
    for buffer in model.buffers():
        buffer.copy_(buffer[torch.randperm(len(buffer), generator=torch.Generator().manual_seed(0))])
    return model


def test_a_checkpoint_gives_the_same_logits(name: str, dataset: Dataset, tmp_path: Path) -> None:
    from app.artifact import publish
    from app.training.checkpoint import save_checkpoint

    torch.manual_seed(1)
    model = build_model(name, {}, dataset).eval()
    with publish(tmp_path / "checkpoint", "checkpoint", {}, {}) as draft:
        save_checkpoint(draft.path, model, name, {}, dataset.trained)
    loaded = load_checkpoint(tmp_path / "checkpoint", dataset)
    asked = batch(model, 4, 6, dataset.schema.history)
    assert torch.equal(loaded.model(asked), model(asked))
    assert not loaded.model.training and loaded.rows is None and loaded.name == name


def test_unknown_ids_score(name: str, trained: dict[str, Checkpoint]) -> None:
    model = trained[name].model
    asked = batch(model, 3, 4, model.inputs.history)
    asked.user[:] = 0
    asked.history.item[:] = 0
    asked.item[:, 0] = 0
    logits = model(asked)
    assert logits.isfinite().all()
    assert torch.equal(logits[0, 0], logits[1, 0]) or model.inputs.context > 0


def test_an_unknown_user_gets_better_than_chance(
    name: str, dataset: Dataset, trained: dict[str, Checkpoint]
) -> None:
    """Row 0 and no history: what is then ranked first is what many people like."""
    model = trained[name].model
    asked = batch(model, 1, 1, dataset.schema.history)
    asked.context[:] = 0
    asked.item = torch.arange(1, model.inputs.items)[None]
    order = ModelScorer(model).candidates(asked)[0].argsort(descending=True).numpy() + 1
    popularity = dataset.popularity
    assert popularity[order[:10]].mean() > popularity[1:].mean()


class _Pieces(nn.Module):
    """One exported piece, on plain tensors."""

    def __init__(self, model: Model, piece: str) -> None:
        super().__init__()
        self.model, self.piece = model, piece

    def forward(self, *tensors: Any) -> Tensor:
        if self.piece == "score":
            return self.model.score(*tensors)
        user, past, item, event, age, context = tensors
        return self.model.user_state(user, past, History(item, event, age), context)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_pieces_run_in_onnx(name: str, trained: dict[str, Checkpoint]) -> None:
    model = trained[name].model
    asked, other = (batch(model, b, c, model.inputs.history, seed=b) for b, c in ((3, 4), (5, 2)))
    state = model.state(other)
    found = _through_onnx(
        _Pieces(model, "user_state"), _state_inputs(model, asked), _state_inputs(model, other)
    )
    np.testing.assert_allclose(found, state.detach().numpy(), atol=1e-4)
    found = _through_onnx(
        _Pieces(model, "score"),
        (model.state(asked), model.item_rows(asked.item)),
        (state, model.item_rows(other.item)),
    )
    np.testing.assert_allclose(found, model(other).detach().numpy(), atol=1e-4)


def _state_inputs(model: Model, asked: Batch) -> tuple[Tensor, ...]:
    h = asked.history
    return (model.user_rows(asked.user), model.history_rows(h.item), h.item, h.event, h.age, asked.context)


def _through_onnx(piece: nn.Module, example: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Any:
    """The output of a graph traced on `example`, for `inputs` of other sizes."""
    buffer, names = io.BytesIO(), [f"t{k}" for k in range(len(example))]
    free = {f"t{k}": {0: "B"} for k in range(len(example))}
    if len(example) == 2:
        free["t1"][1] = "C"
    torch.onnx.export(
        piece.eval(), example, buffer, input_names=names, dynamic_axes=free, opset_version=18, dynamo=False
    )
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    wanted = {node.name for node in session.get_inputs()}
    feeds = {n: t.detach().numpy() for n, t in zip(names, inputs, strict=True) if n in wanted}
    return session.run(None, feeds)[0]


def test_space_holds_valid_hyperparameters(name: str) -> None:
    for key, choice in model_class(name).SPACE.items():
        values = choice if isinstance(choice, list) else choice[:2]
        for value in values:
            assert getattr(model_config(name, {key: value}), key) == value


def test_every_choice_of_the_space_ranks(name: str, dataset: Dataset) -> None:
    for key, choice in model_class(name).SPACE.items():
        for value in choice if isinstance(choice, list) else choice[:2]:
            model = build_model(name, {key: value}, dataset).eval()
            asked = batch(model, 3, 4, dataset.schema.history)
            items = torch.arange(model.inputs.items)
            everything = model.score_all(model.state(asked), model.item_rows(items))
            torch.testing.assert_close(everything.gather(1, asked.item), model(asked), atol=1e-5, rtol=1e-4)


def test_hashed_tables_fit_every_model(name: str, dataset: Dataset) -> None:
    model = build_model(name, {"table": "hashed", "table_options": {"buckets": 16}}, dataset)
    assert model(batch(model, 2, 3, dataset.schema.history)).isfinite().all()
