"""Requests for the picture of a part of an answer, which the caller sends along: the gateway holds nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from gradellm import Explanation, InvalidExplanationError, InvalidRequestError
from gradellm.pictures.chips import canvas
from gradellm.pictures.document import canvas_document, picture_document
from gradellm.pictures.picture import DEFAULT_PI, Scale
from gradellm_gateway.fields import Check, integer, list_, listed, number, object_, quoted, text, truncated

__all__ = ["PICTURE_FIELDS", "PictureRequest"]


@dataclass(frozen=True)
class PictureRequest:
    """A validated request for a picture.

    Attributes:
        explanation: the answer, with the attribution rows of the selection at least.
        selection: the tokens whose rows are added up; None for the whole answer.
        scale: what colours stand for.
        pi: with scale "retention": the mean of the keep probabilities.
    """

    explanation: Explanation
    selection: range | None
    scale: Scale
    pi: float

    @classmethod
    def from_json(cls, body: Any) -> PictureRequest:  # noqa: ANN401 (whatever a client sent)
        """Validate a request's JSON value. Raises InvalidRequestError, which names the field."""
        if not isinstance(body, Mapping):
            raise InvalidRequestError("the request must be a JSON object")
        for name, value in body.items():
            if name not in PICTURE_FIELDS:
                raise InvalidRequestError.of(truncated(name), f"is not known; there are {listed(PICTURE_FIELDS)}")
            if value is not None:
                PICTURE_FIELDS[name](name, value)
        if body.get("explanation") is None:
            raise InvalidRequestError.of("explanation", "is missing: send the answer as Explanation.to_json writes it")
        try:
            explanation = Explanation.from_json(json.dumps(body["explanation"]))
        except InvalidExplanationError as error:
            raise InvalidRequestError.of("explanation", str(error)) from error
        return cls(
            explanation,
            _selection(explanation, body.get("selection")),
            body.get("scale") or "excess",
            DEFAULT_PI if body.get("pi") is None else float(body["pi"]),
        )

    def response(self) -> dict[str, Any]:
        """Return `canvas`, the prompt as chips, and `picture`.

        Raises InvalidRequestError for a selection outside of the answer, or one that was not explained.
        """
        try:
            picture = self.explanation.picture(self.selection, scale=self.scale, pi=self.pi)
        except InvalidExplanationError as error:
            raise InvalidRequestError.of("selection", str(error)) from error
        started = self.explanation.started
        return {"canvas": canvas_document(started, canvas(started)), "picture": picture_document(picture)}


def _selection(explanation: Explanation, bounds: list[int] | None) -> range | None:
    """Return the selected tokens. Raises InvalidRequestError for tokens that the answer does not have."""
    first, end = (tokens[0].index, tokens[-1].index + 1) if (tokens := explanation.tokens) else (0, 0)
    if bounds is None:
        return None
    if bounds[0] < first or bounds[1] > end:
        raise InvalidRequestError.of("selection", f"the answer has tokens [{first}, {end}], not {bounds}")
    return range(*bounds)


def _range(path: str, value: object) -> None:
    list_(path, value)
    bounds = value if isinstance(value, list) else []
    for index, bound in enumerate(bounds):
        integer(f"{path}[{index}]", bound)
    if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1]:
        raise InvalidRequestError.of(path, "must be [first token, one past the last], such as [0, 3]")


def _scale(path: str, value: object) -> None:
    text(path, value)
    if value not in get_args(Scale):
        raise InvalidRequestError.of(path, f"must be {listed(get_args(Scale))}, not {quoted(value)}")


def _pi(path: str, value: object) -> None:
    number(path, value)
    if isinstance(value, int | float) and not 0 < value < 1:
        raise InvalidRequestError.of(path, f"must be between 0 and 1, not {quoted(value)}")


PICTURE_FIELDS: dict[str, Check] = {"explanation": object_, "selection": _range, "scale": _scale, "pi": _pi}
"""Checks by field name. null is the same as absent, except for `explanation`."""
