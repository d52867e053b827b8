"""Citations: the equations the plain way, their invariants, and explanations that are small enough to read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from client.explanation.cited import ANSWER, HIGH, answered, column
from gradellm import Attribution, Explanation, InvalidExplanationError
from gradellm.explanation.citations import (
    CONTRAST,
    FLOOR,
    THRESHOLDS,
    TOP_TOKENS,
    citations,
    contributions,
    default_threshold,
    overlapping,
    row_excesses,
)
from gradellm.explanation.sentences import sentences
from gradellm.models import Source


def test_sentences_cite_their_documents_with_the_passage() -> None:
    soup, hours, day = citations(answered(HIGH))
    assert [(s.text, s.tokens, s.explained_tokens) for s in (soup, hours, day)] == [
        ("The soup costs five coins.", 5, 5),
        ("We open at nine.", 4, 4),
        ("Have a nice day.", 4, 4),
    ]
    assert [[d.name for d in s.documents] for s in (soup, hours, day)] == [["menu"], ["hours"], []]
    (menu,) = soup.documents
    assert menu.passage is not None
    assert (menu.passage.text, menu.passage.start, menu.passage.end) == ("Soup is five coins.", 0, 19)
    assert menu.share > 0.9
    assert (hours.start, hours.end) == (27, 43)
    assert answered(HIGH).text[hours.start : hours.end] == hours.text
    assert answered(HIGH).citations() == (soup, hours, day)


def test_the_definition_of_a_tool_is_no_document() -> None:
    def defined(explanation: Explanation) -> Explanation:
        tokens = tuple(
            replace(token, segment="tool:menu", role="system", message=None) if token.segment == "menu" else token
            for token in explanation.prompt_tokens
        )
        return replace(explanation, started=replace(explanation.started, prompt_tokens=tokens))

    assert {d.name for sentence in defined(answered(HIGH)).citations() for d in sentence.documents} == {"hours"}


def test_a_source_with_a_high_score_for_every_token_is_not_cited() -> None:
    constant = {token: {column("menu", "Soup"): 9.0} for token in range(len(ANSWER))}
    assert not any(sentence.documents for sentence in citations(answered(constant)))


def test_a_threshold_can_be_given() -> None:
    loaded = answered(HIGH)
    strengths = {d.name: d.strength for d in citations(loaded, threshold=1e-9)[0].documents}
    assert strengths["menu"] > default_threshold(loaded)
    assert citations(loaded, threshold=strengths["menu"])[0].documents
    assert not citations(loaded, threshold=strengths["menu"] * 1.001)[0].documents
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidExplanationError, match=r"threshold: must be above 0"):
            citations(loaded, threshold=wrong)


def test_thresholds_depend_on_the_settings() -> None:
    loaded = answered(HIGH)
    settings = loaded.provenance.attribution
    assert settings is not None

    def threshold(**switches: Any) -> float:
        provenance = replace(loaded.provenance, attribution=replace(settings, **switches))
        return default_threshold(replace(loaded, started=replace(loaded.started, provenance=provenance)))

    knockout = {"loosening": "none", "magnitude": "knockout", "resolution": "token"}
    found = [threshold(**knockout, rectify=rectify) for rectify in ("per_head", "none")]
    # From a server that is older than the gradient.
    assert found == [THRESHOLDS["none", "knockout", rectify, "true"]["token"] for rectify in ("per_head", "none")]
    default = THRESHOLDS["none", "head_abs", "none", "relevance"]
    head_abs = {"loosening": "none", "magnitude": "head_abs", "rectify": "none", "gradient": "relevance"}
    assert threshold(**head_abs, resolution="word") == default["word"]
    unknown = {"loosening": None, "magnitude": None, "rectify": None}
    assert threshold(method="saliency", resolution="word", **unknown) == default["word"]
    bare = replace(loaded.started, provenance=replace(loaded.provenance, attribution=None))
    assert default_threshold(replace(loaded, started=bare)) == default["token"]


def test_they_are_json() -> None:
    plain = [sentence.to_dict() for sentence in citations(answered(HIGH))]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain[0]["documents"][0].keys() == {"name", "strength", "share", "passage"}


def test_missing_rows_are_counted() -> None:
    soup, hours, day = citations(answered(HIGH, rows={3, 4, 9, 10, 11, 12}))
    assert [s.explained_tokens for s in (soup, hours, day)] == [2, 0, 4]
    assert [d.name for d in soup.documents] == ["menu"]
    assert hours.documents == ()


def test_a_single_row_is_enough() -> None:
    soup, *_ = citations(answered(HIGH, rows={3}))
    assert [d.name for d in soup.documents] == ["menu"]


def test_segments_have_no_passage() -> None:
    loaded = answered(HIGH)
    groups = {"menu": range(1, 8), "user": (8, 13, 14, 15), "hours": range(9, 13), "template": (0, 16)}
    sources = tuple(Source(name, tuple(indexes)) for name, indexes in groups.items())
    rows = tuple(
        Attribution(r.token_index, tuple(sum(r.scores[i] for i in g) for g in groups.values()), (), 0, None)
        for r in loaded.attributions
    )
    settings = replace(loaded.provenance.attribution, resolution="segment")  # type: ignore[type-var]
    provenance = replace(loaded.provenance, attribution=settings)
    started = replace(loaded.started, sources=sources, provenance=provenance)
    summed = Explanation(started, loaded.tokens, rows, None)
    soup, hours, day = citations(summed)
    assert [[d.name for d in s.documents] for s in (soup, hours, day)] == [["menu"], ["hours"], []]
    assert soup.documents[0].passage is None


def test_top_k_sources_are_enough() -> None:
    loaded = answered(HIGH)
    rows = []
    for row in loaded.attributions:
        best = sorted(range(len(row.scores)), key=lambda i: -row.scores[i])[:3]
        rows.append(replace(row, scores=tuple(row.scores[i] for i in best), source_indexes=tuple(best)))
    cut = Explanation(loaded.started, loaded.tokens, tuple(rows), None)
    assert [[d.name for d in s.documents] for s in citations(cut)] == [["menu"], ["hours"], []]


@pytest.mark.parametrize("score", [math.nan, math.inf, -9.0])
def test_scores_that_are_not_positive_numbers_cite_nothing(score: float) -> None:
    high = {3: {column("menu", " five"): score}}
    assert not any(sentence.documents for sentence in citations(answered(high)))


def test_an_explanation_needs_segments_and_attributions() -> None:
    loaded = answered(HIGH)
    bare = tuple(replace(token, segment="") for token in loaded.prompt_tokens)
    with pytest.raises(InvalidExplanationError, match=r"no segments.*segments=\{name: \(start, end\)\}"):
        citations(Explanation(replace(loaded.started, prompt_tokens=bare), loaded.tokens, loaded.attributions, None))
    with pytest.raises(InvalidExplanationError, match=r"no token of the answer was explained"):
        citations(answered(HIGH, rows=set()))


def test_an_answer_without_text_has_no_sentences() -> None:
    loaded = answered(HIGH)
    assert citations(Explanation(loaded.started, (), loaded.attributions, None)) == ()


@given(st.text(alphabet="a.\n ", max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=6))
def test_overlapping_spans(text: str, drawn: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in drawn]
    found = sentences(text)
    expected = [[i for i, (a, b) in enumerate(spans) if a < s.end and b > s.start] for s in found]
    assert overlapping(found, spans) == expected


def test_many_sentences_take_linear_time() -> None:
    loaded = answered(HIGH)
    tokens = tuple(replace(loaded.tokens[0], index=i, text="a\n", start=2 * i, end=2 * i + 2) for i in range(50_000))
    long = Explanation(loaded.started, tokens, loaded.attributions, None)
    assert len(citations(long)) == 50_000


# --- the equations ---------------------------------------------------------------------------------------------------


def oracle(S: np.ndarray, sizes: np.ndarray, documents: list[list[int]], sentence: list[int]) -> list[float]:
    """The strengths of documents for a sentence, from scores [T, P], as the module's docstring has them."""
    x = np.maximum(S, 0)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    middle = (x.shape[1] - 1) // 2
    anywhere = np.sort(x / sizes, axis=1)[:, middle : middle + 1] * sizes
    usual = np.sort(x, axis=0)[(len(x) - 1) // 2] if len(x) > 1 else np.zeros(x.shape[1])
    b = np.maximum(np.maximum(anywhere, usual), FLOOR)
    e = np.where(x > b, x * np.log(np.maximum(x, 1e-300) / b), 0)
    peaks = np.array([e[sentence][:, columns].max(1) for columns in documents])
    leads = [np.maximum(0, peak - CONTRAST * np.delete(peaks, d, 0).max(0, initial=0)) for d, peak in enumerate(peaks)]
    return [float(np.sort(lead)[-TOP_TOKENS:].mean()) for lead in leads]


SCORES = st.integers(1, 5).flatmap(
    lambda T: st.lists(st.lists(st.floats(-1, 10, width=32), min_size=6, max_size=6), min_size=T, max_size=T)
)
PARTS = {"a": [0, 1], "b": [2], "c": [3, 4]}


def strengths(S: list[list[float]], sizes: list[int], parts: dict[str, list[int]]) -> dict[str, float]:
    rows = {t: dict(enumerate(row)) for t, row in enumerate(S)}
    excesses = row_excesses(rows, dict(enumerate(sizes)))
    return {name: c.strength for name, c in contributions(list(excesses.values()), parts).items()}


@given(SCORES, st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_strengths_are_the_oracles(S: list[list[float]], sizes: list[int]) -> None:
    expected = oracle(np.array(S), np.array(sizes), list(PARTS.values()), list(range(len(S))))
    assert list(strengths(S, sizes, PARTS).values()) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(SCORES, st.floats(1e-6, 1e6))
def test_the_scale_of_a_row_changes_nothing(S: list[list[float]], factor: float) -> None:
    assume(all(score == 0 or abs(score) > 1e-6 for row in S for score in row))
    scaled = [[factor * score for score in row] if t == 0 else row for t, row in enumerate(S)]
    assert strengths(scaled, [1] * 6, PARTS) == pytest.approx(strengths(S, [1] * 6, PARTS), rel=1e-6, abs=1e-6)


@given(SCORES, st.permutations(range(6)), st.permutations(list(PARTS)))
def test_the_order_of_documents_changes_nothing(S: list[list[float]], order: list[int], names: list[str]) -> None:
    moved = [[row[old] for old in order] for row in S]
    parts = {name: [order.index(old) for old in PARTS[name]] for name in names}
    assert strengths(moved, [1] * 6, parts) == pytest.approx(strengths(S, [1] * 6, PARTS), rel=1e-9, abs=1e-12)


@given(
    st.dictionaries(st.integers(0, 12), st.dictionaries(st.integers(1, 12), st.floats(0, 10), max_size=4), max_size=5)
)
def test_shares_add_up(high: dict[int, dict[int, float]]) -> None:
    for sentence in citations(answered(high), threshold=1e-9):
        shares = [document.share for document in sentence.documents]
        assert not shares or sum(shares) == pytest.approx(1, abs=1e-6)
        assert sorted((d.strength for d in sentence.documents), reverse=True) == [
            d.strength for d in sentence.documents
        ]
