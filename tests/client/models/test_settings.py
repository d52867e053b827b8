"""Settings as the server resolved them."""

from __future__ import annotations

from gradellm.models import AttributionSettings
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import responses


def settings(**fields: object) -> AttributionSettings:
    event = responses.event(pb.AttributeResponse(started={"provenance": {"attribution": fields}}))
    assert event is not None
    assert event.started is not None
    assert event.started.provenance.attribution is not None
    return event.started.provenance.attribution


def test_without_a_selection_every_token_is_explained() -> None:
    assert settings().tokens == ()
    assert all(settings().explains(index) for index in range(9))


def test_of_a_selection_the_selected_tokens_are_explained() -> None:
    some = settings(tokens={"indexes": [1, 4]})
    assert some.tokens == (1, 4)
    assert [index for index in range(9) if some.explains(index)] == [1, 4]
