"""Explanations: collected from events, as rows and matrices, and through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm import (
    Alternative,
    Attribution,
    AttributionSettings,
    Event,
    Explanation,
    Finished,
    InvalidExplanationError,
    ModelInfo,
    PromptToken,
    Provenance,
    Sampling,
    Source,
    Started,
    Timings,
    Token,
    Usage,
)

MODEL = ModelInfo("m", "", "llama", "", "", "", "float32", "none", "cpu", "sdpa", 2, 2, 1, 10, 100, 64, False)
FINISHED = Finished("end_of_text", "", Usage(2, 2, 2, 0), Timings(0.0, 0.1, 0.2, 0.3))


def prompt_token(text: str, start: int) -> PromptToken:
    return PromptToken(1, text, start, start + len(text), "user", None, "", False)


def start(*sources: Source) -> Started:
    tokens = (prompt_token("Once", 0), prompt_token(" upon", 4))
    return Started("Once upon", tokens, sources, Provenance(MODEL, {"torch": "2"}, None, None))


def token(index: int, text: str = " a", source_index: int | None = None) -> Token:
    return Token(index, 5, text, 2 * index, 2 * index + len(text), -1.0, (), False, source_index)


def row(index: int, *scores: float, columns: tuple[int, ...] = ()) -> Attribution:
    return Attribution(index, scores, columns, 5, None)


def test_rows_belong_to_tokens() -> None:
    explanation = Explanation(start(), (token(0), token(1), token(2)), (row(0, 1.0, 2.0), row(2, 3.0, 4.0)), FINISHED)
    assert explanation.text == str(explanation) == " a a a"
    assert explanation.scores == ((1.0, 2.0), (), (3.0, 4.0))
    assert explanation.source_indexes == ((), (), ())
    assert explanation.sources == (Source("Once", (0,)), Source(" upon", (1,)))
    np.testing.assert_array_equal(explanation.matrix(), [[1, 2], [math.nan, math.nan], [3, 4]])


def test_prefix_rows_are_ragged() -> None:
    tokens = (token(0, " a", 2), token(1, " b", 3), token(2, " c", 4))
    explanation = Explanation(start(), tokens, (row(0, 1, 2), row(1, 1, 2, 3), row(2, 1, 2, 3, 4)), None)
    assert [source.label for source in explanation.sources] == ["Once", " upon", " a", " b", " c"]
    assert explanation.sources[3] == Source(" b", (), (1,))
    nan = math.nan
    expected = [[1, 2, nan, nan, nan], [1, 2, 3, nan, nan], [1, 2, 3, 4, nan]]
    np.testing.assert_array_equal(explanation.matrix(), expected)


def test_top_k_rows_are_scattered() -> None:
    explanation = Explanation(
        start(), (token(0), token(1)), (row(0, 9.0, columns=(1,)), row(1, -3.0, 1.0, columns=(1, 0))), None
    )
    assert explanation.source_indexes == ((1,), (1, 0))
    np.testing.assert_array_equal(explanation.matrix(), [[math.nan, 9], [1, -3]])


def test_words_of_the_completion_are_columns_too() -> None:
    tokens = (token(0, " head", 1), token(1, "ache", 1), token(2, " b", 2))
    explanation = Explanation(start(Source("Once upon", (0, 1))), tokens, (row(2, 1, 2),), None)
    assert explanation.sources[1:] == (Source("headache", (), (0, 1)), Source("b", (), (2,)))


def test_words_as_columns() -> None:
    explanation = Explanation(start(Source("Once upon", (0, 1))), (token(0),), (row(0, 1.0),), None)
    assert explanation.sources == (Source("Once upon", (0, 1)),)
    assert explanation.matrix().shape == (1, 1)


def test_nothing_explained() -> None:
    explanation = Explanation(start(), (), (), None)
    assert (explanation.scores, explanation.text, explanation.matrix().shape) == ((), "", (0, 2))
    assert Explanation.from_json(explanation.to_json()) == explanation


def test_a_resumed_stream() -> None:
    """Token 0 and 1 were forced: 1 is explained again, neither is sent back, and both are columns."""
    explanation = Explanation(start(), (token(2, " c", 4),), (row(1, 1, 2, 3), row(2, 1, 2, 3, 4)), None)
    assert explanation.scores == ((1, 2, 3, 4),)
    assert [source.label for source in explanation.sources] == ["Once", " upon", "", "", " c"]
    assert explanation.attributions[0].token_index == 1


def test_from_events_takes_lagging_rows_and_broken_streams() -> None:
    parts = [Event(started=start()), Event(token=token(0)), Event(token=token(1))]
    rows = [Event(attribution=row(1, 1, 2)), Event(attribution=row(0, 3, 4))]
    explanation = Explanation.from_events([*parts, *rows])
    assert explanation.scores == ((3, 4), (1, 2))
    assert explanation.finished is None
    assert Explanation.from_events(explanation.events()) == explanation


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "there are none"),
        ([Event(token=token(0))], "`started` must come first"),
        ([Event(started=start()), Event(started=start())], "`started` must come first and once"),
        ([Event(started=start()), Event(finished=FINISHED), Event(token=token(0))], "after `finished`"),
        ([Event(started=start()), Event(token=token(0)), Event(token=token(2))], "is missing"),
    ],
)
def test_malformed_streams_are_refused(events: list[Event], message: str) -> None:
    with pytest.raises(InvalidExplanationError, match=message):
        Explanation.from_events(events)


# --- JSON -----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ids = st.integers(0, 2**31 - 1)
float32s = st.floats(width=32)
settings = st.builds(
    AttributionSettings,
    method=texts,
    preset=st.sampled_from(["paper", None]),
    loosening=st.sampled_from(["min_max", "none", None]),
    layers=st.just("all") | ids | st.lists(ids, min_size=1, max_size=3).map(tuple),
    similarity=st.none(),
    rotary=st.just("rotated"),
    rectify=st.none(),
    magnitude=st.none(),
    normalise_over=st.just("user"),
    target_token_id=st.none() | ids,
    contrast=st.none() | ids | texts,
    sources=st.just("prompt"),
    resolution=st.none(),
    top_k_sources=st.none() | ids,
)
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))  # as wide as the wire
models = st.builds(ModelInfo)
provenances = st.builds(
    Provenance,
    model=models,
    versions=st.dictionaries(texts, texts, max_size=2),
    sampling=st.none() | st.builds(Sampling, stop=st.lists(texts, max_size=2).map(tuple)),
    attribution=st.none() | settings,
)


@st.composite
def starts(draw: st.DrawFn) -> Started:
    text, tokens, start, end = draw(texts), [], 0, 0
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(start, len(text)))
        end = draw(st.integers(max(start, end), len(text)))
        indexes = st.none() | st.integers(0, 2**31 - 1)
        tokens.append(
            draw(st.builds(PromptToken, id=ids, text=texts, start=st.just(start), end=st.just(end), message=indexes))
        )
    return Started(text, tuple(tokens), (), draw(provenances))


@st.composite
def explanations(draw: st.DrawFn) -> Explanation:
    started = draw(starts())
    tokens, rows = [], []
    for index in range(draw(st.integers(0, 3))):
        alternatives = draw(st.lists(st.builds(Alternative, id=ids, text=texts), max_size=2))
        tokens.append(
            Token(
                index, draw(ids), draw(texts), 0, 0, draw(st.floats()), tuple(alternatives), draw(st.booleans()), None
            )
        )
        if draw(st.booleans()):
            num_scores = draw(st.integers(0, len(started.prompt_tokens)))
            scores = tuple(draw(float32s) for _ in range(num_scores))
            columns = tuple(range(num_scores)) if draw(st.booleans()) else ()
            rows.append(Attribution(index, scores, columns, draw(ids), draw(st.none() | ids)))
    return Explanation(started, tuple(tokens), tuple(rows), draw(st.none() | st.builds(Finished)))


@given(explanations())
def test_json_round_trip_is_exact(explanation: Explanation) -> None:
    text = explanation.to_json()
    again = Explanation.from_json(text)
    assert repr(again) == repr(explanation)  # tells NaN from NaN not, and -0.0 from 0.0
    assert again.to_json() == text
    json.loads(text, parse_constant=pytest.fail)  # strict JSON, readable in any language


EXPLANATION = Explanation(start(), (token(0),), (row(0, 1.0, 2.0),), FINISHED)


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(EXPLANATION.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"format": NaN}', "NaN is not a JSON number"),
        ("[]", "not an explanation"),
        ('{"format": "other"}', "not an explanation"),
        (changed(version=2), "has version 2; this gradellm reads version 1"),
        (changed(version="1"), "has version '1'"),
        (changed(version=True), "has version True"),
        (changed(more=1), "more: is unknown"),
        (changed(tokens=None), "tokens: must be a list, not None"),
        (changed(tokens=[{}]), r"tokens\[0\]\.\w+: is missing"),
        (changed(tokens=[3]), r"tokens\[0\]: must be an object, not 3"),
        (changed(attributions=[{**json.loads(EXPLANATION.to_json())["attributions"][0], "scores": ["x"]}]),
         r"attributions\[0\]\.scores\[0\]: must be a number, not 'x'"),
        (changed(finished={"reason": "bored"}), r"finished\.\w+: is missing"),
        (changed(attributions=json.loads(EXPLANATION.to_json())["attributions"] * 2), "must ascend"),
    ],
)  # fmt: skip
def test_malformed_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidExplanationError, match=message):
        Explanation.from_json(text)


def test_every_missing_field_is_refused() -> None:
    plain = json.loads(EXPLANATION.to_json())
    for name in plain:
        with pytest.raises(InvalidExplanationError):
            Explanation.from_json(json.dumps({key: value for key, value in plain.items() if key != name}))


def test_files_without_a_configuration_hash_load() -> None:
    plain = json.loads(EXPLANATION.to_json())
    del plain["started"]["provenance"]["model"]["config_sha256"]
    assert Explanation.from_json(json.dumps(plain)).provenance.model.config_sha256 == ""


def test_integers_do_for_floats() -> None:
    """JavaScript writes 1.0 as 1."""
    plain = EXPLANATION.to_json().replace("1.0,2.0", "1,2")
    assert Explanation.from_json(plain) == EXPLANATION
    with pytest.raises(InvalidExplanationError, match="larger than a float"):
        Explanation.from_json(EXPLANATION.to_json().replace("1.0,2.0", f"{10**400},2"))


def test_wrong_enum_names_are_refused() -> None:
    with pytest.raises(InvalidExplanationError, match=r"finished\.reason: must be"):
        Explanation.from_json(EXPLANATION.to_json().replace("end_of_text", "bored"))


def test_explanations_are_values() -> None:
    assert replace(EXPLANATION) == EXPLANATION
    with pytest.raises(AttributeError):
        EXPLANATION.tokens = ()  # type: ignore[misc]
