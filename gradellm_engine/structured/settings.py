"""What a completion has to be: the settings of structured output."""

from __future__ import annotations

from dataclasses import dataclass

from gradellm_engine.errors import InvalidRequestError

MAX_SCHEMA_BYTES = 1 << 20
MAX_GRAMMAR_BYTES = 1 << 16
MAX_REGEX_BYTES = 1 << 14
MAX_CHOICES = 10_000
MAX_CHOICE_BYTES = 1 << 20  # of all choices together

FIELD = "structured_output"


@dataclass(frozen=True)
class StructuredOutput:
    """The texts that a completion may be: exactly one of the fields is set.

    Attributes:
        json_schema: a JSON schema as text; the completion is a JSON value that it describes.
        json_object: the completion is a JSON object.
        grammar: a grammar in Lark's notation, or in GBNF.
        regex: a regular expression of Rust's regex crate; the whole completion matches.
        choice: the completion is one of these texts.
    """

    json_schema: str | None = None
    json_object: bool = False
    grammar: str | None = None
    regex: str | None = None
    choice: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        is_set = {
            "json_schema": self.json_schema is not None,
            "json_object": self.json_object,
            "grammar": self.grammar is not None,
            "regex": self.regex is not None,
            "choice": bool(self.choice),
        }
        if sum(is_set.values()) != 1:
            names = ", ".join(name for name, value in is_set.items() if value) or "none"
            raise InvalidRequestError(FIELD, f"set exactly one of {', '.join(is_set)}; set: {names}")
        _check_size("json_schema", self.json_schema, MAX_SCHEMA_BYTES)
        _check_size("grammar", self.grammar, MAX_GRAMMAR_BYTES)
        _check_size("regex", self.regex, MAX_REGEX_BYTES)
        if len(self.choice) > MAX_CHOICES:
            raise InvalidRequestError(
                f"{FIELD}.choice", f"{len(self.choice):,} texts; the limit is {MAX_CHOICES:,}: use a regex or a grammar"
            )
        for index, text in enumerate(self.choice):
            _check_size(f"choice[{index}]", text, MAX_CHOICE_BYTES)
            if not text:
                raise InvalidRequestError(f"{FIELD}.choice[{index}]", "must not be empty")
        if (size := sum(len(text.encode()) for text in self.choice)) > MAX_CHOICE_BYTES:
            raise InvalidRequestError(
                f"{FIELD}.choice", f"{size:,} bytes in all; the limit is {MAX_CHOICE_BYTES:,}: shorten the texts"
            )

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        if self.json_object:
            return "json_object"
        return next(name for name in ("json_schema", "grammar", "regex", "choice") if getattr(self, name))

    @property
    def field(self) -> str:
        """The path of that field in the wire contract, for errors."""
        return f"{FIELD}.{self.kind}"

    @property
    def num_characters(self) -> int:
        """The length of its source."""
        return sum(len(text) for text in (self.json_schema, self.grammar, self.regex, *self.choice) if text)


def _check_size(name: str, text: str | None, limit: int) -> None:
    """Check that a text is UTF-8 and not too long.

    Raises:
        InvalidRequestError: naming the field.
    """
    if text is None:
        return
    if not text and not name.startswith("choice"):
        raise InvalidRequestError(f"{FIELD}.{name}", "must not be empty")
    try:
        size = len(text) if len(text) > limit else len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{FIELD}.{name}", f"has a surrogate at code point {error.start}: send text that is valid in UTF-8"
        ) from None
    if size > limit:
        raise InvalidRequestError(f"{FIELD}.{name}", f"{size:,} bytes; the limit is {limit:,}: shorten it")
