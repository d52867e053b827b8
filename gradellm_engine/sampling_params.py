"""The sampling parameters of a request. They validate themselves, and have the names of the wire contract.

What depends on the model (vocabulary size, context) is checked by `gradellm_engine.core.settings_resolver`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradellm_engine.errors import InvalidRequestError

MAX_STOP_TEXTS = 16
MAX_STOP_CHARACTERS = 1000
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIASES = 1024
MAX_ALTERNATIVES = 20
MAX_SEED = 2**63 - 1

# Outside, logits would overflow, or no penalty would be told from an infinite one.
REPETITION_PENALTIES = (0.01, 100.0)
COUNT_PENALTIES = (-2.0, 2.0)
LOGIT_BIASES = (-100.0, 100.0)


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled.

    Attributes:
        max_new_tokens: limit of the completion, forced tokens included; None for the default, as far as it fits the
            context.
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample from the k most probable tokens; 0 for all.
        top_p: sample from the smallest set of most probable tokens with at least this probability, in (0, 1].
        seed: in [0, 2**63); None lets the engine choose one.
        stop: stop texts; the completion ends before the first of them.
        num_alternatives: number of most probable tokens to report at each step.
        min_p: sample from tokens with at least this share of the most probable token's probability, in [0, 1].
        repetition_penalty: divides the positive logits, and multiplies the negative ones, of tokens that are in the
            prompt or the completion.
        frequency_penalty: is subtracted from a token's logit once for each time that it is in the completion.
        presence_penalty: is subtracted from the logits of tokens that are in the completion.
        logit_bias: (token id, what is added to its logit), each token once.
        min_new_tokens: tokens before which neither an end token nor a stop text ends the completion.
        ignore_eos: whether the model's own end tokens end nothing.
        stop_token_ids: tokens that end the completion, and have no text in it.
        skip_special_tokens: whether special tokens have no text in the completion.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_alternatives: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InvalidRequestError("max_new_tokens", f"must be at least 1, was {self.max_new_tokens}")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise InvalidRequestError(
                "temperature", f"must be a finite number of at least 0 (0 is greedy decoding), was {self.temperature}"
            )
        if self.top_k < 0:
            raise InvalidRequestError("top_k", f"must be at least 0 (0 means all tokens), was {self.top_k}")
        if not 0 < self.top_p <= 1:  # also refuses NaN
            raise InvalidRequestError("top_p", f"must be above 0 and at most 1, was {self.top_p}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidRequestError("seed", f"must lie between 0 and 2**63 - 1, was {self.seed}")
        if self.min_new_tokens < 0:
            raise InvalidRequestError("min_new_tokens", f"must be at least 0, was {self.min_new_tokens}")
        _check_range("num_alternatives", self.num_alternatives, 0, MAX_ALTERNATIVES)
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("repetition_penalty", self.repetition_penalty, *REPETITION_PENALTIES)
        _check_range("frequency_penalty", self.frequency_penalty, *COUNT_PENALTIES)
        _check_range("presence_penalty", self.presence_penalty, *COUNT_PENALTIES)
        self._check_stop()
        self._check_token_ids()

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_TEXTS:
            raise InvalidRequestError("stop", f"at most {MAX_STOP_TEXTS} stop texts, there were {len(self.stop)}")
        for index, text in enumerate(self.stop):
            if not text:
                raise InvalidRequestError(f"stop[{index}]", "must not be empty")
            if len(text) > MAX_STOP_CHARACTERS:
                raise InvalidRequestError(
                    f"stop[{index}]", f"{len(text):,} characters; the limit is {MAX_STOP_CHARACTERS:,}"
                )

    def _check_token_ids(self) -> None:
        for field, count, limit in (
            ("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS),
            ("logit_bias", len(self.logit_bias), MAX_LOGIT_BIASES),
        ):
            if count > limit:
                raise InvalidRequestError(field, f"at most {limit:,} tokens, there were {count:,}")
        if len({token_id for token_id, _ in self.logit_bias}) < len(self.logit_bias):
            raise InvalidRequestError("logit_bias", "must have each token once")
        for token_id, bias in self.logit_bias:
            _check_range(f"logit_bias[{token_id}]", bias, *LOGIT_BIASES)

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before a token is chosen, so that greedy decoding may choose another one."""
        return bool(
            self.logit_bias
            or self.min_new_tokens
            or self.repetition_penalty != 1
            or self.frequency_penalty
            or self.presence_penalty
        )


def _check_range(field: str, value: float, least: float, most: float) -> None:
    """Refuse a number outside of its range, and NaN.

    Raises:
        InvalidRequestError: naming the field and the range.
    """
    if not least <= value <= most:
        raise InvalidRequestError(field, f"must lie between {least:g} and {most:g}, was {value:g}")
