"""Text that follows a prompt: completions and contrasts as tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers.normalizers import Lowercase

from engine.core.generation_helpers import (
    GREEDY,
    attribution,
    completion,
)
from gradellm_engine import (
    AttributionSettings,
    Contrast,
    Engine,
    InvalidRequestError,
    Message,
    PromptInput,
    TokenSelection,
)

ModelPath = Callable[[str], Path]


@pytest.fixture(scope="module")
def demo(model_path: ModelPath) -> Engine:
    return Engine.load(str(model_path("demo")))


@pytest.mark.parametrize(
    ("model", "prompt", "text", "pieces"),
    [
        ("llama", "abc", "dé", ["d", "", "é"]),
        ("demo", "Once upon a", " time", [" time"]),
        ("stories260K", "Once upon a", " time", [" time"]),
        ("stories260K", "😀", "é", ["é"]),
        ("demo", "Once", "</s>", None),
    ],
)
def test_a_completion_is_tokenised_as_it_reads_after_the_prompt(
    model_path: ModelPath, model: str, prompt: str, text: str, pieces: list[str] | None
) -> None:
    engine = Engine.load(str(model_path(model)))
    generation = engine.attribute(prompt, text)
    steps = list(generation)
    if pieces is not None:
        assert [s.text for s in steps] == pieces
    ids = engine.tokenize(prompt).ids + [s.id for s in steps]
    assert engine.tokenize(PromptInput(prompt_ids=tuple(ids))).text.endswith(prompt + text)


def test_a_completion_that_would_merge_with_the_prompt_is_refused(model_path: ModelPath) -> None:
    """'t' and 'ime' are not the tokens of 'time'; tokenised alone, 'ime' would begin with a space."""
    engine = Engine.load(str(model_path("stories260K")))
    with pytest.raises(InvalidRequestError, match="completion_ids") as caught:
        engine.attribute("Once upon a t", "ime")
    assert caught.value.field == "completion"


def test_a_completion_after_messages_and_ids(engine: Engine) -> None:
    for prompt in (PromptInput(messages=(Message("user", "hi"),)), PromptInput(prompt_ids=(256, 64, 65))):
        assert completion(engine.attribute(prompt, "yes")) == "yes"


def test_a_completion_that_the_tokenizer_changes_is_refused(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")))
    engine.model.tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert [step.text for step in engine.attribute("a", "bc")] == ["b", "c"]
    with pytest.raises(
        InvalidRequestError, match=r"completion: its tokens read 'bc', which is not the text that was sent"
    ):
        engine.attribute("a", "Bc")


def test_a_contrast_that_cannot_follow_the_prompt_is_refused_with_the_reason(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")))
    engine.model.tokenizer.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(InvalidRequestError, match=r"its tokens read 'b', which is not the text") as caught:
        engine.generate("a", GREEDY, AttributionSettings(contrast=Contrast(text="B")))
    assert caught.value.field == "attribution.contrast.text"


def test_a_contrast_text_takes_the_space_of_its_target(demo: Engine) -> None:
    """A target that begins with a space is contrasted with the spaced token, any other with the plain one."""
    plain, spaced = demo.model.tokenizer.convert_tokens_to_ids(["a", "Ġa"])
    assert None not in (plain, spaced)
    explained = AttributionSettings(contrast=Contrast(text="a"))
    found = set()
    for step in demo.attribute("The film is", " so good. It", explained):
        expected = spaced if step.text.startswith(" ") else plain
        assert attribution(step).contrast_token_id == expected
        found.add(expected)
    assert found == {plain, spaced}
    exactly = AttributionSettings(contrast=Contrast(text=" a"))
    assert {attribution(s).contrast_token_id for s in demo.attribute("The film is", " so good. It", exactly)} == {
        spaced
    }


def test_a_contrast_of_several_tokens_is_refused_with_the_tokens(demo: Engine) -> None:
    with pytest.raises(InvalidRequestError, match=r"is \d tokens \(\d+ '.*'.*\), and a contrast is one") as caught:
        demo.generate("The film is", GREEDY, AttributionSettings(contrast=Contrast(text="goodgood")))
    assert caught.value.field == "attribution.contrast.text"
    with pytest.raises(InvalidRequestError, match="the limit is 15"):
        demo.generate("The film is", GREEDY, AttributionSettings(contrast=Contrast(text="good" * 9)))


def test_spans_of_a_text_with_special_tokens_are_refused(engine: Engine) -> None:
    """The completion's text leaves a special token out, so that offsets of the sent text are not its offsets."""
    ids = [step.id for step in engine.attribute("Once", "ab</s>c")]
    assert ids[2] in engine.model.encoder.special_ids
    spans = AttributionSettings(tokens=TokenSelection(spans=((2, 3),)))
    with pytest.raises(InvalidRequestError, match=f"has special tokens \\({ids[2]} '</s>'\\)") as caught:
        engine.attribute("Once", "ab</s>c", spans)
    assert caught.value.field == "attribution.tokens.spans"
    steps = list(engine.attribute("Once", ids, spans))  # of ids, spans are those of the tokens' text
    assert [(step.index, step.text) for step in steps if step.attribution is not None] == [(3, "c")]
