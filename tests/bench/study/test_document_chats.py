"""Generated chats of documents: pure functions of a seed, whose facts stand where they say."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_bench.study.document_chats import (
    GENERATORS,
    NUM_DOCUMENTS,
    STATEMENTS,
    SYNONYMS,
    Asks,
    document_chat,
)

KINDS = ("one", "two", "absent", "knowledge", "mixed", "instructed")


@given(generator=st.sampled_from(sorted(GENERATORS)), seed=st.integers(0, 10_000), asks=st.sampled_from(KINDS))
def test_documents_and_facts_stand_where_they_say(generator: str, seed: int, asks: Asks) -> None:
    chat = document_chat(generator, seed, asks)
    assert chat == document_chat(generator, seed, asks)
    assert len(chat.documents) == NUM_DOCUMENTS == len(chat.candidates)
    for (start, end), answer in zip(chat.documents.values(), chat.candidates, strict=True):
        document = chat.text[start:end]
        assert 2 <= document.count(".") <= 4
        assert document.endswith(".")
        assert answer in document
    assert len(chat.expected) == {"one": 1, "two": 2, "mixed": 1, "instructed": 1}.get(asks, 0)
    for expected in chat.expected:
        start, end = chat.documents[expected.document]
        assert start <= expected.fact[0] < expected.fact[1] <= end
        assert expected.word in chat.text[slice(*expected.fact)]
    assert bool(chat.completion) == (asks in ("two", "mixed"))
    for word in (expected.word for expected in chat.expected if chat.completion):
        assert word in chat.completion


def test_mixed_and_instructed_questions_differ_in_names_alone() -> None:
    two, mixed = (document_chat("boxes", 1, asks) for asks in ("two", "mixed"))
    last = max(end for _, end in two.documents.values())
    assert two.text[:last] == mixed.text[:last]
    assert (two.documents, two.expected[:1]) == (mixed.documents, mixed.expected)
    changed = set(re.findall(r"\w+", mixed.text[last:])) - set(re.findall(r"\w+", two.text[last:]))
    assert len(changed) == 1
    assert changed.isdisjoint(re.findall(r"\w+", two.text))
    assert changed < set(re.findall(r"\w+", mixed.completion))
    one, instructed = (document_chat("boxes", 1, asks) for asks in ("one", "instructed"))
    assert one.text[:last] == instructed.text[:last]
    assert instructed.text[instructed.text.index("My name is Peter.") :].endswith(
        "Answer in English with a full sentence."
    )


@pytest.mark.parametrize("generator", GENERATORS)
def test_an_absent_subject_is_in_no_document(generator: str) -> None:
    for seed in range(50):
        chat = document_chat(generator, seed, "absent")
        last = max(end for _, end in chat.documents.values())
        documents, question = chat.text[:last], chat.text[last:]
        (kind,) = [kind for kind in GENERATORS[generator] if kind.question.split("{")[0] in question]
        (subject,) = [name for name in kind.subjects if SYNONYMS.get(name, name) in question]
        assert subject not in documents


@given(seed=st.integers(0, 10_000), asks=st.sampled_from(KINDS))
def test_questions_in_synonyms_share_no_noun_with_documents(seed: int, asks: Asks) -> None:
    chat = document_chat("synonyms", seed, asks)
    last = max(end for _, end in chat.documents.values())
    words = set(re.findall(r"[a-z]{4,}", chat.text[:last].lower()))
    assert not words & {"animal", "belongs", "city", "home", "colour", "car", *SYNONYMS.values()}
    assert not {name for name in SYNONYMS if name in chat.text[last:] + chat.completion}


def test_every_fact_has_a_statement_in_other_words() -> None:
    facts = {kind.fact for kinds in GENERATORS.values() for kind in kinds}
    assert facts == STATEMENTS.keys()
    assert not facts & set(STATEMENTS.values())
