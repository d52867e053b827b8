"""Structured output: from the keywords json_schema, json_object, grammar, regex and choice to the message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import validation

if TYPE_CHECKING:
    from gradellm.wire.keywords import StructuredOutputKeywords

__all__ = ["structured_output"]

_NAMES = ("json_schema", "json_object", "grammar", "regex", "choice")


def structured_output(keywords: StructuredOutputKeywords) -> pb.StructuredOutput | None:
    """Return what the completion has to be; None without any of the keywords.

    Raises InvalidRequestError for several keywords, and for values that are not what the keyword takes.
    """
    given = {name: value for name in _NAMES if (value := keywords.get(name)) is not None}
    if not given:
        return None
    validation.exactly_one({name: given.get(name) for name in _NAMES})
    if "json_schema" in given:
        return pb.StructuredOutput(json_schema=_schema_text(given["json_schema"]))
    if "json_object" in given:
        if not validation.boolean("json_object", given["json_object"]):
            return None
        return pb.StructuredOutput(json_object=True)
    if "choice" in given:
        texts = validation.texts("choice", keywords)
        if not texts:
            raise InvalidRequestError.of("choice", "needs at least one text")
        return pb.StructuredOutput(choice=pb.Choice(texts=texts))
    ((name, value),) = given.items()
    return pb.StructuredOutput(**{name: validation.text(name, value)})  # type: ignore[arg-type]


def _schema_text(schema: object) -> str:
    """Return a schema as JSON text: of a text, a mapping, a bool, or a Pydantic model's class."""
    if isinstance(schema, str):
        return validation.text("json_schema", schema)
    if callable(of_model := getattr(schema, "model_json_schema", None)):
        schema = of_model()
    if not isinstance(schema, Mapping | bool):
        raise InvalidRequestError.of(
            "json_schema", f"must be a mapping, JSON text or a Pydantic model, not {validation.short_repr(schema)}"
        )
    try:
        return json.dumps(schema if isinstance(schema, bool) else dict(schema), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError.of("json_schema", f"is not JSON: {error}") from error
