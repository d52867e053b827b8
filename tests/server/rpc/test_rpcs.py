"""RPCs: their table is the contract's, and each hands all of its request's fields to the engine."""

from __future__ import annotations

import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine, InvalidRequestError, Request, Started
from gradellm_server.rpc.rpcs import STREAMING_RPCS, UNARY_RPCS, attribute, evaluate, generate, num_tokens, tokenize

PROMPT = pb.Input(prompt="Once upon a time")
EVALUATION = pb.EvaluationOptions(methods=[pb.EvaluatedMethod()])


def started(request: Request) -> Started:
    (event,) = request.events
    assert isinstance(event, Started)
    return event


def test_the_table_is_that_of_the_contract() -> None:
    """Types of requests and responses, and which RPCs stream; GetServerInfo needs no engine thread.

    Follow, whose requests stream, is in `gradellm_server.rpc.follow`.
    """
    methods = pb.DESCRIPTOR.services_by_name["ExplainerService"].methods
    assert {*STREAMING_RPCS, *UNARY_RPCS} == {method.name for method in methods} - {"GetServerInfo", "Follow"}
    assert {method.name for method in methods if method.server_streaming} == {*STREAMING_RPCS, "Follow"}
    for method in methods:
        if method.name in STREAMING_RPCS:
            request, _, response = STREAMING_RPCS[method.name]
            assert (method.input_type, method.output_type) == (request.DESCRIPTOR, response.DESCRIPTOR)
        elif method.name in UNARY_RPCS:
            assert method.input_type == UNARY_RPCS[method.name][0].DESCRIPTOR


def test_generate_without_options_explains_nothing(engine: Engine) -> None:
    assert started(generate(pb.GenerateRequest(input=PROMPT), engine)).attribution is None
    explained = generate(pb.GenerateRequest(input=PROMPT, attribution=pb.AttributionOptions()), engine)
    assert started(explained).attribution is not None


def test_the_tenant_reaches_the_request(engine: Engine) -> None:
    """Prefixes are shared within a tenant alone."""
    calls = (
        generate(pb.GenerateRequest(input=PROMPT), engine, tenant="alice"),
        attribute(pb.AttributeRequest(input=PROMPT, completion="a"), engine, tenant="alice"),
        evaluate(pb.EvaluateRequest(input=PROMPT, completion="a", evaluation=EVALUATION), engine, tenant="alice"),
    )
    assert [call.tenant for call in calls] == ["alice"] * 3


def test_a_completion_is_text_or_ids(engine: Engine) -> None:
    text = attribute(pb.AttributeRequest(input=PROMPT, completion="abc"), engine)
    ids = attribute(pb.AttributeRequest(input=PROMPT, completion_ids=[70, 71, 72]), engine)
    assert text.max_num_tokens == ids.max_num_tokens == len(text.prompt.ids) + 3
    both = pb.AttributeRequest(input=PROMPT, completion="a", completion_ids=[70])
    for request in (pb.AttributeRequest(input=PROMPT), both):
        with pytest.raises(InvalidRequestError, match="give exactly one of completion and completion_ids"):
            attribute(request, engine)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.EvaluateRequest(completion="", labels=["a"]), "completion, labels"),  # an empty text is a completion
        (pb.EvaluateRequest(completion_ids=[1], generation=pb.GenerationOptions()), "completion_ids, generation"),
    ],
)
def test_evaluate_names_the_fields_that_exclude_each_other(
    request_: pb.EvaluateRequest, fields: str, engine: Engine
) -> None:
    with pytest.raises(InvalidRequestError, match=f"at most one of .*; these are set: {fields}$"):
        evaluate(request_, engine)


def test_tokenize_returns_the_prompt_of_generate(engine: Engine) -> None:
    chat = pb.Input(messages=[pb.Message(role="user", content="Hello you")])
    response = tokenize(pb.TokenizeRequest(input=chat), engine)
    prompt = generate(pb.GenerateRequest(input=chat), engine).prompt
    assert response.prompt_text == prompt.text
    assert [token.id for token in response.tokens] == prompt.ids
    assert {token.message for token in response.tokens if token.HasField("message")} == {0}
    assert num_tokens(response) == len(prompt.ids)
