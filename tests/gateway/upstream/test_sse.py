"""Events are cut from a stream without a byte being changed."""

from __future__ import annotations

import random

import pytest

from gradellm_gateway.upstream.sse import EventSplitter, event_bytes

EVENTS = [
    b'data: {"a": 1}\n\n',
    b": ping\r\n\r\n",
    b"data:[DONE]\n\n",
    b"event: x\ndata: y\n\n",
    b"data: a\ndata: b\n\n",
]


@pytest.mark.parametrize("seed", range(20))
def test_any_pieces_add_up_to_the_same_events(seed: int) -> None:
    draw = random.Random(seed)
    stream, splitter, found = b"".join(EVENTS), EventSplitter(), []
    while stream:
        size = draw.randint(1, 9)
        found += splitter.add(stream[:size])
        stream = stream[size:]
    assert [event.raw for event in found] == EVENTS
    assert [event.data for event in found] == [b'{"a": 1}', None, b"[DONE]", None, None]
    assert not splitter.has_rest


def test_an_event_that_is_too_large_comes_in_pieces_and_the_next_is_whole_again() -> None:
    splitter = EventSplitter(max_bytes=100)
    large = b"data: " + b"x" * 1000 + b"\n\n"
    found = [event for byte in large + EVENTS[0] for event in splitter.add(bytes([byte]))]
    assert b"".join(event.raw for event in found) == large + EVENTS[0]
    assert [event.data for event in found if event.is_whole] == [b'{"a": 1}']
    assert all(event.data is None for event in found if not event.is_whole)


def test_half_an_event_is_a_rest() -> None:
    splitter = EventSplitter()
    assert splitter.add(b'data: {"a') == []
    assert splitter.has_rest


def test_data_is_json_also_with_surrogates_that_stand_alone() -> None:
    assert event_bytes({"a": "é"}) == 'data: {"a":"é"}\n\n'.encode()
    assert event_bytes({"a": "\ud800"}) == b'data: {"a":"\\ud800"}\n\n'
