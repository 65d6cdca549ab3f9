"""The language of conditions: its tree, its limits, its patterns."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.features.expression import Columns, Compare, In, Join, Like, Not, Null, ParseError, columns_of, parse


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("price < 20", Compare("price", "<", 20.0)),
        ("a == 'x'", Compare("a", "=", "x")),
        ("a <> 1", Compare("a", "!=", 1.0)),
        ("a < b", Columns("a", "<", "b")),
        ("a not in (1, 'it''s')", Not(In("a", (1.0, "it's")))),
        ("`unit price` is not null", Not(Null("unit price"))),
        ("a = 1 or b = 2 and not c like 'x%'", Join("or", (
            Compare("a", "=", 1.0),
            Join("and", (Compare("b", "=", 2.0), Not(Like("c", "x%")))),
        ))),
    ],
)  # fmt: skip
def test_text_becomes_a_tree(text: str, tree: object) -> None:
    assert parse(text) == tree


def test_columns_are_those_named_anywhere() -> None:
    assert columns_of(parse("a = 1 or not (b < c and d is null)")) == {"a", "b", "c", "d"}


def test_a_mistake_keeps_the_words_of_the_text_apart() -> None:
    with pytest.raises(ParseError) as error:
        parse("price < secret", ["price"])
    assert (error.value.what, error.value.position) == ("no such column", 9)
    assert "secret" in error.value.detail and "secret" not in error.value.what


@pytest.mark.parametrize("opening", ["(", "not "])
def test_nesting_has_an_end(opening: str) -> None:
    with pytest.raises(ParseError, match="at most 50"):
        parse(opening * 5000 + "a = 1")
    parse("(" * 40 + "a = 1" + ")" * 40)


patterns = st.text(st.sampled_from("ab%_.\n"), max_size=8)


@given(patterns, st.text(st.sampled_from("ab.\n"), max_size=10))
def test_a_pattern_matches_as_its_regular_expression(pattern: str, text: str) -> None:
    like = Like("c", pattern)
    assert like.matcher()(text) == bool(re.fullmatch(like.regex[1:-1], text))
    if like.matcher()(text):
        assert text.startswith(like.prefix)


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not Like("c", "%a" * 900 + "b").matcher()("a" * 100_000)
