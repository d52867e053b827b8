"""An explained answer of three sentences about two documents, with scores that tests choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from client.explanation.conftest import explanation as simple
from gradellm import Attribution, Explanation, PromptToken, Token

DOCUMENTS = {
    "menu": ["Soup", " is", " five", " coins.", " Bread", " is", " two."],
    "hours": ["We", " open", " at", " nine."],
}
ANSWER = [
    "The",
    " soup",
    " costs",
    " five",
    " coins.",
    " We",
    " open",
    " at",
    " nine.",
    " Have",
    " a",
    " nice",
    " day.",
]
LOW = 0.1


def prompt_tokens() -> tuple[tuple[PromptToken, ...], str]:
    """ "Soup is five coins. Bread is two. We open at nine. What?" in a template's tokens."""
    parts = [("<u>", "", "template")]
    for name, texts in DOCUMENTS.items():
        parts += [(text, name, "user") for text in texts]
        parts.append((" ", "", "user"))
    parts += [("What", "", "user"), ("?", "", "user"), ("<a>", "", "template")]
    tokens, text = [], ""
    for index, (part, segment, role) in enumerate(parts):
        span = (len(text), len(text) + len(part))
        tokens.append(PromptToken(index, part, *span, role, 0, segment, role == "template", index))  # type: ignore[arg-type]
        text += part
    return tuple(tokens), text


def answered(high: dict[int, dict[int, float]], rows: set[int] | None = None, **changes: Any) -> Explanation:
    """An explained ANSWER: scores are LOW, but for `high[token][column]`; with rows for the tokens of `rows` only."""
    tokens, text = prompt_tokens()
    started = replace(simple().started, prompt_text=text, prompt_tokens=tokens, **changes)
    position, answer = 0, []
    for index, part in enumerate(ANSWER):
        answer.append(Token(index, index, part, position, position + len(part), -1.0, (), False, None))
        position += len(part)
    attributions = tuple(
        Attribution(index, tuple(high.get(index, {}).get(c, LOW) for c in range(len(tokens))), (), index, None)
        for index in range(len(ANSWER))
        if rows is None or index in rows
    )
    return Explanation(started, tuple(answer), attributions, None)


def column(name: str, text: str) -> int:
    return next(i for i, token in enumerate(prompt_tokens()[0]) if (token.segment, token.text) == (name, text))


HIGH = {
    1: {column("menu", "Soup"): 5.0},
    3: {column("menu", " five"): 9.0},
    4: {column("menu", " coins."): 6.0, column("hours", " at"): 1.0},
    5: {column("hours", "We"): 4.0},
    6: {column("hours", " open"): 4.0},
    8: {column("hours", " nine."): 8.0},
}


def asked(question: str, high: dict[int, dict[str, float]]) -> Explanation:
    """The explanation of HIGH with another question, a token a word; `high` has scores of its words by token."""
    loaded = answered(HIGH)
    last = next(i for i, token in enumerate(loaded.prompt_tokens) if token.text == "What")
    tokens, text = list(loaded.prompt_tokens[:last]), loaded.prompt_text[: loaded.prompt_text.index("What")]
    columns = {}
    for word in question.split():
        columns[word] = len(tokens)
        tokens.append(
            PromptToken(0, f"{word} ", len(text), len(text) + len(word) + 1, "user", 0, "", False, len(tokens))
        )
        text += f"{word} "
    rows = []
    for row in loaded.attributions:
        scores = [*row.scores[:last], *[LOW] * len(columns)]
        for word, score in high.get(row.token_index, {}).items():
            scores[columns[word]] = score
        rows.append(Attribution(row.token_index, tuple(scores), (), 0, None))
    started = replace(loaded.started, prompt_text=text, prompt_tokens=tuple(tokens))
    return Explanation(started, loaded.tokens, tuple(rows), None)
