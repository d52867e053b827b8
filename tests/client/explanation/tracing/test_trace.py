"""Traces of explanations that are small enough to compute by hand, and what they leave unexplained."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.explanation.conftest import explanation
from client.explanation.test_explanation import FINISHED
from gradellm import Attribution, Explanation, InvalidExplanationError
from gradellm.explanation.tracing.trace import REASONS, Trace
from gradellm.models import Source
from gradellm.models.settings import AttributionSettings

# Of the six prompt tokens <s>, The, cat, s, at, on a mat; then " It", " pur", "rs".
ROWS = {
    0: (0.0, 0.0, 3.0, 0.0, 0.0, 1.0),
    1: (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0),
    2: (0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 2.0),
    3: (0.0, 0.0, -9.0, 0.0, 0.0, 2.0, 1.0, 0.0, 1.0),
}


def prefixed(rows: dict[int, tuple[float, ...]] = ROWS, *, finished: bool = True, **settings: object) -> Explanation:
    """The conftest's explanation with rows over the whole prefix."""
    loaded = explanation()
    attribution = loaded.provenance.attribution
    assert attribution is not None
    provenance = replace(
        loaded.provenance,
        attribution=replace(attribution, **{"sources": "prefix", "resolution": "token", **settings}),  # type: ignore[arg-type]
    )
    tokens = tuple(replace(token, source_index=6 + token.index) for token in loaded.tokens)
    attributions = tuple(Attribution(index, scores, (), 50 + index, None) for index, scores in rows.items())
    started = replace(loaded.started, provenance=provenance)
    return Explanation(started, tokens, attributions, FINISHED if finished else None)


def total(trace: Trace) -> float:
    return math.fsum((*(part.share for part in trace.parts), trace.unexplained))


def test_a_word_is_traced_by_hand() -> None:
    """loud draws 1/2 on the mat, 1/4 on It and 1/4 on rs; rs draws half on pur, and pur 3/4 on It."""
    trace = prefixed().trace("loud", by="source")
    it = 1 / 4 + 1 / 4 * 1 / 2 * 3 / 4
    shares = {part.label: (part.share, part.direct) for part in trace.parts}
    assert shares == {
        "<s>" if "<s>" in shares else "": (pytest.approx(1 / 4 * 1 / 2 * 1 / 4), 0.0),
        "The": (0.0, 0.0),
        " cat": (pytest.approx(it * 3 / 4), 0.0),
        " s": (pytest.approx(1 / 4 * 1 / 4), 0.0),
        "at": (pytest.approx(1 / 4 * 1 / 4), 0.0),
        " on a mat": (pytest.approx(1 / 2 + it / 4), 0.5),
    }
    assert {word.word.text: word.share for word in trace.words} == {"It": pytest.approx(it), "purrs": 0.25}
    assert (trace.selection, trace.token_indexes, trace.unexplained) == (" loud", (3,), 0.0)
    assert total(trace) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("by", ["source", "word", "segment", "role", "message"])
def test_parts_are_those_of_the_prompt(by: str) -> None:
    loaded = prefixed()
    trace = loaded.trace("loud", by=by)  # type: ignore[arg-type]
    expected = [(part.label, part.columns) for part in loaded.parts(by) if part.columns[0] < 6]  # type: ignore[arg-type]
    assert [(part.label, part.columns) for part in trace.parts] == expected
    assert total(trace) == pytest.approx(1, abs=1e-15)
    assert all(part.through == pytest.approx(part.share - part.direct) for part in trace.parts)


def test_selections_are_those_of_other_queries() -> None:
    loaded = prefixed()
    assert loaded.trace(3) == loaded.trace("loud") == loaded.trace(loaded.words[2])
    assert loaded.trace(range(1, 3)) == loaded.trace("purrs") == loaded.trace([2, 1, 2])  # type: ignore[arg-type]
    assert loaded.trace().token_indexes == (0, 1, 2, 3)
    # Two tokens start with a half each; the second half goes through the first token, which is of the same word.
    purrs = loaded.trace("purrs")
    assert {word.word.text: word.share for word in purrs.words} == {"It": pytest.approx(0.5 * 0.75 * 1.5)}
    for selection in ("dog", 9, range(0)):
        with pytest.raises(InvalidExplanationError):
            loaded.trace(selection)
    with pytest.raises(InvalidExplanationError, match="by: must be one of"):
        loaded.trace(by="page")  # type: ignore[arg-type]


def test_a_first_word_is_direct() -> None:
    trace = prefixed().trace("It")
    assert trace.words == ()
    assert all(part.share == part.direct for part in trace.parts)


def test_the_largest_parts_leave_out_the_template() -> None:
    trace = prefixed().trace("purrs")
    assert [part.label for part in trace.top(2)] == ["cat", "sat"]
    assert any(not part.written for part in trace.top(9, written=False))
    assert all(part.written and part.share for part in trace.top(9))


# --- unexplained ------------------------------------------------------------------------------------------------------


def reasons(trace: Trace) -> dict[str, Any]:
    assert total(trace) == pytest.approx(1, abs=1e-15)
    assert math.fsum(item.share for item in trace.reasons) == pytest.approx(trace.unexplained)
    return {item.reason: (item.share, item.token_indexes) for item in trace.reasons}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "not_explained"),
        ((0.0, -1.0, 0.0, 0.0, 0.0, 0.0), "no_positive_score"),
        ((0.0, math.nan, 1.0, 0.0, 0.0, 0.0), "not_finite"),
        ((0.0, math.inf, 1.0, 0.0, 0.0, 0.0), "not_finite"),
    ],
)
def test_what_stays_in_a_token_is_unexplained(row: tuple[float, ...] | None, reason: str) -> None:
    rows = {index: scores for index, scores in {**ROWS, 0: row}.items() if scores is not None}
    through_it = 1 / 4 + 1 / 4 * 1 / 2 * 3 / 4
    assert reasons(prefixed(rows).trace("loud")) == {reason: (pytest.approx(through_it), (0,))}


def test_a_row_without_positive_scores_is_all_unexplained() -> None:
    trace = prefixed({**ROWS, 3: (-1.0,) * 9}).trace("loud")
    assert reasons(trace) == {"no_positive_score": (1.0, (3,))}
    assert trace.top() == ()


def test_an_interrupted_stream() -> None:
    without = {index: row for index, row in ROWS.items() if index < 3}
    trace = prefixed(without, finished=False).trace(range(2, 4))
    assert reasons(trace) == {"interrupted": (0.5, (3,))}
    with pytest.raises(InvalidExplanationError, match="no token of the selection was explained"):
        prefixed(without, finished=False).trace("loud")


def test_forced_tokens_without_rows() -> None:
    """The first two tokens are not sent back: the second's row comes, the first's does not."""
    loaded = prefixed({index: row for index, row in ROWS.items() if index != 0})
    trace = replace(loaded, tokens=loaded.tokens[2:]).trace("loud")
    assert reasons(trace) == {"forced": (pytest.approx(1 / 4 + 1 / 4 * 1 / 2 * 3 / 4), (0,))}


def test_rows_of_another_target() -> None:
    """The selected word's own row may explain another token; a row on the way may not."""
    loaded = prefixed()
    other = replace(loaded, attributions=tuple(replace(row, target_token_id=7) for row in loaded.attributions))
    assert reasons(other.trace("loud")) == {"other_target": (0.5, (0, 2))}


def test_what_top_k_left_out_counts_as_large_as_it_can_be() -> None:
    """loud keeps 2 of 9 scores, 2 and 1: each of the other 7 is at most 1."""
    loaded = prefixed(top_k_sources=2)
    cut = replace(loaded.attributions[3], scores=(2.0, 1.0), source_indexes=(5, 6))
    trace = replace(loaded, attributions=(*loaded.attributions[:3], cut)).trace("loud")
    assert reasons(trace) == {"top_k_sources": (pytest.approx(7 / 10), (3,))}
    assert {part.label: part.direct for part in trace.parts}["on a mat"] == pytest.approx(2 / 10)
    whole = replace(loaded.attributions[0], scores=(3.0, 1.0, 0.0), source_indexes=(2, 5, 0))
    nothing_lost = replace(loaded, attributions=(whole, *loaded.attributions[1:])).trace("loud")
    assert nothing_lost == loaded.trace("loud")


# --- words as sources -------------------------------------------------------------------------------------------------


def by_words() -> Explanation:
    """Columns: <s>, The cat, sat, on a mat; then It, purrs, loud."""
    loaded = prefixed(resolution="word")
    sources = (Source("<s>", (0,)), Source("The cat", (1, 2)), Source("sat", (3, 4)), Source("on a mat", (5,)))
    columns = (4, 5, 5, 6)
    tokens = tuple(
        replace(token, source_index=column, word=column - 4)
        for token, column in zip(loaded.tokens, columns, strict=True)
    )
    rows = ((1.0, 1.0, 0.0, 0.0), (0, 0, 1.0, 0, 1.0), (0, 1.0, 0, 0, 0, 1.0), (0, 0, 0, 2.0, 0, 2.0))
    attributions = tuple(Attribution(index, row, (), 50 + index, None) for index, row in enumerate(rows))
    return replace(loaded, started=replace(loaded.started, sources=sources), tokens=tokens, attributions=attributions)


def test_a_words_score_is_shared_by_its_earlier_tokens() -> None:
    """loud draws a half on purrs: a quarter on each token; of rs's row, the word is pur alone."""
    trace = by_words().trace("loud")
    pur = 1 / 4 + 1 / 4 * 1 / 2
    it = pur / 2
    shares = {part.label: part.share for part in trace.parts}
    assert shares["on a mat"] == pytest.approx(1 / 2)
    assert shares["sat"] == pytest.approx(pur / 2)
    assert {word.word.text: word.share for word in trace.words} == {"It": pytest.approx(it), "purrs": 0.5}
    assert total(trace) == pytest.approx(1, abs=1e-15)


def test_words_of_forced_tokens_cannot_be_followed() -> None:
    loaded = by_words()
    trace = replace(loaded, tokens=loaded.tokens[1:], attributions=loaded.attributions[1:]).trace("purrs")
    assert reasons(trace) == {"forced": (pytest.approx(0.5 * 0.5 + 0.5 * 0.5 * 0.5), (1,))}


# --- refusals, reasoning, serialisation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": "prompt"}, "sources='prefix'"),
        ({"sources": None}, "sources='prefix'"),
        ({"resolution": "segment"}, "resolution='token' or 'word'"),
    ],
)
def test_other_sources_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidExplanationError, match=message):
        prefixed(**settings).trace("loud")


def test_without_attribution_it_is_refused() -> None:
    loaded = prefixed()
    provenance = replace(loaded.provenance, attribution=None)
    with pytest.raises(InvalidExplanationError, match="was not explained"):
        replace(loaded, started=replace(loaded.started, provenance=provenance)).trace()


def test_what_comes_through_reasoning() -> None:
    """The first two tokens are a block: all that goes through either of them came through reasoning."""
    loaded = prefixed()
    texts, starts = ("<think>", "a</think>", " so", " loud"), (0, 7, 16, 19)
    tokens = tuple(
        replace(token, text=text, start=start, end=start + len(text))
        for token, text, start in zip(loaded.tokens, texts, starts, strict=True)
    )
    trace = replace(loaded, tokens=tokens).trace("loud", by="source")
    through = 1 / 4 + 1 / 4 * 1 / 2
    assert trace.reasoning == pytest.approx(through)
    assert math.fsum(part.reasoning for part in trace.parts) == pytest.approx(through)
    assert {word.segment for word in trace.words} == {"reasoning", "completion"}


def test_it_is_json() -> None:
    trace = prefixed({**ROWS, 0: (-1.0,) * 6}).trace("loud")
    plain = json.loads(trace.to_json())
    assert (plain["format"], plain["version"], plain["by"]) == ("gradellm.trace", 1, "word")
    assert [part["share"] for part in plain["parts"]] == [part.share for part in trace.parts]
    assert plain["words"][0]["word"]["text"] == "It"
    assert plain["reasons"][0]["reason"] in REASONS
    assert plain["unexplained"] == trace.unexplained


@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), min_size=9, max_size=9), min_size=4, max_size=4),
    st.sets(st.integers(0, 3), min_size=1),
    st.sets(st.integers(0, 3), min_size=1),
)
def test_shares_and_unexplained_sum_to_one(scores: list[list[float]], selected: set[int], explained: set[int]) -> None:
    rows = {index: tuple(scores[index][: 6 + index]) for index in sorted(explained)}
    loaded = prefixed(rows)
    if selected & explained:
        for by in ("source", "segment"):
            trace = loaded.trace(selected, by=by)  # type: ignore[arg-type]
            assert total(trace) == pytest.approx(1, abs=1e-12)
            assert sum(item.share for item in trace.reasons) == pytest.approx(trace.unexplained, abs=1e-15)


def test_settings_of_attribution_have_sources() -> None:
    """`trace` reads them from the provenance, which older files have, too."""
    assert {"sources", "resolution"} <= set(AttributionSettings.__dataclass_fields__)
