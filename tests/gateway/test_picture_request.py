"""Pictures of a part of an answer, of the rows that the caller sends along."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from client.explanation.conftest import explanation
from gradellm import InvalidRequestError
from gradellm.pictures.chips import canvas
from gradellm.pictures.document import canvas_document, picture_document
from gradellm_gateway.picture_request import PictureRequest
from support.http.calls import post


def plain(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(replace(explanation(), **changes).to_json())
    return document


@pytest.mark.parametrize("scale", ["excess", "raw", "retention"])
@pytest.mark.parametrize("selection", [None, [0, 1], [0, 2]])
def test_a_picture_is_the_explanations(scale: Any, selection: list[int] | None) -> None:
    body = {"explanation": plain(), "selection": selection, "scale": scale, "pi": 0.5}
    response = PictureRequest.from_json(body).response()
    expected = explanation().picture(None if selection is None else range(*selection), scale=scale, pi=0.5)
    assert response["picture"] == picture_document(expected)
    assert response["canvas"] == canvas_document(explanation().started, canvas(explanation().started))


def test_the_rows_of_the_selection_are_enough() -> None:
    rows = tuple(row for row in explanation().attributions if row.token_index < 2)
    one = PictureRequest.from_json({"explanation": plain(attributions=rows), "selection": [0, 2]}).response()
    assert one["picture"] == picture_document(explanation().picture(range(2)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"explanation": None}, "explanation"),
        ({"explanation": 3}, "explanation"),
        ({"explanation": {"format": "other"}}, "explanation"),
        ({"selection": [0]}, "selection"),
        ({"selection": [2, 2]}, "selection"),
        ({"selection": [-1, 2]}, "selection"),
        ({"selection": [0, 10**9]}, "selection"),
        ({"selection": [0, True]}, "selection[1]"),
        ({"selection": "It"}, "selection"),
        ({"scale": "loud"}, "scale"),
        ({"scale": 1}, "scale"),
        ({"scale": "retention", "pi": 1}, "pi"),
        ({"colour": 1}, "colour"),
    ],
)
def test_refusals_name_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        PictureRequest.from_json({"explanation": plain(), **changes})
    assert error.value.violations[0].field == field


def test_a_selection_that_was_not_explained_is_refused() -> None:
    request = PictureRequest.from_json({"explanation": plain(attributions=()), "selection": [0, 1]})
    with pytest.raises(InvalidRequestError, match=r"selection: .*explained"):
        request.response()


def test_the_route(url: str) -> None:
    status, _, said = post(f"{url}/v1/gradellm/pictures", {"explanation": plain(), "selection": [0, 1]})
    assert status == 200
    assert json.loads(said)["picture"] == picture_document(explanation().picture(range(1)))
    status, _, said = post(f"{url}/v1/gradellm/pictures", {"explanation": plain(), "selection": [0, 99]})
    assert status == 400
    assert json.loads(said)["error"]["param"] == "selection"
    assert post(f"{url}/v1/gradellm/pictures", [])[0] == 400
