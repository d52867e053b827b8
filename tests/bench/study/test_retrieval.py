"""Generated chats: pure functions of a seed, whose answer stands where they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_bench.study.retrieval import GENERATORS, retrieval_chat


@given(
    generator=st.sampled_from(sorted(GENERATORS)),
    seed=st.integers(0, 10_000),
    num_facts=st.integers(1, 6),
    num_distractors=st.integers(0, 6),
)
def test_the_answer_stands_in_one_sentence(generator: str, seed: int, num_facts: int, num_distractors: int) -> None:
    chat = retrieval_chat(generator, seed, num_facts=num_facts, num_distractors=num_distractors)
    again = retrieval_chat(generator, seed, num_facts=num_facts, num_distractors=num_distractors)
    assert chat == again
    assert len(chat.sentences) == num_facts == len(chat.candidates)
    assert chat.source is not None
    assert chat.word is not None
    first, end = chat.word
    assert chat.text[first:end] == chat.answer
    sentence = chat.sentences[chat.source]
    assert sentence[0] <= first < end <= sentence[1]
    for i, (start, stop) in enumerate(chat.sentences):
        assert chat.text[start:stop].endswith(".")
        assert (chat.answer in chat.text[start:stop]) == (i == chat.source)


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_question_that_no_sentence_answers(generator: str) -> None:
    for seed in range(50):
        chat = retrieval_chat(generator, seed, num_facts=3, is_answerable=False)
        assert (chat.source, chat.word, chat.answer) == (None, None, "")
        facts = [chat.text[start:end] for start, end in chat.sentences]
        question = chat.text.removeprefix(" ".join(facts))
        subjects = {name for fact in facts for name in fact.replace("'s", "").split() if name.istitle()}
        assert not any(
            f" {name} " in question.replace("'s", " ").replace("?", " ") for name in subjects - {"In", "The", "For"}
        )


def test_generators_have_no_kind_in_common() -> None:
    facts = [{kind.fact for kind in kinds} for kinds in GENERATORS.values()]
    assert not facts[0] & facts[1]
