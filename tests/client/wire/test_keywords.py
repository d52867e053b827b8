"""Every field of a request has its keyword, and every keyword its field."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.keywords import (
    AttributeKeywords,
    AttributionKeywords,
    CallKeywords,
    EvaluateKeywords,
    GenerateKeywords,
    InputKeywords,
    StructuredOutputKeywords,
    TokenizeKeywords,
)

RENAMED: dict[str, dict[str, str]] = {
    "AttributionOptions": {"preset": "attribution", "target_token_id": "target", "seed": "attribution_seed"},
    "GenerationOptions": {"seed": "generation_seed"},
}


def names_of(
    *messages: Any, nested: frozenset[str] = frozenset({"input", "attribution", "structured_output"})
) -> set[str]:
    """The keywords that the fields of several messages have, without the fields that are such messages."""
    return {
        RENAMED.get(message.DESCRIPTOR.name, {}).get(field.name, field.name)
        for message in messages
        for field in message.DESCRIPTOR.fields
        if field.name not in nested
    }


def test_the_prompt_in_text_is_the_calls_own_argument() -> None:
    assert names_of(pb.Input) - {"prompt"} == set(InputKeywords.__annotations__)


def test_every_option_of_attribution_has_its_keyword() -> None:
    assert names_of(pb.AttributionOptions) == set(AttributionKeywords.__annotations__)


@pytest.mark.parametrize(
    ("message", "keywords", "shared"),
    [
        (pb.TokenizeRequest, TokenizeKeywords, (CallKeywords, InputKeywords)),
        (
            pb.GenerateRequest,
            GenerateKeywords,
            (CallKeywords, InputKeywords, AttributionKeywords, StructuredOutputKeywords),
        ),
        (pb.AttributeRequest, AttributeKeywords, (CallKeywords, InputKeywords, AttributionKeywords)),
    ],
)
def test_every_field_of_a_request_has_its_keyword(message: Any, keywords: Any, shared: tuple[Any, ...]) -> None:
    inherited = {name for part in shared for name in part.__annotations__}
    assert set(keywords.__annotations__) == names_of(message) | inherited


def test_every_field_of_an_evaluation_has_its_keyword() -> None:
    """`explanation` stands for prompt, completion and scores."""
    parts = (pb.EvaluateRequest, pb.EvaluationOptions, pb.GenerationOptions)
    names = names_of(*parts, nested=frozenset({"input", "evaluation", "generation"}))
    inherited = {*CallKeywords.__annotations__, *InputKeywords.__annotations__}
    assert set(EvaluateKeywords.__annotations__) == names | inherited | {"explanation"}
