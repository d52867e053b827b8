"""Headers that are passed on."""

from __future__ import annotations

from gradellm_gateway.upstream.headers import call_metadata, request_headers, response_headers

CALLERS = [
    (b"Host", b"gateway:8080"),
    (b"Authorization", b"Bearer key"),
    (b"Connection", b"keep-alive, X-Mine ,close"),
    (b"X-Mine", b"1"),
    (b"X-Other", b"2"),
    (b"TE", b"trailers"),
    (b"Transfer-Encoding", b"chunked"),
    (b"Upgrade", b"h2c"),
    (b"Expect", b"100-continue"),
    (b"Proxy-Authorization", b"Basic x"),
    (b"Accept-Encoding", b"gzip"),
    (b"Content-Length", b"9"),
]


def test_headers_of_one_connection_are_dropped() -> None:
    assert request_headers(CALLERS, b"vllm:8000") == [
        (b"host", b"vllm:8000"),
        (b"authorization", b"Bearer key"),
        (b"x-other", b"2"),
        (b"accept-encoding", b"gzip"),
        (b"content-length", b"9"),
        (b"via", b"1.1 gradellm"),
    ]


def test_a_changed_body_has_its_own_length_and_asks_for_an_answer_that_is_not_encoded() -> None:
    passed = dict(request_headers(CALLERS, b"vllm:8000", length=12))
    assert passed[b"content-length"] == b"12"
    assert passed[b"accept-encoding"] == b"identity"


def test_headers_of_an_answer_are_the_upstreams() -> None:
    upstreams = [(b"Date", b"now"), (b"Server", b"uvicorn"), (b"X-Own", b"a"), (b"X-Own", b"b"), (b"Keep-Alive", b"1")]
    upstreams.append((b"Content-Length", b"3"))
    assert response_headers(upstreams) == [
        (b"server", b"uvicorn"),
        (b"x-own", b"a"),
        (b"x-own", b"b"),
        (b"content-length", b"3"),
    ]
    assert (b"content-length", b"3") not in response_headers(upstreams, is_changed=True)


def test_id_and_trace_are_those_of_the_caller() -> None:
    sent = [(b"Traceparent", b"00-a-b-01"), (b"x", b"y"), (b"tracestate", b"v=1"), (b"X-Request-Id", b"a1")]
    assert call_metadata(sent) == (("traceparent", "00-a-b-01"), ("tracestate", "v=1"), ("x-request-id", "a1"))


def test_values_that_metadata_cannot_have_are_left_out() -> None:
    assert call_metadata([(b"tracestate", "ä".encode()), (b"traceparent", b""), (b"x-request-id", b"a" * 513)]) == ()
