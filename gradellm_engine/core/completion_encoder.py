"""Tokenises text that follows a prompt: given completions, labels, and contrast texts.

The end of the prompt and the text are tokenised together, because a text that is tokenised alone may begin with
another token.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradellm_engine.core.request_limits import RequestLimits
from gradellm_engine.core.request_spec import ContrastTokens
from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.params import TokenSelection
from gradellm_engine.tokenization.detokenizer import CONTEXT_TOKENS, CompletionText
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt import Prompt, prompt_tails
from gradellm_engine.tokenization.prompt_input import check_text
from gradellm_engine.tokenization.prompt_reader import check_embedded, check_token_ids, encode
from gradellm_engine.tokenization.token_selection import TokenText

MAX_SHOWN_TOKENS = 8  # in an error message
MAX_SHOWN_CHARACTERS = 60


class CompletionEncoder:
    """Turns text into the token ids that it has after a prompt."""

    def __init__(self, encoder: TextEncoder, vocab_size: int, limits: RequestLimits) -> None:
        self._encoder, self._vocab_size, self._limits = encoder, vocab_size, limits

    def completion_ids(self, prompt: Prompt, completion: str | Sequence[int]) -> list[int]:
        """The tokens of a given completion, at least one.

        Raises:
            InvalidRequestError: where the text cannot follow the prompt, an id is not in the vocabulary, or the
                completion does not fit the context.
        """
        if isinstance(completion, str):
            ids = self.encode(prompt, completion, "completion")
            check_embedded("completion", ids, self._vocab_size)
        else:
            ids = list(completion)
            check_token_ids("completion_ids", ids, self._vocab_size)
        if not ids:
            raise InvalidRequestError("completion", "must have at least one token")
        self._limits.check_room("completion", prompt, len(ids))
        return ids

    def check_spans(self, selection: TokenSelection, ids: Sequence[int]) -> None:
        """Refuse spans of a completion that was sent as text, where its tokens' text leaves a part of that out.

        Raises:
            InvalidRequestError: where there are spans, and special tokens among `ids`.
        """
        special = next((token_id for token_id in ids if token_id in self._encoder.special_ids), None)
        if selection.spans and special is not None:
            raise InvalidRequestError(
                "attribution.tokens.spans",
                f"the completion has special tokens ({special} {self._encoder.decode_alone(special)!r}), whose text "
                "spans do not count: give indexes, or send completion_ids",
            )

    def token_texts(self, prompt: Prompt, ids: Sequence[int]) -> list[TokenText]:
        """The text of each token of a given completion, as its tokens are reported."""
        special_ids = self._encoder.special_ids
        text = CompletionText(lambda some: self._encoder.decode(some, skip_special_tokens=True), prompt.ids)
        for token_id in ids:
            text.push(token_id)
        text.finish()
        return [
            TokenText(start, end, token_id in special_ids)
            for token_id, (start, end) in zip(ids, text.spans, strict=True)
        ]

    def label_ids(self, prompt: Prompt, labels: Sequence[str]) -> list[int]:
        """The first token of each label.

        Raises:
            InvalidRequestError: where a label cannot follow the prompt, or two labels begin with the same token.
        """
        ids: list[int] = []
        for index, label in enumerate(labels):
            field = f"labels[{index}]"
            try:
                first = self.encode(prompt, label, field)[0]
                check_embedded(field, [first], self._vocab_size)
            except InvalidRequestError as error:
                raise InvalidRequestError(field, f"{label!r}: {error.description}") from None
            if first in ids:
                raise InvalidRequestError(
                    field,
                    f"{label!r} and {labels[ids.index(first)]!r} begin with the same token; only a label's first token "
                    "is compared, so choose labels that begin differently",
                )
            ids.append(first)
        return ids

    def contrast_tokens(self, prompt: Prompt, text: str) -> int | ContrastTokens:
        """The single token of a contrast text: as it stands and, unless it begins with a space, after one.

        Raises:
            InvalidRequestError: where neither reading is a single token.
        """
        field = "attribution.contrast.text"
        longest = self._encoder.longest_token
        if len(text) > longest:
            raise InvalidRequestError(
                field,
                f"{len(text):,} characters; the limit is {longest}, the length of the vocabulary's longest token: a "
                "contrast is one token",
            )
        check_text(field, text)
        readings, errors = [], []
        for reading in [text] if text[:1].isspace() else [text, f" {text}"]:
            try:
                readings.append(self.encode(prompt, reading, field))
            except InvalidRequestError as error:
                errors.append(error)
        if not readings:
            raise errors[0]
        singles = [ids[0] for ids in readings if len(ids) == 1]
        if not singles:
            raise self._not_one_token(field, text, readings[0])
        check_embedded(field, singles, self._vocab_size)
        if len(set(singles)) == 1:
            return singles[0]
        return ContrastTokens(plain=singles[0], spaced=singles[1])

    def encode(self, prompt: Prompt, text: str, field: str) -> list[int]:
        """The tokens of a text after the prompt; together they decode to prompt and text.

        Where a token would straddle the boundary, the text is tokenised alone.

        Raises:
            InvalidRequestError: naming `field`, where no tokens after the prompt read as the text.
        """
        check_text(field, text)
        if not text:
            raise InvalidRequestError(field, "must not be empty")
        encoder, limit = self._encoder, self._limits.max_new_tokens
        alone = encode(field, encoder, text, add_special_tokens=False, max_tokens=limit).ids.tolist()
        candidates: list[list[int]] = [alone]
        for tail in prompt_tails(prompt):
            encoded = encode(field, encoder, tail.text + text, add_special_tokens=tail.add_special_tokens).ids.tolist()
            tail_ids = encode(field, encoder, tail.text, add_special_tokens=tail.add_special_tokens).ids.tolist()
            if tail_ids != tail.ids:
                continue  # this tail has other tokens alone than in the prompt: try a longer one
            if encoded[: len(tail.ids)] == tail.ids:
                candidates.insert(0, encoded[len(tail.ids) :])
            break
        before_ids = prompt.ids[-CONTEXT_TOKENS:]
        before = encoder.decode(before_ids, skip_special_tokens=False)
        for ids in candidates:
            if encoder.decode([*before_ids, *ids], skip_special_tokens=False) == before + text:
                return ids
        remedy = "send completion_ids instead" if field == "completion" else "choose another text"
        if len(candidates) == 1:
            raise InvalidRequestError(
                field, f"its first characters would become part of the prompt's last token; {remedy}"
            )
        decoded = encoder.decode([*before_ids, *candidates[0]], skip_special_tokens=False)[len(before) :]
        raise InvalidRequestError(
            field, f"its tokens read {decoded[:MAX_SHOWN_CHARACTERS]!r}, which is not the text that was sent; {remedy}"
        )

    def _not_one_token(self, field: str, text: str, ids: Sequence[int]) -> InvalidRequestError:
        tokens = ", ".join(
            f"{token_id} {self._encoder.decode_alone(token_id)!r}" for token_id in ids[:MAX_SHOWN_TOKENS]
        )
        return InvalidRequestError(
            field,
            f"{text[:MAX_SHOWN_CHARACTERS]!r} is {len(ids)} tokens ({tokens}), and a contrast is one: give one of them "
            "as token_id",
        )
