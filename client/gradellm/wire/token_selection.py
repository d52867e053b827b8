"""From the keyword `tokens` to a TokenSelection proto."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import validation

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["found_spans", "token_selection"]

_FORMS = "an index, a range, a word, a text, a regular expression, or a list of these and of (start, end) spans"
_MAX_INDEXES = 2**20  # of a range: more than any completion has tokens, so that the server refuses it by its own limit


def token_selection(tokens: object, completion: str | None, remedy: str) -> pb.TokenSelection:
    """Build the selection of a completion's tokens.

    `completion` is the text in which texts and regular expressions are looked up. Where it is None they are refused,
    with `remedy`, which says what to do instead.
    """
    selection = pb.TokenSelection()
    choices = tokens if isinstance(tokens, list | tuple | set | frozenset) else [tokens]
    for place, choice in enumerate(choices):
        name = f"tokens[{place}]" if choices is tokens else "tokens"
        if isinstance(choice, str | re.Pattern):
            if completion is None:
                raise InvalidRequestError.of(name, remedy)
            selection.spans.extend(
                pb.TextSpan(start=start, end=end) for start, end in found_spans(name, choice, completion)
            )
        elif isinstance(choice, list | tuple):
            selection.spans.append(_span(name, choice))
        else:
            selection.indexes.extend(_indexes(name, choice))
    if not (selection.indexes or selection.spans):
        raise InvalidRequestError.of("tokens", "is empty; leave it out to explain all tokens")
    return selection


def found_spans(name: str, wanted: str | re.Pattern[Any], text: str) -> Iterator[tuple[int, int]]:
    """Yield the first place of a text, or all matches of a regular expression that hold a character.

    Raises InvalidRequestError, which names the keyword `name`, if there is none.
    """
    if isinstance(wanted, re.Pattern) and not isinstance(wanted.pattern, str):
        raise InvalidRequestError.of(name, f"must be a regular expression of texts, not of bytes: {wanted.pattern!r}")
    if isinstance(wanted, str):
        start = text.find(validation.text(name, wanted))
        spans = [(start, start + len(wanted))] if start >= 0 and wanted else []
    else:
        spans = [match.span() for match in wanted.finditer(text) if match.end() > match.start()]
    if not spans:
        kind, shown = ("the text", wanted) if isinstance(wanted, str) else ("a match of", wanted.pattern)
        raise InvalidRequestError.of(name, f"the completion does not have {kind} {validation.short_repr(shown)}")
    yield from spans


def _span(name: str, choice: list[Any] | tuple[Any, ...]) -> pb.TextSpan:
    numbers = validation.int32s(name, choice)
    if len(numbers) != 2:
        raise InvalidRequestError.of(
            name, f"must be a span (start, end) of the completion's text, not {validation.short_repr(choice)}"
        )
    return pb.TextSpan(start=numbers[0], end=numbers[1])


def _indexes(name: str, choice: object) -> list[int]:
    """Return the indexes of an index, a range or a word."""
    if isinstance(choice, range):
        if not choice:
            raise InvalidRequestError.of(name, f"is {choice}, which holds no index")
        validation.int32(name, choice[0])
        validation.int32(name, choice[-1])
        return list(choice[:_MAX_INDEXES])
    if (indexes := getattr(choice, "token_indexes", None)) is not None:
        return validation.some_int32s(name, indexes)
    if isinstance(choice, bool) or not hasattr(choice, "__index__"):
        raise InvalidRequestError.of(name, f"must be {_FORMS}, not {validation.short_repr(choice)}")
    return [validation.int32(name, choice)]
