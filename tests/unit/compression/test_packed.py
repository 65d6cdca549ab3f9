"""Rows that training learns as they are stored: what is felt is what a store gives back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.compression.packed import CodedRows, CodeRows, NumberRows, pack, unpack
from app.models.build import build_model
from app.tables.codes import learn_codes
from app.tables.quantise import Integers
from app.tables.rows import Rows
from app.tables.write import write_rows
from tests.tiny import tiny_dataset

IDS = torch.tensor([[3, 0, 3], [39, 7, 1]])


def rows(count: int = 40, width: int = 7) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)


def coded(values: np.ndarray) -> CodedRows:  # type: ignore[type-arg]
    return CodedRows(learn_codes(values, 3, 8, seed=0), values)


@pytest.mark.parametrize("precision", ["int8", "int4", "int2"])
@pytest.mark.parametrize("group", [0, 3])
def test_integers_are_felt_as_their_store_gives_them(tmp_path: Path, precision: Integers, group: int) -> None:
    values = rows()
    write_rows(tmp_path, "item", values, precision, group)
    module = NumberRows(values, precision, group)
    felt = module(IDS)
    np.testing.assert_allclose(
        felt.detach().numpy(), Rows.open(tmp_path, "item").gather(IDS.numpy()), atol=1e-6
    )
    felt.sum().backward()
    assert module.rows.grad is not None
    expected = torch.bincount(IDS.flatten(), minlength=40).float()[:, None].expand(-1, 7)
    torch.testing.assert_close(module.rows.grad, expected, msg="as if nothing had been rounded")


def test_codes_are_felt_as_their_store_gives_them() -> None:
    packed = coded(rows())
    module = CodeRows(packed)
    np.testing.assert_array_equal(module(IDS).detach().numpy(), packed.codes.gather(IDS.numpy()))
    stored = module.stored()
    assert isinstance(stored, CodedRows)
    np.testing.assert_array_equal(stored.codes.codes, packed.codes.codes)
    np.testing.assert_array_equal(stored.codes.words, packed.codes.words)


def test_codewords_and_the_rows_behind_the_codes_are_learned() -> None:
    module = CodeRows(coded(rows()))
    module(IDS).sum().backward()
    assert module.words.grad is not None and module.rows is not None and module.rows.grad is not None
    assert float(module.words.grad[0].sum()) == IDS.numel() * 3, "a run of three columns"
    assert module.rows.grad[3].tolist() == [2.0] * 7
    assert not module.rows.grad[2].any()


def test_a_row_that_has_moved_gets_the_nearest_codewords(monkeypatch: pytest.MonkeyPatch) -> None:
    module = CodeRows(coded(rows()))
    assert module.rows is not None
    before = module.codes.clone()
    with torch.no_grad():
        module.rows[3] = module(torch.tensor([5]))[0]
        module.rows[25] = module(torch.tensor([6]))[0]
    monkeypatch.setattr("app.compression.packed.BLOCK", 20)
    module.choose(2)
    assert module.codes[3].tolist() == before[5].tolist()
    assert module.codes[25].tolist() == before[25].tolist(), "its block comes next"
    module.choose(3)
    assert module.codes[25].tolist() == before[6].tolist()


def test_of_a_large_table_the_codewords_alone_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.compression.packed.MOVED_ROWS", 10)
    module = CodeRows(coded(rows()))
    assert [name for name, _ in module.named_parameters()] == ["words"]
    before = module.codes.clone()
    module(IDS).sum().backward()
    module.choose(0)
    assert torch.equal(module.codes, before)


def test_what_is_packed_into_a_model_stands_in_for_its_pieces(tmp_path: Path) -> None:
    model = build_model("sasrec", {"width": 8}, tiny_dataset(tmp_path / "dataset", items=39))
    shared = coded(rows(40, 8))
    pack(model, {"item": shared, "history": shared, "user": np.zeros((121, 0), np.float32)}, "int8", 0)
    assert torch.equal(model.rows("history", IDS), model.rows("item", IDS))
    np.testing.assert_array_equal(model.rows("item", IDS).detach().numpy(), shared.codes.gather(IDS.numpy()))
    names = [name for name, _ in model.named_parameters() if name.startswith("packed")]
    assert names == ["packed.item.words", "packed.item.rows"], "shared rows are learned once"
    after = unpack(model, {"item": shared, "history": shared})
    assert after["item"] is after["history"] and not model.packed
    own = model.item_rows(IDS)
    assert torch.equal(model.rows("item", IDS), own)
