"""The corpus's annotations are correct: spans, labels, counterfactuals, balance and split."""

import re
import subprocess
import sys
from collections import Counter, defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training.boolq import VERBS
from gradellm_engine.demo_model.training.corpus import (
    TASKS,
    Example,
    counterfactual,
    examples,
    retelling,
    story,
    training_conversation,
    verdicts,
)
from gradellm_engine.demo_model.training.example import Piece, Span, Split, Task, fill, in_split, render, sentence
from gradellm_engine.demo_model.training.sentiment import CONSTRUCTIONS, POLARITY
from gradellm_engine.demo_model.training.word_lists import possessive, pronoun

seeds = st.integers(min_value=0, max_value=2**32)
splits = st.sampled_from(["train", "held_out"])
_ANY_DENIAL = "|".join(denial for _, denial in VERBS)
_ANY_VERB = "|".join(sorted((verb for pair in VERBS for verb in pair), key=len, reverse=True))


def draw(task: Task, split: Split, seed: int) -> Example:
    return next(examples(task, split, seed, 1))


def words_of(example: Example, kind: str) -> list[str]:
    return [example.user_content[span.start : span.end] for span in example.evidence if span.kind == kind]


def sentiment_by_rule(example: Example) -> str:
    """The label, from the evidence alone: the sign of the polarity words, turned round by a negator."""
    (sign,) = {POLARITY[word.lower()] for word in words_of(example, "polarity")}
    return "Positive" if sign != bool(words_of(example, "negator")) else "Negative"


def boolq_by_rule(example: Example) -> str:
    (verb,) = words_of(example, "verb")
    return "true" if verb in {affirmation for affirmation, _ in VERBS} else "false"


@given(st.sampled_from(TASKS), splits, seeds)
def test_spans_are_ordered_and_lie_in_the_users_text(task: Task, split: Split, seed: int) -> None:
    example = draw(task, split, seed)
    assert example.messages[-1].role == "user"
    assert example.evidence
    previous = 0
    for span in example.evidence:
        assert previous <= span.start < span.end <= len(example.user_content)
        words = example.user_content[span.start : span.end]
        assert words == words.strip()
        assert re.search(r"\w$", example.user_content[: span.start]) is None  # a span starts a word
        assert re.match(r"\w", example.user_content[span.end :]) is None  # and ends one
        previous = span.end


@given(splits, seeds)
def test_sentiment_label_follows_from_its_evidence(split: Split, seed: int) -> None:
    example = draw("sentiment", split, seed)
    negators, polarities = words_of(example, "negator"), words_of(example, "polarity")
    assert len(negators) in (0, len(polarities))
    assert (example.construction == "plain") <= (not negators)
    assert (example.construction == "negation") <= bool(negators)
    assert example.answer == sentiment_by_rule(example)
    assert 5 <= len(example.user_content.split()) <= 46


@given(splits, seeds)
def test_boolq_answer_follows_from_its_evidence(split: Split, seed: int) -> None:
    example = draw("boolq", split, seed)
    assert words_of(example, "subject") == words_of(example, "asked_subject")
    assert example.answer == boolq_by_rule(example)
    passage, question = example.user_content.split("\n\n")
    assert 2 <= passage.count(".") <= 4
    # Exactly one sentence is about the question's subject: the marked one.
    (subject,), (verb,), (value,) = (words_of(example, kind) for kind in ("subject", "verb", "value"))
    (about,) = [fact for fact in re.split(r"[.:]", passage) if re.search(rf"\b{subject}\b", fact)]
    assert about.endswith(f"{subject} {verb} {value}")
    assert words_of(example, "asked_value") == [value]
    assert question.startswith("Question: ")
    # The other sentences are consistent with both answers.
    verbs = re.findall(rf" ({_ANY_VERB}) \w+\.", passage)
    assert {verb in {affirmation for affirmation, _ in VERBS} for verb in verbs} == {True, False}


@given(splits, seeds)
def test_why_answer_restates_the_marked_cause(split: Split, seed: int) -> None:
    example = draw("why", split, seed)
    match = re.search(r" Why did (\w+) [^?]+\?$", example.user_content)
    assert match
    (cause,) = words_of(example, "cause")
    assert example.answer == f"Because {pronoun(match[1])} {cause}."
    assert 5 <= len(example.answer.split()) <= 12
    assert example.user_content.count(match[1]) >= 2
    assert (f" {possessive(match[1])} " in example.answer) or " his " not in example.answer


@given(st.sampled_from(["sentiment", "boolq"]), splits, seeds)
def test_counterfactual_turns_the_label_round_and_back(task: Task, split: Split, seed: int) -> None:
    example = draw(task, split, seed)
    flipped = counterfactual(example)
    rule = sentiment_by_rule if task == "sentiment" else boolq_by_rule
    assert flipped.answer != example.answer
    assert rule(flipped) == flipped.answer
    assert counterfactual(flipped) == example


def test_why_has_no_counterfactual() -> None:
    with pytest.raises(ValueError, match="no counterfactual"):
        counterfactual(draw("why", "train", 0))


@given(st.sampled_from(TASKS), splits, seeds, st.integers(min_value=1, max_value=5))
def test_examples_depend_on_their_arguments_alone(task: Task, split: Split, seed: int, count: int) -> None:
    assert list(examples(task, split, seed, count)) == list(examples(task, split, seed, 5))[:count]


def test_split_of_a_pair_never_changes() -> None:
    """Another division would let held-out pairs of the shipped checkpoint's training into its evaluation."""
    pairs = [("film", "dull"), ("box", "red"), ("dog", "white"), ("soup", "cold"), ("inn", "loved")]
    assert [in_split("held_out", *pair) for pair in pairs] == [False, False, False, False, True]
    assert all(in_split("held_out", *pair) != in_split("train", *pair) for pair in pairs)


@given(splits, seeds)
def test_stated_and_asked_pairs_belong_to_the_split(split: Split, seed: int) -> None:
    for example in (draw("boolq", split, seed), counterfactual(draw("boolq", split, seed))):
        for value in words_of(example, "value") + words_of(example, "asked_value"):
            assert in_split(split, words_of(example, "subject")[0], value)


@given(splits, seeds)
def test_opinions_belong_to_the_split_wherever_they_stand(split: Split, seed: int) -> None:
    adjectives = "|".join(word for word in POLARITY if " " not in word)
    nouns = r"\w+(?: book| house| trip| ride| guide| chapter| display)?"
    clause = re.compile(rf"\bthe ({nouns}) was (?:really |quite |not |never |hardly )?({adjectives})\b", re.IGNORECASE)
    off_topic = ("weather", "traffic", "bus ride", "news")  # these count with their article, as "my job" does
    for noun, word in clause.findall(draw("sentiment", split, seed).user_content):
        assert in_split(split, f"the {noun}" if noun in off_topic else noun, word)


def test_held_out_texts_are_unseen() -> None:
    for task in TASKS:
        train = {example.user_content for example in examples(task, "train", 0, 3000)}
        assert not train & {example.user_content for example in examples(task, "held_out", 0, 1000)}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_labels_are_balanced_in_every_construction(split: Split) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for task in ("sentiment", "boolq"):
        counts.update((example.construction, example.answer) for example in examples(task, split, 1, 4000))
    for construction in {key[0] for key in counts}:
        labels = [count for key, count in counts.items() if key[0] == construction]
        assert len(labels) == 2
        assert abs(labels[0] - labels[1]) < 4 * sum(labels) ** 0.5
    assert {key[0] for key in counts} >= set(CONSTRUCTIONS)


@pytest.mark.parametrize("task", ["sentiment", "boolq"])
def test_no_word_but_polarity_words_tells_the_label(task: Task) -> None:
    """Within 4.5 standard errors of a half, for every sufficiently frequent word."""
    polarity = {token for word in POLARITY for token in word.split()}
    polarity |= {token for verbs in VERBS for verb in verbs for token in verb.split()}
    seen: dict[str, list[bool]] = defaultdict(list)
    for example in examples(task, "train", 2, 6000):
        for word in set(re.findall(r"[\w']+", example.user_content.lower())) - polarity:
            seen[word].append(example.answer in ("Positive", "true"))
    often = {word: labels for word, labels in seen.items() if len(labels) >= 100}
    assert len(often) > 100
    for word, labels in often.items():
        deviation = abs(sum(labels) / len(labels) - 0.5)
        assert deviation < 4.5 * 0.5 / len(labels) ** 0.5, word


def test_signs_outside_the_evidence_tell_nothing() -> None:
    """The first polarity word that does not decide agrees with the label half of the time."""
    pattern = re.compile("|".join(rf"\b{word}\b" for word in sorted(POLARITY, key=len, reverse=True)), re.IGNORECASE)
    agreeing = []
    for example in examples("sentiment", "train", 3, 4000):
        deciding = {span.start for span in example.evidence}
        asides = [match for match in pattern.finditer(example.user_content) if match.start() not in deciding]
        if asides:
            agreeing.append(POLARITY[asides[0][0].lower()] == (example.answer == "Positive"))
    assert len(agreeing) > 1500
    assert abs(sum(agreeing) / len(agreeing) - 0.5) < 0.05


@settings(max_examples=20)
@given(seeds)
def test_raw_texts(seed: int) -> None:
    assert story(Random(seed)).startswith("Once upon a time, ")
    passage, listed = verdicts(Random(seed)).split("\n\nVerdicts: ")
    affirmations = {affirmation for affirmation, _ in VERBS}
    stated = {
        match["value"]: "true" if match["verb"] in affirmations else "false"
        for match in re.finditer(rf" (?P<verb>{_ANY_VERB}) (?P<value>\w+)\.", passage)
    }
    words = listed.split()
    questions = dict(zip(words[::2], words[1::2], strict=True))
    assert 2 <= len(questions) <= 4
    assert questions.items() <= stated.items()


@settings(max_examples=20)
@given(seeds)
def test_retellings_repeat_half_of_the_sentences(seed: int) -> None:
    sentences, again = (re.findall(r"\w[^.]*\.", text) for text in retelling(Random(seed)).split("\n\nAgain: "))
    assert 2 <= len(sentences) <= 5
    assert len({sentence.split()[0] for sentence in sentences}) == len(
        sentences
    )  # so that a name tells which cause to repeat
    assert len(set(again)) == len(again) == (len(sentences) + 1) // 2
    assert set(again) <= set(sentences)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_boolq_answer_does_not_follow_from_denials_or_position(split: Split) -> None:
    """By the number of facts, of denials, and the position of the question's fact: a half, within 4 standard errors.

    Of three facts, the number of denials would tell two answers in three, were it not one as often as two.
    """
    answers: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for example in examples("boolq", split, 4, 4000):
        sentences = re.findall(r"[^.]+\.", example.user_content.split("\n\n")[0])
        denials = sum(re.search(rf" ({_ANY_DENIAL}) ", fact) is not None for fact in sentences)
        (subject,) = (span for span in example.evidence if span.kind == "subject")
        sentence_index = example.user_content[: subject.start].count(".")
        is_true = example.answer == "true"
        answers[f"place among {len(sentences)}", sentence_index].append(is_true)
        answers["facts", len(sentences)].append(is_true)
        if len(sentences) % 2 == 0:
            assert denials == len(sentences) / 2
            answers["denials", denials].append(is_true)
        else:
            assert denials in (1, 2)
    for key, outcomes in answers.items():
        assert abs(sum(outcomes) / len(outcomes) - 0.5) < 4 * 0.5 / len(outcomes) ** 0.5, key


@given(seeds)
def test_training_conversations_leave_half_of_a_passage_unasked(seed: int) -> None:
    """If every fact were asked about, the last answers would follow from the number of denials."""
    turns = training_conversation("boolq", Random(seed))
    facts = turns[1].content.split("\n\n")[0].count(".")
    questions = [re.sub(r".*\n\n", "", turn.content, flags=re.DOTALL) for turn in turns if turn.role == "user"]
    assert len(questions) == len(set(questions)) == (facts + 1) // 2
    assert [turn.content in ("true", "false") for turn in turns if turn.role == "assistant"] == [True] * len(questions)


@given(seeds, st.booleans())
def test_training_conversations_hold_one_or_two_reviews(seed: int, easy: bool) -> None:
    turns = training_conversation("sentiment", Random(seed), easy=easy)
    roles = " ".join(turn.role for turn in turns)
    assert roles in {"system" + " user assistant" * reviews for reviews in ((1,) if easy else (1, 2))}


def test_pieces_render_to_spans() -> None:
    pieces = fill("{subject} was [not] {word}", {"subject": "the film", "word": Piece("dull", "polarity", "good")})
    text, spans = render(sentence(pieces), offset=6)
    assert text == "The film was not dull."
    assert spans == (Span(19, 22, "negator"), Span(23, 27, "polarity", "good"))


def test_corpus_needs_no_torch() -> None:
    """The engine's own package imports torch, so it is stood in for by an empty one on the same path."""
    path = [str(CHECKPOINT.parents[1])]
    code = (
        "import sys, types; package = sys.modules['gradellm_engine'] = types.ModuleType('gradellm_engine');"
        f"package.__path__ = {path!r}; import gradellm_engine.demo_model.training.corpus;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
