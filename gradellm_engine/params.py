"""The parameters of an attribution: methods and their switches. `sampling_params` has those of sampling.

Each class validates itself on construction. Fields have the names of the wire contract, so that an error names the
field that the caller wrote. What depends on the model (vocabulary size, number of layers) is checked by
`gradellm_engine.core.settings_resolver`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Self

from gradellm_engine.errors import InvalidRequestError

MAX_CHUNK_SIZE = 256


class Loosening(StrEnum):
    """The token weights of the attribution: min-max normalised similarities, or attention weights."""

    MIN_MAX = "min_max"
    NONE = "none"


class Similarity(StrEnum):
    """The similarity of query and key."""

    DOT = "dot"
    COSINE = "cosine"


class Rotary(StrEnum):
    """Whether query and key are compared after or before the rotary embedding."""

    ROTATED = "rotated"
    UNROTATED = "unrotated"


class Rectify(StrEnum):
    """Where a ReLU sets negative contributions to zero."""

    PER_LAYER = "per_layer"
    TOTAL = "total"
    NONE = "none"
    PER_HEAD = "per_head"


class Magnitude(StrEnum):
    """How contributions of heads and channels are summed."""

    SIGNED_SUM = "signed_sum"
    HEAD_ABS = "head_abs"
    CHANNEL_ABS = "channel_abs"
    KNOCKOUT = "knockout"


class Gradient(StrEnum):
    """The gradient by attention's output: the true one, or the one that the rules of relevance propagate."""

    TRUE = "true"
    RELEVANCE = "relevance"


class Sink(StrEnum):
    """Whether the first token, on which heads rest attention that they have no use for, is a source."""

    KEEP = "keep"
    EXCLUDE = "exclude"


class NormaliseOver(StrEnum):
    """The tokens over which token weights are normalised."""

    VISIBLE = "visible"
    PROMPT = "prompt"
    USER = "user"


class Sources(StrEnum):
    """The tokens that are scored: the prompt, or the prompt and the completion so far."""

    PROMPT = "prompt"
    PREFIX = "prefix"


class Delivery(StrEnum):
    """When a token's scores are delivered: with the token, or for several tokens at once."""

    PER_TOKEN = "per_token"  # noqa: S105 (a delivery, not a password)
    CHUNKED = "chunked"


class Resolution(StrEnum):
    """The unit that one score belongs to."""

    TOKEN = "token"  # noqa: S105 (a resolution, not a password)
    WORD = "word"
    SEGMENT = "segment"


def check_choice(field: str, value: object, kind: type[StrEnum]) -> None:
    """Refuse a value that is not a member of `kind`: a plain string equals a member, but is not identical with it.

    Raises:
        InvalidRequestError: naming the field and the members.
    """
    if not isinstance(value, kind):
        raise InvalidRequestError(field, f"must be a {kind.__name__} ({', '.join(kind)}), was {value!r}")


@dataclass(frozen=True)
class Switches:
    """The options of an attribution method. Fields have the names of the wire's AttributionOptions.

    Attributes:
        name: the method's name in requests.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Validate the fields; subclasses extend it."""

    @property
    def excludes_sink(self) -> bool:
        """Whether the first token is no source, and scores 0."""
        return False

    @property
    def propagates_relevance(self) -> bool:
        """Whether gradients have the rules of relevance (`Gradient.RELEVANCE`)."""
        return False

    def resolved(self, num_layers: int) -> Self:
        """The same options with defaults that depend on the model replaced, for a model of `num_layers`.

        Raises:
            InvalidRequestError: for a layer that the model does not have.
        """
        return self


@dataclass(frozen=True)
class LayerSwitches(Switches):
    """The options of a method that reads hidden layers.

    Attributes:
        layers: None for all layers, an int for the last n, or indexes from 0, the layer next to the embedding.
    """

    layers: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layers, int) and self.layers < 1:
            raise InvalidRequestError(
                "attribution.layers", f"a number of last layers must be at least 1, was {self.layers}"
            )
        if isinstance(self.layers, tuple) and len(set(self.layers)) < max(1, len(self.layers)):
            raise InvalidRequestError("attribution.layers", "must hold at least one layer index, each once")

    @property
    def explicit_layers(self) -> tuple[int, ...]:
        """The layers as indexes, of resolved options."""
        if not isinstance(self.layers, tuple):
            raise ValueError("layers are not resolved: call `resolved` first")
        return self.layers

    def resolved(self, num_layers: int) -> Self:
        """With layers as explicit indexes."""
        return replace(self, layers=self.selected_layers(num_layers))

    def selected_layers(self, num_layers: int) -> tuple[int, ...]:
        """The indexes of the layers, ascending, in a model of `num_layers`.

        Raises:
            InvalidRequestError: for a layer that the model does not have.
        """
        if self.layers is None:
            return tuple(range(num_layers))
        if isinstance(self.layers, int):
            if self.layers > num_layers:
                raise InvalidRequestError(
                    "attribution.layers", f"asks for the last {self.layers} layers; the model has {num_layers}"
                )
            return tuple(range(num_layers - self.layers, num_layers))
        for index in self.layers:
            if not 0 <= index < num_layers:
                raise InvalidRequestError(
                    "attribution.layers", f"{index} is not a layer; the model has layers 0 to {num_layers - 1}"
                )
        return tuple(sorted(self.layers))


@dataclass(frozen=True)
class GradEllm(LayerSwitches):
    """The options of Grad-ELLM; the defaults are the paper's (Huang and Chan 2026, section 3.2).

    Attributes:
        loosening: min-max normalised similarities, or each head's attention weights.
        similarity: dot product, or cosine over the heads' concatenated width.
        rotary: query and key after or before the rotary embedding.
        rectify: ReLU in every layer (eq 13), once after the sum over layers (eq 5), or nowhere; or, beyond the paper,
            in every head.
        magnitude: signed sum over heads and channels; or, beyond the paper, a sum of absolute values: of heads, of
            channels, or of the first-order effect of removing the token from each head.
        normalise_over: the tokens over which min and max are taken; all other tokens score 0.
        sink: whether the first token is a source; where not, it scores 0, and each head's other attention weights are
            divided by their sum.
        gradient: w, the target's gradient by attention's output: the true one, or, beyond the paper, relevance's.
    """

    name: ClassVar[str] = "grad_ellm"
    loosening: Loosening = Loosening.MIN_MAX
    similarity: Similarity = Similarity.DOT
    rotary: Rotary = Rotary.ROTATED
    rectify: Rectify = Rectify.PER_LAYER
    magnitude: Magnitude = Magnitude.SIGNED_SUM
    normalise_over: NormaliseOver = NormaliseOver.VISIBLE
    sink: Sink = Sink.KEEP
    gradient: Gradient = Gradient.TRUE

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in PRESET_DEFAULTS.items():
            if isinstance(default, StrEnum):
                check_choice(f"attribution.{name}", getattr(self, name), type(default))
        if self.loosening is Loosening.NONE:
            # Attention weights are the model's own: they have neither another similarity nor a normalisation.
            for name in ("similarity", "rotary", "normalise_over"):
                value, default = getattr(self, name), PRESET_DEFAULTS[name]
                if value is not default:
                    raise InvalidRequestError(
                        f"attribution.{name}", f"{value} is not defined with loosening none; use {default} or min_max"
                    )
        with_loosening = f"not with loosening {self.loosening}"
        if self.rectify is Rectify.PER_HEAD and self.loosening is not Loosening.NONE:
            raise InvalidRequestError(
                "attribution.rectify", f"per_head is defined with loosening none only, {with_loosening}"
            )
        defined = _RECTIFY_OF[self.magnitude]
        if self.rectify not in defined or (defined != tuple(Rectify) and self.loosening is not Loosening.NONE):
            raise InvalidRequestError(
                "attribution.magnitude",
                f"{self.magnitude} is defined with loosening none and rectify {' or '.join(defined)} only, "
                f"{with_loosening} and rectify {self.rectify}",
            )

    @property
    def excludes_sink(self) -> bool:
        """See `Switches`."""
        return self.sink is Sink.EXCLUDE

    @property
    def propagates_relevance(self) -> bool:
        """See `Switches`."""
        return self.gradient is Gradient.RELEVANCE

    @classmethod
    def preset(cls, name: str, **switches: Any) -> GradEllm:  # noqa: ANN401 (one type a switch, checked by the class)
        """The options of a preset, some of them overridden.

        Raises:
            InvalidRequestError: for an unknown preset, or options that cannot be combined.
        """
        if name not in PRESETS:
            raise InvalidRequestError("attribution.preset", f"{name!r} is not one of {', '.join(PRESETS)}")
        return replace(cls(), **{**PRESETS[name], **switches})


# Where negative contributions may be cut off, by magnitude.
_RECTIFY_OF: Mapping[Magnitude, tuple[Rectify, ...]] = MappingProxyType(
    {
        Magnitude.SIGNED_SUM: tuple(Rectify),
        Magnitude.HEAD_ABS: (Rectify.NONE,),
        Magnitude.CHANNEL_ABS: (Rectify.NONE,),
        Magnitude.KNOCKOUT: (Rectify.NONE, Rectify.PER_HEAD),
    }
)
# Every switch's default, which is the paper's: what a preset does not name has this value.
PRESET_DEFAULTS: Mapping[str, Any] = MappingProxyType({switch.name: switch.default for switch in fields(GradEllm)})
RECOMMENDED_PRESET = "step_relevance"  # what `recommended` stands for; provenance has this name
_TRUE_WEIGHTS: Mapping[str, Any] = {"loosening": Loosening.NONE, "rectify": Rectify.NONE}
_NO_SINK: Mapping[str, Any] = {"magnitude": Magnitude.HEAD_ABS, "sink": Sink.EXCLUDE}
_PRESETS: dict[str, Mapping[str, Any]] = {
    "paper": {},
    "unloosened": {"loosening": Loosening.NONE},
    "grad_eclip": {"similarity": Similarity.COSINE, "rotary": Rotary.UNROTATED},
    "knockout": {**_TRUE_WEIGHTS, "magnitude": Magnitude.KNOCKOUT},
    "head_abs_no_sink": {**_TRUE_WEIGHTS, **_NO_SINK},
    "step_relevance": {**_TRUE_WEIGHTS, **_NO_SINK, "gradient": Gradient.RELEVANCE},
}
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType({**_PRESETS, "recommended": _PRESETS[RECOMMENDED_PRESET]})


@dataclass(frozen=True)
class Contrast:
    """The token whose logit is subtracted from the target's: an id, a one-token text, or the runner-up."""

    token_id: int | None = None
    text: str | None = None
    runner_up: bool = False

    def __post_init__(self) -> None:
        if (self.token_id is not None) + (self.text is not None) + self.runner_up != 1:
            raise InvalidRequestError("attribution.contrast", "set exactly one of token_id, text and runner_up")
        if self.text == "":
            raise InvalidRequestError("attribution.contrast.text", "must not be empty")


@dataclass(frozen=True)
class TokenSelection:
    """Tokens of a completion: those of `indexes`, and those whose text overlaps one of `spans`.

    Attributes:
        indexes: of tokens, from 0; ascending, each once.
        spans: first code point in the completion's text, and one past the last. Of given completions; resolved settings
            have their tokens as indexes.
    """

    indexes: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not (self.indexes or self.spans):
            raise InvalidRequestError("attribution.tokens", "is empty: give indexes or spans, or leave it out for all")
        if (first := min(self.indexes, default=0)) < 0:
            raise InvalidRequestError("attribution.tokens.indexes", f"count from 0; {first} is no token")
        for place, (start, end) in enumerate(self.spans):
            if not 0 <= start < end:
                raise InvalidRequestError(
                    f"attribution.tokens.spans[{place}]",
                    f"must hold at least one code point, counted from 0; start is {start}, end {end}",
                )
        object.__setattr__(self, "indexes", tuple(sorted(set(self.indexes))))

    @cached_property
    def index_set(self) -> frozenset[int]:
        """The indexes, for look-ups."""
        return frozenset(self.indexes)


@dataclass(frozen=True)
class AttributionSettings:
    """What to explain, and how to report it.

    Attributes:
        method: the method with its options.
        target_token_id: the token whose logit is explained at every step; None for the token at that step.
        contrast: a token whose logit is subtracted from the target's.
        sources: score the prompt, or the prompt and the completion so far.
        resolution: one score a token, a word or a segment.
        top_k_sources: report only this many scores a step, the largest by magnitude.
        delivery: scores with each token, or for several tokens at once, which costs less.
        chunk_size: with delivery chunked and for given completions, tokens that are explained in one pass, which bounds
            how many tokens late scores are delivered; None adapts it to the load.
        tokens: the tokens of the completion that are explained; None for all.
    """

    method: Switches = field(default_factory=GradEllm)
    target_token_id: int | None = None
    contrast: Contrast | None = None
    sources: Sources = Sources.PROMPT
    resolution: Resolution = Resolution.TOKEN
    top_k_sources: int | None = None
    delivery: Delivery = Delivery.PER_TOKEN
    chunk_size: int | None = None
    tokens: TokenSelection | None = None

    def __post_init__(self) -> None:
        check_choice("attribution.sources", self.sources, Sources)
        check_choice("attribution.delivery", self.delivery, Delivery)
        if self.chunk_size is not None and not 1 <= self.chunk_size <= MAX_CHUNK_SIZE:
            raise InvalidRequestError(
                "attribution.chunk_size", f"must lie between 1 and {MAX_CHUNK_SIZE}, was {self.chunk_size}"
            )
        check_choice("attribution.resolution", self.resolution, Resolution)
        if self.top_k_sources is not None and self.top_k_sources < 1:
            raise InvalidRequestError("attribution.top_k_sources", f"must be at least 1, was {self.top_k_sources}")

    def explains(self, index: int) -> bool:
        """Whether a token of the completion is explained, of resolved settings."""
        return self.tokens is None or index in self.tokens.index_set

    def first_explained(self, index: int, limit: int) -> int:
        """The first explained token from `index` on, at most `limit`; of resolved settings."""
        return next((i for i in range(index, limit) if self.explains(i)), limit)
