"""Calls that are written, and whether they are complete."""

from __future__ import annotations

import pytest

from gradellm.parsers.deltas import CallDraft


@pytest.mark.parametrize(
    ("arguments", "is_closed", "is_complete"),
    [
        ("{}", True, True),
        ("{}", False, False),
        ("[]", True, False),
        ('{"a": NaN}', True, False),
        ("[" * 10**5, True, False),
    ],
)
def test_a_complete_call_has_an_object(arguments: str, is_closed: bool, is_complete: bool) -> None:
    draft = CallDraft(0, "f", 0, (1, 2), 9, [arguments], is_closed=is_closed)
    assert draft.written().is_complete is is_complete
    assert draft.written().arguments_span == (9, 9)
