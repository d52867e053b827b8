"""What a model's generation_config.json says: the tokens that end a completion, and defaults of sampling."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from gradellm_engine.errors import InvalidRequestError, ModelLoadError
from gradellm_engine.sampling_params import Sampling

FILE = "generation_config.json"
# As vLLM reads them; do_sample alone means Transformers' default temperature.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
_SAMPLED_TEMPERATURE = 1.0


class GenerationConfigSource(StrEnum):
    """Where the defaults of sampling come from: the model's file, or nowhere."""

    AUTO = "auto"
    NONE = "none"


@dataclass(frozen=True)
class GenerationDefaults:
    """The values that requests have where they say nothing.

    Attributes:
        sampling: without max_new_tokens.
        max_new_tokens: as far as they fit the context; None for the engine's own default.
        named: the fields that the file sets.
    """

    sampling: Sampling = Sampling()
    max_new_tokens: int | None = None
    named: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The fields that the file sets, with their values."""
        values = {name: getattr(self.sampling, name, None) for name in self.named}
        return ", ".join(f"{name}={value:g}" for name, value in (values | self._length).items())

    @property
    def _length(self) -> dict[str, int]:
        return {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}


def generation_defaults(config: GenerationConfig | None, source: GenerationConfigSource) -> GenerationDefaults:
    """The defaults that a model's file has, as Transformers has read it.

    Raises:
        ModelLoadError: naming the value that is not valid.
    """
    if config is None or source is GenerationConfigSource.NONE:
        return GenerationDefaults()
    stored: dict[str, Any] = config.to_diff_dict()
    values = {name: stored[name] for name in _SAMPLING if stored.get(name) is not None}
    if stored.get("do_sample") and "temperature" not in values:
        values["temperature"] = _SAMPLED_TEMPERATURE
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else int | float):
            raise ModelLoadError(_problem(name, f"is not a number: {value!r}"))
    max_new_tokens = stored.get("max_new_tokens")
    if max_new_tokens is not None and (type(max_new_tokens) is not int or max_new_tokens < 1):
        raise ModelLoadError(_problem("max_new_tokens", f"is not a number of tokens: {max_new_tokens!r}"))
    try:
        return GenerationDefaults(Sampling(**values), max_new_tokens, tuple(values))
    except InvalidRequestError as error:
        raise ModelLoadError(_problem(error.field, error.description)) from None


def _problem(name: str, what: str) -> str:
    return f"{name} of {FILE} {what}; load the model with --generation-config none to leave the file's values out"


def end_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a completion, from the file and the tokenizer.

    Raises:
        ModelLoadError: if one is not a token id.
    """
    eos_token_id: Any = None if config is None else config.eos_token_id
    ids = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    ids = [token_id for token_id in (*ids, tokenizer.eos_token_id) if token_id is not None]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise ModelLoadError(f"eos_token_id of {FILE} is not a token id: {eos_token_id!r}")
    return frozenset(ids)
