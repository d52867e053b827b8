"""The engine's exceptions.

EngineError
├── InvalidRequestError     a request that cannot be run; names the field and the limit
├── ModelLoadError          a model that cannot be loaded; names the file or the setting
│   └── UnsupportedModelError   a model family whose attributions would not be exact
├── TokenizerError          the tokenizer fails on a text or on token ids
├── ComputationError        a logit or a score is not finite
├── OutOfMemoryError        a pass ran out of memory with this request alone
├── BusyError               no KV slot is free for another generation
└── GroupLostError          tensor-parallel ranks are no longer in lockstep; all of them have to be restarted
"""

from __future__ import annotations


class EngineError(Exception):
    """Base class of the engine's exceptions."""


class InvalidRequestError(EngineError, ValueError):
    """A request that cannot be run.

    Attributes:
        field: path of the request's field in the wire contract (`input.prompt`, `top_p`, `attribution.layers`).
        description: what is wrong, the limit, and what to do.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class ModelLoadError(EngineError):
    """A model that cannot be loaded: a missing path, a corrupt file, an unknown model type, an invalid setting."""


class UnsupportedModelError(ModelLoadError):
    """A model family that the engine does not load, because its attributions would not be exact."""


class TokenizerError(EngineError):
    """The tokenizer fails on a text or on token ids.

    The tokenizer's own message is left out: it may quote the text.
    """

    def __init__(self, failure: str) -> None:
        super().__init__(f"the model's tokenizer {failure}")


class ComputationError(EngineError):
    """The model returned NaN or infinity; the request ends there."""


class OutOfMemoryError(EngineError):
    """A pass with this request alone ran out of memory; other requests continue."""

    def __init__(self) -> None:
        super().__init__("out of memory while the request was computed; ask for fewer tokens, or try again later")


class BusyError(EngineError):
    """Other requests hold the KV memory that a generation needs."""


class GroupLostError(EngineError):
    """A rank of a tensor-parallel model is lost, or its state differs from that of the other ranks."""


def one_line(error: BaseException) -> str:
    """An exception's message on one line: its first line, and the second where the first ends with a colon."""
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    message = f"{first} {more[0]}" if first.endswith(":") and more else first
    needs_type = isinstance(error, KeyError) or not message  # a KeyError's message is only the key
    return f"{type(error).__name__} {message}".strip() if needs_type else message
