"""Results for agents: what is missing is said, and paths are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from client.explanation.cited import LOW, answered
from client.explanation.conftest import explanation
from gradellm import Explanation
from gradellm.mcp.results import cited, explained


def named(loaded: Explanation, name: str) -> Explanation:
    """The explanation of a model with this name."""
    provenance = loaded.started.provenance
    model = replace(provenance.model, name=name)
    return replace(loaded, started=replace(loaded.started, provenance=replace(provenance, model=model)))


def test_words_have_sources_documents_and_places() -> None:
    found = explained(explanation(), num_sources=1, words=None)
    assert [word.text for word in found.words] == ["It", "purrs", "loud"]
    for word, (text, document) in zip(found.words, [("sat", "doc"), ("sat", "doc")], strict=False):
        (source,) = word.sources
        assert (source.text, source.document) == (text, document)
        assert 0 < source.share <= 1
    assert found.finish_reason == ""  # of a stream that broke off
    assert found.attribution == "paper"


def test_a_word_that_was_not_explained_has_no_sources() -> None:
    loaded = explanation()
    part = replace(loaded, attributions=loaded.attributions[:1])
    assert [bool(word.sources) for word in explained(part, num_sources=3, words=None).words] == [True, False, False]


def test_words_are_chosen_by_an_expression() -> None:
    assert [word.text for word in explained(explanation(), num_sources=1, words="^p|d$").words] == ["purrs", "loud"]


def test_sentences_with_and_without_a_document() -> None:
    high = {1: {1: 5.0, 2: 5.0}, 6: {9: 5.0}}
    found = cited(answered(high))
    assert [sentence.text for sentence in found.sentences] == [sentence.text for sentence in answered(high).citations()]
    for ours, theirs in zip(found.sentences, answered(high).citations(), strict=True):
        assert [document.name for document in ours.documents] == [document.name for document in theirs.documents]
        assert [document.share for document in ours.documents] == pytest.approx(
            [document.share for document in theirs.documents], abs=1e-3
        )
    assert LOW < 5.0


@pytest.mark.parametrize(
    ("name", "shown"),
    [("/models/a/b/", "b"), ("./b", "b"), ("~/b", "b"), ("org/model", "org/model"), ("b", "b")],
)
def test_a_models_name_is_no_path(name: str, shown: str) -> None:
    assert explained(named(explanation(), name), num_sources=1, words=None).model == shown
