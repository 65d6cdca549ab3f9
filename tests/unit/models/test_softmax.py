"""The softmax over all items in blocks: known answers, gradients as autograd's, memory, refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from app.models import softmax as module
from app.models.softmax import Sample, full_softmax, sampled_softmax

Gradients = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of a few states, so that small examples have several."""
    monkeypatch.setattr(module, "FEWEST_STATES", 3)
    monkeypatch.setitem(module.BLOCK, "cpu", 1)
    yield


def whole(states: Tensor, rows: Tensor, owner: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The same by autograd, from all logits at once."""
    each = F.cross_entropy((states @ rows[1:].T)[owner], target - 1, reduction="none")
    return (each * weight).sum() / weight.sum()


def test_known_answer() -> None:
    """Logits (log 3, 0) and (0, 0): log(4 / 3) and log 2, the second with three times the weight."""
    rows = torch.tensor([[50.0, 50.0], [math.log(3), 0.0], [0.0, 0.0]], requires_grad=True)
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = full_softmax(states, rows, torch.arange(2), torch.tensor([1, 2]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(loss, torch.tensor((math.log(4 / 3) + 3 * math.log(2)) / 4))
    loss.backward()
    # Shares 1/4 and 3/4; probabilities (3/4, 1/4) and (1/2, 1/2). Row 0 takes no part.
    expected = torch.tensor([[0.0, 0.0], [-1 / 16, 3 / 8], [1 / 16, -3 / 8]])
    torch.testing.assert_close(rows.grad, expected)
    torch.testing.assert_close(
        states.grad, torch.tensor([[-math.log(3) / 16, 0.0], [3 * math.log(3) / 8, 0]])
    )


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(2, 12), st.integers(1, 5), st.integers(1, 14)),
    scale=st.sampled_from([0.01, 1.0, 4.0]),
    seed=st.integers(0, 99),
)
def test_gradients_equal_autograds(shape: tuple[int, int, int, int], scale: float, seed: int) -> None:
    states_, items, width, targets = shape
    random = torch.Generator().manual_seed(seed)
    states, rows = (torch.randn(n, width, generator=random) * scale for n in (states_, items))
    owner = torch.randint(states_, (targets,), generator=random)
    target = torch.randint(1, items, (targets,), generator=random)
    weight = torch.rand(targets, generator=random) + 0.1
    values = [
        gradients_of(function, states, rows, owner, target, weight) for function in (full_softmax, whole)
    ]
    (loss, *ours), (expected_loss, *expected) = values
    torch.testing.assert_close(loss, expected_loss, atol=1e-4, rtol=1e-5)  # of logits up to 200
    for gradient, expected_gradient in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


def gradients_of(function: object, states: Tensor, rows: Tensor, *rest: Tensor) -> Gradients:
    states, rows = states.clone().requires_grad_(), rows.clone().requires_grad_()
    loss: Tensor = function(states, rows, *rest)  # type: ignore[operator]
    (loss * 3).backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None and rows.grad is not None
    return loss.detach(), states.grad, rows.grad


def test_logits_far_from_zero_overflow_nothing() -> None:
    states, rows = torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    ids = torch.arange(2), torch.tensor([2, 2]), torch.ones(2)
    for ours, expected in zip(
        gradients_of(full_softmax, states, rows, *ids), gradients_of(whole, states, rows, *ids), strict=True
    ):
        torch.testing.assert_close(ours, expected)
    assert full_softmax(states, rows, *ids).item() == 1000.0


def test_targets_without_weight_count_nothing() -> None:
    states, rows, owner = torch.randn(2, 3), torch.randn(5, 3), torch.arange(2)
    both = full_softmax(states, rows, owner, torch.tensor([4, 1]), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(both, full_softmax(states[:1], rows, owner[:1], torch.tensor([4])))
    assert full_softmax(states, rows, owner, torch.tensor([4, 1]), torch.zeros(2)).item() == 0.0


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32() -> None:
    torch.manual_seed(0)
    states, rows = torch.randn(40, 16), torch.randn(300, 16)
    ids = torch.arange(40), torch.randint(1, 300, (40,)), torch.ones(40)
    expected = gradients_of(whole, states, rows, *ids)
    with torch.autocast("cpu", torch.bfloat16):
        low = gradients_of(full_softmax, states.bfloat16(), rows, *ids)
    assert [value.dtype for value in low] == [torch.float32, torch.bfloat16, torch.float32]
    for ours, exact in zip(low, expected, strict=True):
        assert (ours.float() - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("again", [{"create_graph": True}, {"retain_graph": True}])
def test_more_than_one_gradient_is_refused_in_words(again: dict[str, bool]) -> None:
    states = torch.randn(2, 3, requires_grad=True)
    loss = full_softmax(states, torch.randn(5, 3), torch.arange(2), torch.tensor([4, 1]))
    with pytest.raises(NotImplementedError, match="whole logits where more is needed"):
        for _ in range(2):
            torch.autograd.grad(loss, states, **again)


def test_without_gradients_none_is_made() -> None:
    with torch.no_grad():
        loss = full_softmax(torch.zeros(2, 3), torch.zeros(5, 3), torch.arange(2), torch.tensor([4, 1]))
    torch.testing.assert_close(loss, torch.tensor(math.log(4)))


class _Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.BLOCK, "cpu", 4000)
    states, rows = torch.randn(200, 4).requires_grad_(), torch.randn(401, 4).requires_grad_()
    with _Largest() as largest:
        loss = full_softmax(states, rows, torch.arange(200), torch.randint(1, 401, (200,)))
        loss.backward()  # type: ignore[no-untyped-call]
    assert largest.elements == 4000  # where all logits are 80,000


def test_sampled_softmax_by_hand() -> None:
    """The draws stand for 1 / (2 * 1/4) = 2 items each, but the second is the target itself."""
    states, rows = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[math.log(3)], [math.log(9)]])
    target, negatives = torch.tensor([7]), torch.tensor([5, 7])
    sample = Sample(target, negatives, torch.full((2,), math.log(1 / 4)))
    loss = sampled_softmax(states, torch.tensor([[math.log(9)]]), rows, sample)
    torch.testing.assert_close(loss, torch.tensor(math.log((9 + 2 * 3) / 9)))
    loss.backward()  # type: ignore[no-untyped-call]
    # Probabilities 9/15 of the target and 6/15 of the draw.
    expected = -6 / 15 * math.log(9) + 6 / 15 * math.log(3)
    torch.testing.assert_close(states.grad, torch.tensor([[expected]]))


def test_a_sample_of_the_target_alone_teaches_nothing() -> None:
    states, row = torch.randn(1, 3).requires_grad_(), torch.randn(1, 3)
    sample = Sample(torch.tensor([2]), torch.tensor([2, 2]), torch.zeros(2))
    loss = sampled_softmax(states, row, row.expand(2, 3), sample)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, torch.tensor(0.0))
    torch.testing.assert_close(states.grad, torch.zeros(1, 3))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_gradients_of_sampled_softmax_equal_autograds(targets: int, negatives: int, seed: int) -> None:
    torch.manual_seed(seed)
    target, drawn = torch.randint(1, 5, (targets,)), torch.randint(1, 5, (negatives,))
    sample, weight = Sample(target, drawn, torch.randn(negatives)), torch.rand(targets) + 0.1

    def from_whole(states: Tensor, own: Tensor, rows: Tensor) -> Tensor:
        logits = states @ rows.T - sample.log_q - math.log(negatives)
        logits = logits.masked_fill(target[:, None] == drawn, float("-inf"))
        own_logits = (states * own).sum(1, keepdim=True)
        each = -torch.cat([own_logits, logits], 1).log_softmax(1)[:, 0]
        return (each * weight).sum() / weight.sum()

    arguments = [torch.randn(count, 3).requires_grad_() for count in (targets, targets, negatives)]
    ours, expected = sampled_softmax(*arguments, sample, weight), from_whole(*arguments)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    pairs = zip(torch.autograd.grad(ours, arguments), torch.autograd.grad(expected, arguments), strict=True)
    for gradient, expected_gradient in pairs:
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)
