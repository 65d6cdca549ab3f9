"""Prometheus' text and problem documents: formats that others parse."""

from __future__ import annotations

import re

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RequestError
from app.serving.http.problems import Finding, Problem, ProblemDocument, from_decoding, from_ranker
from app.serving.metrics import SIZES, Histogram, Metrics, Served, merge
from app.serving.versions.stats import VersionStats
from tests.fakes import sample

SAMPLE = re.compile(
    r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\["\\n])*"(,[a-z]+="(?:[^"\\\n]|\\["\\n])*")*\})? [0-9.e+-]+'
)


@given(st.lists(st.floats(0, 1000)))
def test_buckets_count_what_lies_at_or_below_their_bound(values: list[float]) -> None:
    histogram = Histogram(SIZES)
    for value in values:
        histogram.observe(value)
    buckets = dict(histogram.buckets())
    for bound in SIZES:
        assert buckets[str(bound)] == sum(value <= bound for value in values)
    assert buckets["+Inf"] == len(values)


@given(st.text(), st.text())
def test_every_line_is_a_comment_or_a_sample_whatever_the_model_is_called(name: str, version: str) -> None:
    metrics, served = Metrics("r1"), [Served(name, version, 0.5, VersionStats())]
    metrics.answered("/v1/rank", 200, 0.01)
    text = metrics.render(3, served)
    assert merge([text]) == text
    for line in text.split("\n"):
        assert not line or line.startswith(("# HELP ", "# TYPE ")) or SAMPLE.fullmatch(line), line
    assert sample(text, "rayrec_version_share", model=name, version=version) == 0.5


def test_one_scrape_shows_all_replicas_each_family_in_one_piece() -> None:
    texts = []
    for replica in ("r1", "r2"):
        metrics = Metrics(replica)
        metrics.answered("/v1/rank", 200, 0.01)
        texts.append(metrics.render(0, [Served("m", "v1", 1.0, VersionStats())]))
    lines = merge(texts).splitlines()
    assert len(lines) == len(set(lines))
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    start = 1 + lines.index("# TYPE rayrec_requests_total counter")
    assert [line.split('"')[1] for line in lines[start : start + 2]] == ["r1", "r2"]


@given(
    st.text(max_size=2000),
    st.lists(st.builds(Finding, field=st.text(max_size=300), detail=st.text(max_size=300)), max_size=30),
)
def test_a_document_of_ascii_stays_under_2_kb(detail: str, findings: list[Finding]) -> None:
    def plain(text: str) -> str:
        return re.sub(r"[^ !#-\[\]-~]", "?", text)

    findings = [Finding(plain(f.field), plain(f.detail)) for f in findings]
    document = Problem(422, plain(detail), findings=findings).document("r" * 64)
    assert len(document) < 2048
    read = msgspec.json.decode(document, type=ProblemDocument)
    assert (read.status, read.title, len(read.errors)) == (
        422,
        "Unprocessable Entity",
        min(10, len(findings)),
    )


def test_an_unknown_field_is_named_only_where_its_name_is_a_plain_word() -> None:
    class Body(msgspec.Struct, forbid_unknown_fields=True):
        user: str

    def finding(body: bytes) -> Finding:
        try:
            msgspec.json.decode(body, type=Body)
        except msgspec.DecodeError as error:
            return from_decoding(error).findings[0]
        raise AssertionError("it decoded")

    assert finding(b'{"user": "u", "usre": 1}') == Finding("usre", "unknown field")
    assert finding(b'{"user": "u", "<b>x</b>": 1}') == Finding("", "unknown field")
    assert finding(b"{}") == Finding("user", "required field is missing")


def test_the_rankers_refusal_keeps_its_field_and_remedy() -> None:
    problem = from_ranker(RequestError("2000 ids", where="items", remedy="send at most 1000"))
    assert (problem.status, problem.findings[0].field) == (422, "items")
    assert "send at most 1000" in problem.detail
