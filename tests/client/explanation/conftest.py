"""Explanations that are small enough to compute by hand."""

from __future__ import annotations

from dataclasses import replace

from client.conftest import started as started_proto
from gradellm import Attribution, Explanation, PromptToken, Started, Token
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import responses

# <s> | The cat sat | on a mat: a message each; the second is a segment's.
PROMPT = "The cat sat on a mat"
TOKENS = (
    ("", 0, 0, "template", None, "", True),
    ("The", 0, 3, "system", 0, "", False),
    (" cat", 3, 7, "system", 0, "", False),
    (" s", 7, 9, "user", 1, "doc", False),
    ("at", 9, 11, "user", 1, "doc", False),
    (" on a mat", 11, 20, "user", 1, "", False),
)
ROWS = {
    0: (0.0, 1.0, 0.0, 2.0, 1.0, 0.0),
    1: (4.0, 0.0, -1.0, 0.0, 1.0, 0.0),
    3: (0.0, 0.0, 0.0, 0.0, 0.0, 5.0),
}  # token 2 was not explained
WORDS = (" It", " pur", "rs", " loud")


def explanation(**changes: object) -> Explanation:
    """Three of four tokens of " It purrs loud" explained; `changes` are fields of `Started`."""
    event = responses.event(pb.GenerateResponse(started=started_proto()))
    assert event is not None
    assert event.started is not None
    prompt = tuple(PromptToken(i, *token) for i, token in enumerate(TOKENS))  # type: ignore[arg-type]
    fields = {"prompt_text": PROMPT, "prompt_tokens": prompt, "sources": (), "provenance": event.started.provenance}
    position, tokens = 0, []
    for index, text in enumerate(WORDS):
        tokens.append(Token(index, 50 + index, text, position, position + len(text), -1.0, (), False, None))
        position += len(text)
    rows = tuple(Attribution(index, scores, (), 50 + index, None) for index, scores in ROWS.items())
    return Explanation(Started(**{**fields, **changes}), tuple(tokens), rows, None)  # type: ignore[arg-type]


def shared(*, of_ids: bool = False) -> Explanation:
    """ "日本 x": two tokens are one character, of a text or of ids; the answer's second character has two, too."""
    loaded = explanation()
    spans = [("日", 0, 1, 0), ("日", 0, 1, 0), ("本", 1, 2, 1), (" x", 2, 4, 2)]
    if of_ids:  # offsets as the server has them then: the last token of a character has it
        spans[0] = ("", 0, 0, 0)
    prompt = tuple(
        PromptToken(i, text, a, b, "user", None, "", False, word) for i, (text, a, b, word) in enumerate(spans)
    )
    answer = [("好", 0, 1, 0), ("", 1, 1, None), ("的", 1, 2, 1), (" ok", 2, 5, 2)]
    tokens = tuple(Token(i, i, text, a, b, -1.0, (), False, None, word) for i, (text, a, b, word) in enumerate(answer))
    rows = tuple(Attribution(i, (1.0, 2.0, 1.0, -1.0), (), i, None) for i in range(4))
    return Explanation(replace(loaded.started, prompt_text="日本 x", prompt_tokens=prompt), tokens, rows, None)
