"""Row-wise Adagrad by hand, schedules, clipping, and gradients averaged over workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.data.dataset import Dataset
from app.models.build import build_model
from app.recipe import Train
from app.training.gradients import average
from app.training.optimizers import Optimizers, RowwiseAdagrad, clip, compact, schedule, touched
from tests.tiny import tiny_dataset


def embedding(sparse: bool) -> nn.Embedding:
    table = nn.Embedding(4, 2, sparse=sparse)
    nn.init.ones_(table.weight)
    return table


def lose(table: nn.Embedding, ids: list[int], factor: list[float]) -> None:
    """Gradient `factor` on each of the rows, added where a row comes twice."""
    table.weight.grad = None
    (table(torch.tensor(ids)) * torch.tensor(factor)).sum().backward()


@pytest.mark.parametrize("sparse", [True, False])
def test_rowwise_adagrad_by_hand(sparse: bool) -> None:
    table = embedding(sparse)
    optimizer = RowwiseAdagrad(iter(table.parameters()), lr=0.5)
    lose(table, [1, 1, 2], [1.0, 2.0])
    optimizer.step()
    # Row 1: gradient (2, 4), mean square 10; row 2: gradient (1, 2), mean square 2.5.
    expected = torch.ones(4, 2)
    expected[1] -= 0.5 * torch.tensor([2.0, 4.0]) / 10**0.5
    expected[2] -= 0.5 * torch.tensor([1.0, 2.0]) / 2.5**0.5
    torch.testing.assert_close(table.weight.detach(), expected)
    lose(table, [1], [3.0, 0.0])
    optimizer.step()
    expected[1] -= 0.5 * torch.tensor([3.0, 0.0]) / (10 + 4.5) ** 0.5
    torch.testing.assert_close(table.weight.detach(), expected)
    assert optimizer.state[table.weight]["sum"].tolist() == pytest.approx([0.0, 14.5, 2.5, 0.0])


def test_decay_is_felt_by_rows_in_use() -> None:
    table = embedding(sparse=True)
    lose(table, [1], [0.0, 0.0])
    RowwiseAdagrad(iter(table.parameters()), lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(table.weight.detach()[1], torch.tensor([0.5, 0.5]))  # g = .1, step .5
    assert (table.weight[[0, 2, 3]] == 1).all()


def test_touched_is_coalesce() -> None:
    gradient = torch.sparse_coo_tensor(
        torch.tensor([[3, 1, 3]]), torch.randn(3, 2), (5, 2), check_invariants=True
    )
    rows, values = touched(gradient)
    assert rows.tolist() == [1, 3]
    torch.testing.assert_close(values, gradient.coalesce().values())
    torch.testing.assert_close(compact(gradient).to_dense(), gradient.to_dense())


def test_clip_takes_the_joint_norm() -> None:
    table, weight = embedding(sparse=True), nn.Parameter(torch.ones(2))
    lose(table, [1, 1], [1.5, 0.0])
    weight.grad = torch.tensor([0.0, 4.0])
    clip([table.weight, weight], 1.0)
    assert table.weight.grad is not None
    torch.testing.assert_close(table.weight.grad.to_dense()[1], torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(weight.grad, torch.tensor([0.0, 0.8]))
    clip([weight], 5.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.0, 0.8]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("constant", [0.5, 1.0, 1.0, 1.0]), ("linear", [0.5, 1.0, 0.5, 0.0]), ("cosine", [0.5, 1.0, 0.5, 0.0])],
)
def test_schedules(kind: str, expected: list[float]) -> None:
    settings = Train.model_validate({"schedule": kind, "warmup_steps": 2})
    assert [schedule(settings, step, 10) for step in (0, 2, 6, 10)] == pytest.approx(expected)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [("rowwise_adagrad", ["SGD", "RowwiseAdagrad"]), ("same", ["SGD"])],
)
def test_tables_have_their_own_optimizer(dataset: Dataset, choice: str, kinds: list[str]) -> None:
    model = build_model("mlp", {}, dataset)
    settings = Train.model_validate({"optimizer": "sgd", "table_optimizer": choice})
    optimizers = Optimizers(model, settings, 10)
    assert [type(o).__name__ for o in optimizers.each] == kinds
    parameters = [p for o in optimizers.each for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}


def _worker(rank: int, folder: str, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    gradients = _gradients(rank)
    average(gradients, 2)
    results[rank] = [p.grad.to_dense().tolist() for p in gradients]  # type: ignore[union-attr]
    torch.distributed.destroy_process_group()


def _gradients(rank: int) -> list[nn.Parameter]:
    """Rank 0 touches rows 0 and 1, rank 1 rows 1, 2 and 3; the last weight is touched by one alone."""
    table, dense, lonely = embedding(sparse=True), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))
    lose(table, [[0, 1, 1], [1, 2, 3]][rank], [1.0, 10.0])
    dense.grad = torch.tensor([1.0, 2.0, 3.0]) * (rank + 1)
    if rank:
        lonely.grad = torch.tensor([8.0])
    return [table.weight, dense, lonely]


def test_two_gloo_workers_end_with_the_mean(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        workers = [context.Process(target=_worker, args=(r, str(tmp_path), results)) for r in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        gradients = dict(results)
    expected = [_mean(k) for k in range(3)]
    assert gradients[0] == gradients[1]
    for mean, expected_mean in zip(gradients[0], expected, strict=True):
        torch.testing.assert_close(torch.tensor(mean), expected_mean)


def _mean(number: int) -> Tensor:
    gradients = [_gradients(rank)[number].grad for rank in (0, 1)]
    dense = [torch.zeros(1) if g is None else g.to_dense() for g in gradients]
    return (dense[0] + dense[1]) / 2


def test_one_worker_needs_no_group() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    average([weight], 1)
    assert weight.grad.tolist() == [1.0, 2.0]
