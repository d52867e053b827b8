"""What can go wrong in the engine.

EngineError
├── InvalidRequestError     the caller asked for something that cannot be; names the field and the limit
├── ModelLoadError          a checkpoint cannot be loaded; names the file
│   └── UnsupportedModelError   a family that the engine cannot explain exactly
├── TokenizerError          the model's tokenizer fails on a text or on token ids
├── ComputationError        the model itself failed: a logit or a score is not finite
├── OutOfMemoryError        a pass for this request did not fit the memory, even alone
├── BusyError               no memory is free for another generation
└── GroupLostError          ranks that share a model are no longer in step; all of them have to be started again
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of all errors that the engine raises on purpose."""


class InvalidRequestError(EngineError, ValueError):
    """A request that cannot be carried out as it stands.

    Attributes:
        field: the request's field, by its name in the wire contract (`input.prompt`, `top_p`, `attribution.layers`).
        description: what was wrong, what the limit is and what to do.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class ModelLoadError(EngineError):
    """A model that cannot be loaded: a path that is not there, a corrupt file, a type that is not known."""


class UnsupportedModelError(ModelLoadError):
    """A model family that the engine cannot explain exactly, and so does not serve."""


class TokenizerError(EngineError):
    """The model's tokenizer fails on a text or on token ids; its own words, which may quote them, are left out."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the model's tokenizer {what}")


class ComputationError(EngineError):
    """The model returned numbers that are not finite; nothing after them can be trusted."""


class OutOfMemoryError(EngineError):
    """Memory ran out in a pass for this request; others go on."""

    def __init__(self) -> None:
        super().__init__("memory ran out while the request was computed; ask for fewer tokens, or try again later")


class BusyError(EngineError):
    """Other generations hold the memory that one needs."""


class GroupLostError(EngineError):
    """One of the ranks that share a model is gone, or has done something that the others have not."""


def one_line(error: BaseException) -> str:
    """What an error says: its first line, with the next where the first only leads to it."""
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = f"{first} {more[0]}" if first.endswith(":") and more else first
    return f"{type(error).__name__} {said}".strip() if isinstance(error, KeyError) or not said else said
