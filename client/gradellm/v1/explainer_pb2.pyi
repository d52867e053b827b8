from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UpstreamDtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPSTREAM_DTYPE_UNSPECIFIED: _ClassVar[UpstreamDtype]
    UPSTREAM_DTYPE_FLOAT32: _ClassVar[UpstreamDtype]
    UPSTREAM_DTYPE_BFLOAT16: _ClassVar[UpstreamDtype]
    UPSTREAM_DTYPE_FLOAT16: _ClassVar[UpstreamDtype]
    UPSTREAM_DTYPE_FP8: _ClassVar[UpstreamDtype]
    UPSTREAM_DTYPE_INT8: _ClassVar[UpstreamDtype]
    UPSTREAM_DTYPE_INT4: _ClassVar[UpstreamDtype]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_UNKNOWN: _ClassVar[Verdict]
    VERDICT_SAME: _ClassVar[Verdict]
    VERDICT_COMPATIBLE: _ClassVar[Verdict]
    VERDICT_DIFFERENT: _ClassVar[Verdict]

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_PI_SOFT_NS: _ClassVar[Metric]
    METRIC_PI_SOFT_NC: _ClassVar[Metric]
    METRIC_SOFT_NS: _ClassVar[Metric]
    METRIC_SOFT_NC: _ClassVar[Metric]
    METRIC_INSERTION: _ClassVar[Metric]
    METRIC_DELETION: _ClassVar[Metric]
    METRIC_AUPRC: _ClassVar[Metric]
    METRIC_TOKEN_F1: _ClassVar[Metric]

class Perturb(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERTURB_UNSPECIFIED: _ClassVar[Perturb]
    PERTURB_USER: _ClassVar[Perturb]
    PERTURB_PROMPT: _ClassVar[Perturb]
    PERTURB_PREFIX: _ClassVar[Perturb]

class Removal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REMOVAL_UNSPECIFIED: _ClassVar[Removal]
    REMOVAL_REMOVE: _ClassVar[Removal]
    REMOVAL_ZERO: _ClassVar[Removal]
    REMOVAL_PAD: _ClassVar[Removal]

class IntervalKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERVAL_KIND_UNSPECIFIED: _ClassVar[IntervalKind]
    INTERVAL_KIND_BOOTSTRAP: _ClassVar[IntervalKind]
    INTERVAL_KIND_MONTE_CARLO: _ClassVar[IntervalKind]

class Preset(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRESET_UNSPECIFIED: _ClassVar[Preset]
    PRESET_PAPER: _ClassVar[Preset]
    PRESET_UNLOOSENED: _ClassVar[Preset]
    PRESET_GRAD_ECLIP: _ClassVar[Preset]
    PRESET_KNOCKOUT: _ClassVar[Preset]
    PRESET_RECOMMENDED: _ClassVar[Preset]
    PRESET_HEAD_ABS_NO_SINK: _ClassVar[Preset]
    PRESET_STEP_RELEVANCE: _ClassVar[Preset]

class Loosening(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOOSENING_UNSPECIFIED: _ClassVar[Loosening]
    LOOSENING_MIN_MAX: _ClassVar[Loosening]
    LOOSENING_NONE: _ClassVar[Loosening]

class Similarity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIMILARITY_UNSPECIFIED: _ClassVar[Similarity]
    SIMILARITY_DOT: _ClassVar[Similarity]
    SIMILARITY_COSINE: _ClassVar[Similarity]

class Rotary(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROTARY_UNSPECIFIED: _ClassVar[Rotary]
    ROTARY_ROTATED: _ClassVar[Rotary]
    ROTARY_UNROTATED: _ClassVar[Rotary]

class Rectify(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECTIFY_UNSPECIFIED: _ClassVar[Rectify]
    RECTIFY_PER_LAYER: _ClassVar[Rectify]
    RECTIFY_TOTAL: _ClassVar[Rectify]
    RECTIFY_NONE: _ClassVar[Rectify]
    RECTIFY_PER_HEAD: _ClassVar[Rectify]

class Magnitude(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MAGNITUDE_UNSPECIFIED: _ClassVar[Magnitude]
    MAGNITUDE_SIGNED_SUM: _ClassVar[Magnitude]
    MAGNITUDE_HEAD_ABS: _ClassVar[Magnitude]
    MAGNITUDE_CHANNEL_ABS: _ClassVar[Magnitude]
    MAGNITUDE_KNOCKOUT: _ClassVar[Magnitude]

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_LOGIT: _ClassVar[Objective]
    OBJECTIVE_LOG_PROB: _ClassVar[Objective]
    OBJECTIVE_PROB: _ClassVar[Objective]

class Aggregation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGGREGATION_UNSPECIFIED: _ClassVar[Aggregation]
    AGGREGATION_NORM: _ClassVar[Aggregation]
    AGGREGATION_SUM: _ClassVar[Aggregation]

class NormaliseOver(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORMALISE_OVER_UNSPECIFIED: _ClassVar[NormaliseOver]
    NORMALISE_OVER_VISIBLE: _ClassVar[NormaliseOver]
    NORMALISE_OVER_PROMPT: _ClassVar[NormaliseOver]
    NORMALISE_OVER_USER: _ClassVar[NormaliseOver]

class Sink(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SINK_UNSPECIFIED: _ClassVar[Sink]
    SINK_KEEP: _ClassVar[Sink]
    SINK_EXCLUDE: _ClassVar[Sink]

class Gradient(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRADIENT_UNSPECIFIED: _ClassVar[Gradient]
    GRADIENT_TRUE: _ClassVar[Gradient]
    GRADIENT_RELEVANCE: _ClassVar[Gradient]

class Sources(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCES_UNSPECIFIED: _ClassVar[Sources]
    SOURCES_PROMPT: _ClassVar[Sources]
    SOURCES_PREFIX: _ClassVar[Sources]

class Delivery(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_UNSPECIFIED: _ClassVar[Delivery]
    DELIVERY_PER_TOKEN: _ClassVar[Delivery]
    DELIVERY_CHUNKED: _ClassVar[Delivery]

class Resolution(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESOLUTION_UNSPECIFIED: _ClassVar[Resolution]
    RESOLUTION_TOKEN: _ClassVar[Resolution]
    RESOLUTION_WORD: _ClassVar[Resolution]
    RESOLUTION_SEGMENT: _ClassVar[Resolution]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_TEMPLATE: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_TOOL: _ClassVar[Role]
    ROLE_OTHER: _ClassVar[Role]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_END_OF_TEXT: _ClassVar[FinishReason]
    FINISH_REASON_STOP_TEXT: _ClassVar[FinishReason]
    FINISH_REASON_MAX_NEW_TOKENS: _ClassVar[FinishReason]
    FINISH_REASON_END_OF_COMPLETION: _ClassVar[FinishReason]
    FINISH_REASON_STOP_TOKEN: _ClassVar[FinishReason]
UPSTREAM_DTYPE_UNSPECIFIED: UpstreamDtype
UPSTREAM_DTYPE_FLOAT32: UpstreamDtype
UPSTREAM_DTYPE_BFLOAT16: UpstreamDtype
UPSTREAM_DTYPE_FLOAT16: UpstreamDtype
UPSTREAM_DTYPE_FP8: UpstreamDtype
UPSTREAM_DTYPE_INT8: UpstreamDtype
UPSTREAM_DTYPE_INT4: UpstreamDtype
VERDICT_UNSPECIFIED: Verdict
VERDICT_UNKNOWN: Verdict
VERDICT_SAME: Verdict
VERDICT_COMPATIBLE: Verdict
VERDICT_DIFFERENT: Verdict
METRIC_UNSPECIFIED: Metric
METRIC_PI_SOFT_NS: Metric
METRIC_PI_SOFT_NC: Metric
METRIC_SOFT_NS: Metric
METRIC_SOFT_NC: Metric
METRIC_INSERTION: Metric
METRIC_DELETION: Metric
METRIC_AUPRC: Metric
METRIC_TOKEN_F1: Metric
PERTURB_UNSPECIFIED: Perturb
PERTURB_USER: Perturb
PERTURB_PROMPT: Perturb
PERTURB_PREFIX: Perturb
REMOVAL_UNSPECIFIED: Removal
REMOVAL_REMOVE: Removal
REMOVAL_ZERO: Removal
REMOVAL_PAD: Removal
INTERVAL_KIND_UNSPECIFIED: IntervalKind
INTERVAL_KIND_BOOTSTRAP: IntervalKind
INTERVAL_KIND_MONTE_CARLO: IntervalKind
PRESET_UNSPECIFIED: Preset
PRESET_PAPER: Preset
PRESET_UNLOOSENED: Preset
PRESET_GRAD_ECLIP: Preset
PRESET_KNOCKOUT: Preset
PRESET_RECOMMENDED: Preset
PRESET_HEAD_ABS_NO_SINK: Preset
PRESET_STEP_RELEVANCE: Preset
LOOSENING_UNSPECIFIED: Loosening
LOOSENING_MIN_MAX: Loosening
LOOSENING_NONE: Loosening
SIMILARITY_UNSPECIFIED: Similarity
SIMILARITY_DOT: Similarity
SIMILARITY_COSINE: Similarity
ROTARY_UNSPECIFIED: Rotary
ROTARY_ROTATED: Rotary
ROTARY_UNROTATED: Rotary
RECTIFY_UNSPECIFIED: Rectify
RECTIFY_PER_LAYER: Rectify
RECTIFY_TOTAL: Rectify
RECTIFY_NONE: Rectify
RECTIFY_PER_HEAD: Rectify
MAGNITUDE_UNSPECIFIED: Magnitude
MAGNITUDE_SIGNED_SUM: Magnitude
MAGNITUDE_HEAD_ABS: Magnitude
MAGNITUDE_CHANNEL_ABS: Magnitude
MAGNITUDE_KNOCKOUT: Magnitude
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_LOGIT: Objective
OBJECTIVE_LOG_PROB: Objective
OBJECTIVE_PROB: Objective
AGGREGATION_UNSPECIFIED: Aggregation
AGGREGATION_NORM: Aggregation
AGGREGATION_SUM: Aggregation
NORMALISE_OVER_UNSPECIFIED: NormaliseOver
NORMALISE_OVER_VISIBLE: NormaliseOver
NORMALISE_OVER_PROMPT: NormaliseOver
NORMALISE_OVER_USER: NormaliseOver
SINK_UNSPECIFIED: Sink
SINK_KEEP: Sink
SINK_EXCLUDE: Sink
GRADIENT_UNSPECIFIED: Gradient
GRADIENT_TRUE: Gradient
GRADIENT_RELEVANCE: Gradient
SOURCES_UNSPECIFIED: Sources
SOURCES_PROMPT: Sources
SOURCES_PREFIX: Sources
DELIVERY_UNSPECIFIED: Delivery
DELIVERY_PER_TOKEN: Delivery
DELIVERY_CHUNKED: Delivery
RESOLUTION_UNSPECIFIED: Resolution
RESOLUTION_TOKEN: Resolution
RESOLUTION_WORD: Resolution
RESOLUTION_SEGMENT: Resolution
ROLE_UNSPECIFIED: Role
ROLE_TEMPLATE: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_TOOL: Role
ROLE_OTHER: Role
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_END_OF_TEXT: FinishReason
FINISH_REASON_STOP_TEXT: FinishReason
FINISH_REASON_MAX_NEW_TOKENS: FinishReason
FINISH_REASON_END_OF_COMPLETION: FinishReason
FINISH_REASON_STOP_TOKEN: FinishReason

class GenerateRequest(_message.Message):
    __slots__ = ("input", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop", "num_alternatives", "attribution", "forced_ids", "first_attribution", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "min_new_tokens", "ignore_eos", "stop_token_ids", "skip_special_tokens", "structured_output")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    INPUT_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    NUM_ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    FORCED_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    input: Input
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    num_alternatives: int
    attribution: AttributionOptions
    forced_ids: _containers.RepeatedScalarFieldContainer[int]
    first_attribution: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    min_new_tokens: int
    ignore_eos: bool
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_special_tokens: bool
    structured_output: StructuredOutput
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., num_alternatives: _Optional[int] = ..., attribution: _Optional[_Union[AttributionOptions, _Mapping]] = ..., forced_ids: _Optional[_Iterable[int]] = ..., first_attribution: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., min_new_tokens: _Optional[int] = ..., ignore_eos: bool = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., skip_special_tokens: bool = ..., structured_output: _Optional[_Union[StructuredOutput, _Mapping]] = ...) -> None: ...

class StructuredOutput(_message.Message):
    __slots__ = ("json_schema", "json_object", "grammar", "regex", "choice")
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    JSON_OBJECT_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    json_object: bool
    grammar: str
    regex: str
    choice: Choice
    def __init__(self, json_schema: _Optional[str] = ..., json_object: bool = ..., grammar: _Optional[str] = ..., regex: _Optional[str] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "token", "attribution", "finished", "progress", "prompt_progress")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    started: Started
    token: Token
    attribution: Attribution
    finished: Finished
    progress: Progress
    prompt_progress: Progress
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., attribution: _Optional[_Union[Attribution, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., prompt_progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class AttributeRequest(_message.Message):
    __slots__ = ("input", "completion", "completion_ids", "attribution", "num_alternatives")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_IDS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    NUM_ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    input: Input
    completion: str
    completion_ids: _containers.RepeatedScalarFieldContainer[int]
    attribution: AttributionOptions
    num_alternatives: int
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., completion: _Optional[str] = ..., completion_ids: _Optional[_Iterable[int]] = ..., attribution: _Optional[_Union[AttributionOptions, _Mapping]] = ..., num_alternatives: _Optional[int] = ...) -> None: ...

class AttributeResponse(_message.Message):
    __slots__ = ("started", "token", "attribution", "finished", "progress", "prompt_progress")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    started: Started
    token: Token
    attribution: Attribution
    finished: Finished
    progress: Progress
    prompt_progress: Progress
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., attribution: _Optional[_Union[Attribution, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., prompt_progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("start", "append", "finish")
    START_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    start: FollowStart
    append: FollowAppend
    finish: FollowFinish
    def __init__(self, start: _Optional[_Union[FollowStart, _Mapping]] = ..., append: _Optional[_Union[FollowAppend, _Mapping]] = ..., finish: _Optional[_Union[FollowFinish, _Mapping]] = ...) -> None: ...

class FollowStart(_message.Message):
    __slots__ = ("input", "attribution", "max_new_tokens", "flush_seconds", "upstream_dtype", "num_alternatives", "completion_ids", "agreement")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FLUSH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_IDS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    input: Input
    attribution: AttributionOptions
    max_new_tokens: int
    flush_seconds: float
    upstream_dtype: UpstreamDtype
    num_alternatives: int
    completion_ids: _containers.RepeatedScalarFieldContainer[int]
    agreement: AgreementTotal
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., attribution: _Optional[_Union[AttributionOptions, _Mapping]] = ..., max_new_tokens: _Optional[int] = ..., flush_seconds: _Optional[float] = ..., upstream_dtype: _Optional[_Union[UpstreamDtype, str]] = ..., num_alternatives: _Optional[int] = ..., completion_ids: _Optional[_Iterable[int]] = ..., agreement: _Optional[_Union[AgreementTotal, _Mapping]] = ...) -> None: ...

class FollowAppend(_message.Message):
    __slots__ = ("ids", "logprobs", "alternative_logprobs")
    IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    alternative_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., alternative_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class FollowFinish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("started", "token", "attribution", "finished", "progress", "prompt_progress", "agreement")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    started: Started
    token: Token
    attribution: Attribution
    finished: Finished
    progress: Progress
    prompt_progress: Progress
    agreement: Agreement
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., attribution: _Optional[_Union[Attribution, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., prompt_progress: _Optional[_Union[Progress, _Mapping]] = ..., agreement: _Optional[_Union[Agreement, _Mapping]] = ...) -> None: ...

class Agreement(_message.Message):
    __slots__ = ("first_token", "tokens", "largest", "mean", "total")
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    first_token: int
    tokens: int
    largest: float
    mean: float
    total: AgreementTotal
    def __init__(self, first_token: _Optional[int] = ..., tokens: _Optional[int] = ..., largest: _Optional[float] = ..., mean: _Optional[float] = ..., total: _Optional[_Union[AgreementTotal, _Mapping]] = ...) -> None: ...

class AgreementTotal(_message.Message):
    __slots__ = ("tokens", "largest", "mean", "noise", "verdict", "logprobs")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    largest: float
    mean: float
    noise: float
    verdict: Verdict
    logprobs: int
    def __init__(self, tokens: _Optional[int] = ..., largest: _Optional[float] = ..., mean: _Optional[float] = ..., noise: _Optional[float] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., logprobs: _Optional[int] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("input", "completion", "completion_ids", "labels", "generation", "evaluation")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_IDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    input: Input
    completion: str
    completion_ids: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    generation: GenerationOptions
    evaluation: EvaluationOptions
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., completion: _Optional[str] = ..., completion_ids: _Optional[_Iterable[int]] = ..., labels: _Optional[_Iterable[str]] = ..., generation: _Optional[_Union[GenerationOptions, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationOptions, _Mapping]] = ...) -> None: ...

class GenerationOptions(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class EvaluationOptions(_message.Message):
    __slots__ = ("methods", "scores", "metrics", "pis", "samples", "stride", "offset", "seed", "perturb", "removal", "raw_scores", "rationale", "perturb_positions")
    METHODS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PIS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PERTURB_FIELD_NUMBER: _ClassVar[int]
    REMOVAL_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    RATIONALE_FIELD_NUMBER: _ClassVar[int]
    PERTURB_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    methods: _containers.RepeatedCompositeFieldContainer[EvaluatedMethod]
    scores: _containers.RepeatedCompositeFieldContainer[GivenScores]
    metrics: _containers.RepeatedScalarFieldContainer[Metric]
    pis: _containers.RepeatedScalarFieldContainer[float]
    samples: int
    stride: int
    offset: int
    seed: int
    perturb: Perturb
    removal: Removal
    raw_scores: bool
    rationale: _containers.RepeatedScalarFieldContainer[str]
    perturb_positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, methods: _Optional[_Iterable[_Union[EvaluatedMethod, _Mapping]]] = ..., scores: _Optional[_Iterable[_Union[GivenScores, _Mapping]]] = ..., metrics: _Optional[_Iterable[_Union[Metric, str]]] = ..., pis: _Optional[_Iterable[float]] = ..., samples: _Optional[int] = ..., stride: _Optional[int] = ..., offset: _Optional[int] = ..., seed: _Optional[int] = ..., perturb: _Optional[_Union[Perturb, str]] = ..., removal: _Optional[_Union[Removal, str]] = ..., raw_scores: bool = ..., rationale: _Optional[_Iterable[str]] = ..., perturb_positions: _Optional[_Iterable[int]] = ...) -> None: ...

class EvaluatedMethod(_message.Message):
    __slots__ = ("name", "attribution")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    attribution: AttributionOptions
    def __init__(self, name: _Optional[str] = ..., attribution: _Optional[_Union[AttributionOptions, _Mapping]] = ...) -> None: ...

class GivenScores(_message.Message):
    __slots__ = ("name", "rows")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: _containers.RepeatedCompositeFieldContainer[ScoreRow]
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[ScoreRow, _Mapping]]] = ...) -> None: ...

class ScoreRow(_message.Message):
    __slots__ = ("step", "scores")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    step: int
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, step: _Optional[int] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("started", "token", "progress", "item", "summary", "finished", "prompt_progress")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    started: Started
    token: Token
    progress: Progress
    item: EvaluationItem
    summary: EvaluationSummary
    finished: Finished
    prompt_progress: Progress
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., item: _Optional[_Union[EvaluationItem, _Mapping]] = ..., summary: _Optional[_Union[EvaluationSummary, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., prompt_progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class EvaluationItem(_message.Message):
    __slots__ = ("step", "name", "metric", "value", "points", "flips", "expected_tokens")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    FLIPS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    step: int
    name: str
    metric: Metric
    value: float
    points: _containers.RepeatedCompositeFieldContainer[EvaluationPoint]
    flips: _containers.RepeatedScalarFieldContainer[bool]
    expected_tokens: float
    def __init__(self, step: _Optional[int] = ..., name: _Optional[str] = ..., metric: _Optional[_Union[Metric, str]] = ..., value: _Optional[float] = ..., points: _Optional[_Iterable[_Union[EvaluationPoint, _Mapping]]] = ..., flips: _Optional[_Iterable[bool]] = ..., expected_tokens: _Optional[float] = ...) -> None: ...

class EvaluationPoint(_message.Message):
    __slots__ = ("pi", "achieved_pi", "alpha", "mean", "samples")
    PI_FIELD_NUMBER: _ClassVar[int]
    ACHIEVED_PI_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    pi: float
    achieved_pi: float
    alpha: float
    mean: float
    samples: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, pi: _Optional[float] = ..., achieved_pi: _Optional[float] = ..., alpha: _Optional[float] = ..., mean: _Optional[float] = ..., samples: _Optional[_Iterable[float]] = ...) -> None: ...

class EvaluationSummary(_message.Message):
    __slots__ = ("metrics", "steps", "skipped_steps", "label_index", "answer_outside_labels", "perturbable_tokens", "sequences_run", "sequences_asked")
    METRICS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_STEPS_FIELD_NUMBER: _ClassVar[int]
    LABEL_INDEX_FIELD_NUMBER: _ClassVar[int]
    ANSWER_OUTSIDE_LABELS_FIELD_NUMBER: _ClassVar[int]
    PERTURBABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_RUN_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_ASKED_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.RepeatedCompositeFieldContainer[MetricSummary]
    steps: _containers.RepeatedScalarFieldContainer[int]
    skipped_steps: _containers.RepeatedScalarFieldContainer[int]
    label_index: int
    answer_outside_labels: bool
    perturbable_tokens: int
    sequences_run: int
    sequences_asked: int
    def __init__(self, metrics: _Optional[_Iterable[_Union[MetricSummary, _Mapping]]] = ..., steps: _Optional[_Iterable[int]] = ..., skipped_steps: _Optional[_Iterable[int]] = ..., label_index: _Optional[int] = ..., answer_outside_labels: bool = ..., perturbable_tokens: _Optional[int] = ..., sequences_run: _Optional[int] = ..., sequences_asked: _Optional[int] = ...) -> None: ...

class MetricSummary(_message.Message):
    __slots__ = ("name", "metric", "interval", "median", "difference_from_random", "curve", "expected_tokens", "steps")
    NAME_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FROM_RANDOM_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    name: str
    metric: Metric
    interval: Interval
    median: float
    difference_from_random: Interval
    curve: _containers.RepeatedScalarFieldContainer[float]
    expected_tokens: float
    steps: int
    def __init__(self, name: _Optional[str] = ..., metric: _Optional[_Union[Metric, str]] = ..., interval: _Optional[_Union[Interval, _Mapping]] = ..., median: _Optional[float] = ..., difference_from_random: _Optional[_Union[Interval, _Mapping]] = ..., curve: _Optional[_Iterable[float]] = ..., expected_tokens: _Optional[float] = ..., steps: _Optional[int] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("mean", "low", "high", "kind", "count")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    mean: float
    low: float
    high: float
    kind: IntervalKind
    count: int
    def __init__(self, mean: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., kind: _Optional[_Union[IntervalKind, str]] = ..., count: _Optional[int] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("input",)
    INPUT_FIELD_NUMBER: _ClassVar[int]
    input: Input
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("prompt_text", "tokens", "unplaced_messages")
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNPLACED_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    prompt_text: str
    tokens: _containers.RepeatedCompositeFieldContainer[PromptToken]
    unplaced_messages: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, prompt_text: _Optional[str] = ..., tokens: _Optional[_Iterable[_Union[PromptToken, _Mapping]]] = ..., unplaced_messages: _Optional[_Iterable[int]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("model", "methods", "limits", "versions", "memory", "default_attribution", "recommended_preset")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    RECOMMENDED_PRESET_FIELD_NUMBER: _ClassVar[int]
    model: ModelInfo
    methods: _containers.RepeatedCompositeFieldContainer[MethodInfo]
    limits: Limits
    versions: _containers.ScalarMap[str, str]
    memory: Memory
    default_attribution: Preset
    recommended_preset: Preset
    def __init__(self, model: _Optional[_Union[ModelInfo, _Mapping]] = ..., methods: _Optional[_Iterable[_Union[MethodInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., versions: _Optional[_Mapping[str, str]] = ..., memory: _Optional[_Union[Memory, _Mapping]] = ..., default_attribution: _Optional[_Union[Preset, str]] = ..., recommended_preset: _Optional[_Union[Preset, str]] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ("limit_bytes", "weights_bytes", "packed_weights_bytes", "kv_cache_bytes", "method_bytes", "resident_bytes")
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    PACKED_WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    METHOD_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    limit_bytes: int
    weights_bytes: int
    packed_weights_bytes: int
    kv_cache_bytes: int
    method_bytes: int
    resident_bytes: int
    def __init__(self, limit_bytes: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., packed_weights_bytes: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., method_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "revision", "family", "weights_sha256", "tokenizer_sha256", "chat_template_sha256", "dtype", "device", "attention_kernel", "num_layers", "num_heads", "num_key_value_heads", "num_parameters", "vocab_size", "context_tokens", "has_chat_template", "quantization", "config_sha256", "has_tools", "tool_call_parser")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_KERNEL_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_KEY_VALUE_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    HAS_TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_PARSER_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    family: str
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str
    dtype: str
    device: str
    attention_kernel: str
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    num_parameters: int
    vocab_size: int
    context_tokens: int
    has_chat_template: bool
    quantization: str
    config_sha256: str
    has_tools: bool
    tool_call_parser: str
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., family: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., chat_template_sha256: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., attention_kernel: _Optional[str] = ..., num_layers: _Optional[int] = ..., num_heads: _Optional[int] = ..., num_key_value_heads: _Optional[int] = ..., num_parameters: _Optional[int] = ..., vocab_size: _Optional[int] = ..., context_tokens: _Optional[int] = ..., has_chat_template: bool = ..., quantization: _Optional[str] = ..., config_sha256: _Optional[str] = ..., has_tools: bool = ..., tool_call_parser: _Optional[str] = ...) -> None: ...

class MethodInfo(_message.Message):
    __slots__ = ("name", "description", "streams", "switches", "forward_passes", "backward_passes", "reads_completion_alone", "has_target", "error", "refusal", "estimate")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    FORWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    READS_COMPLETION_ALONE_FIELD_NUMBER: _ClassVar[int]
    HAS_TARGET_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    streams: bool
    switches: _containers.RepeatedScalarFieldContainer[str]
    forward_passes: str
    backward_passes: str
    reads_completion_alone: bool
    has_target: bool
    error: str
    refusal: str
    estimate: Estimate
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., streams: bool = ..., switches: _Optional[_Iterable[str]] = ..., forward_passes: _Optional[str] = ..., backward_passes: _Optional[str] = ..., reads_completion_alone: bool = ..., has_target: bool = ..., error: _Optional[str] = ..., refusal: _Optional[str] = ..., estimate: _Optional[_Union[Estimate, _Mapping]] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "seconds", "bytes")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    bytes: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., bytes: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_prompt_tokens", "max_new_tokens", "max_running_requests", "max_queued_requests", "max_message_bytes", "max_queued_tokens", "kv_bytes", "kv_tokens", "method_bytes", "max_evaluation_sequences", "max_evaluation_step_tokens", "reader_timeout_seconds", "max_prompt_characters", "max_messages", "max_segments", "max_gap_seconds", "max_followed_requests", "follow_idle_seconds")
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    METHOD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_EVALUATION_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_EVALUATION_STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    READER_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_GAP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_FOLLOWED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    max_prompt_tokens: int
    max_new_tokens: int
    max_running_requests: int
    max_queued_requests: int
    max_message_bytes: int
    max_queued_tokens: int
    kv_bytes: int
    kv_tokens: int
    method_bytes: int
    max_evaluation_sequences: int
    max_evaluation_step_tokens: int
    reader_timeout_seconds: float
    max_prompt_characters: int
    max_messages: int
    max_segments: int
    max_gap_seconds: float
    max_followed_requests: int
    follow_idle_seconds: float
    def __init__(self, max_prompt_tokens: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., max_running_requests: _Optional[int] = ..., max_queued_requests: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_queued_tokens: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., method_bytes: _Optional[int] = ..., max_evaluation_sequences: _Optional[int] = ..., max_evaluation_step_tokens: _Optional[int] = ..., reader_timeout_seconds: _Optional[float] = ..., max_prompt_characters: _Optional[int] = ..., max_messages: _Optional[int] = ..., max_segments: _Optional[int] = ..., max_gap_seconds: _Optional[float] = ..., max_followed_requests: _Optional[int] = ..., follow_idle_seconds: _Optional[float] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("prompt", "messages", "prompt_ids", "segments", "message_spans", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "tools")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_SPANS_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_KWARGS_FIELD_NUMBER: _ClassVar[int]
    ADD_GENERATION_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    message_spans: _containers.RepeatedCompositeFieldContainer[MessageSpan]
    chat_template_kwargs: str
    add_generation_prompt: bool
    continue_final_message: bool
    tools: str
    def __init__(self, prompt: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., message_spans: _Optional[_Iterable[_Union[MessageSpan, _Mapping]]] = ..., chat_template_kwargs: _Optional[str] = ..., add_generation_prompt: bool = ..., continue_final_message: bool = ..., tools: _Optional[str] = ...) -> None: ...

class MessageSpan(_message.Message):
    __slots__ = ("role", "start", "end")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    role: str
    start: int
    end: int
    def __init__(self, role: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    name: str
    reasoning: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ..., name: _Optional[str] = ..., reasoning: _Optional[str] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("name", "message", "start", "end")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    name: str
    message: int
    start: int
    end: int
    def __init__(self, name: _Optional[str] = ..., message: _Optional[int] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class AttributionOptions(_message.Message):
    __slots__ = ("method", "preset", "loosening", "layers", "similarity", "rotary", "rectify", "magnitude", "normalise_over", "target_token_id", "contrast", "sources", "resolution", "top_k_sources", "delivery", "chunk_size", "objective", "aggregation", "steps", "samples", "seed", "layer", "baseline_ids", "sink", "tokens", "gradient")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    LOOSENING_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    ROTARY_FIELD_NUMBER: _ClassVar[int]
    RECTIFY_FIELD_NUMBER: _ClassVar[int]
    MAGNITUDE_FIELD_NUMBER: _ClassVar[int]
    NORMALISE_OVER_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    CONTRAST_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    TOP_K_SOURCES_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SIZE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    BASELINE_IDS_FIELD_NUMBER: _ClassVar[int]
    SINK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    method: str
    preset: Preset
    loosening: Loosening
    layers: Layers
    similarity: Similarity
    rotary: Rotary
    rectify: Rectify
    magnitude: Magnitude
    normalise_over: NormaliseOver
    target_token_id: int
    contrast: Contrast
    sources: Sources
    resolution: Resolution
    top_k_sources: int
    delivery: Delivery
    chunk_size: int
    objective: Objective
    aggregation: Aggregation
    steps: int
    samples: int
    seed: int
    layer: int
    baseline_ids: _containers.RepeatedScalarFieldContainer[int]
    sink: Sink
    tokens: TokenSelection
    gradient: Gradient
    def __init__(self, method: _Optional[str] = ..., preset: _Optional[_Union[Preset, str]] = ..., loosening: _Optional[_Union[Loosening, str]] = ..., layers: _Optional[_Union[Layers, _Mapping]] = ..., similarity: _Optional[_Union[Similarity, str]] = ..., rotary: _Optional[_Union[Rotary, str]] = ..., rectify: _Optional[_Union[Rectify, str]] = ..., magnitude: _Optional[_Union[Magnitude, str]] = ..., normalise_over: _Optional[_Union[NormaliseOver, str]] = ..., target_token_id: _Optional[int] = ..., contrast: _Optional[_Union[Contrast, _Mapping]] = ..., sources: _Optional[_Union[Sources, str]] = ..., resolution: _Optional[_Union[Resolution, str]] = ..., top_k_sources: _Optional[int] = ..., delivery: _Optional[_Union[Delivery, str]] = ..., chunk_size: _Optional[int] = ..., objective: _Optional[_Union[Objective, str]] = ..., aggregation: _Optional[_Union[Aggregation, str]] = ..., steps: _Optional[int] = ..., samples: _Optional[int] = ..., seed: _Optional[int] = ..., layer: _Optional[int] = ..., baseline_ids: _Optional[_Iterable[int]] = ..., sink: _Optional[_Union[Sink, str]] = ..., tokens: _Optional[_Union[TokenSelection, _Mapping]] = ..., gradient: _Optional[_Union[Gradient, str]] = ...) -> None: ...

class TokenSelection(_message.Message):
    __slots__ = ("indexes", "spans")
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    indexes: _containers.RepeatedScalarFieldContainer[int]
    spans: _containers.RepeatedCompositeFieldContainer[TextSpan]
    def __init__(self, indexes: _Optional[_Iterable[int]] = ..., spans: _Optional[_Iterable[_Union[TextSpan, _Mapping]]] = ...) -> None: ...

class TextSpan(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Layers(_message.Message):
    __slots__ = ("last", "indexes")
    LAST_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    last: int
    indexes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, last: _Optional[int] = ..., indexes: _Optional[_Iterable[int]] = ...) -> None: ...

class Contrast(_message.Message):
    __slots__ = ("token_id", "text", "runner_up")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RUNNER_UP_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    text: str
    runner_up: bool
    def __init__(self, token_id: _Optional[int] = ..., text: _Optional[str] = ..., runner_up: bool = ...) -> None: ...

class PromptToken(_message.Message):
    __slots__ = ("id", "text", "start", "end", "role", "message", "segment", "special", "word")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    start: int
    end: int
    role: Role
    message: int
    segment: str
    special: bool
    word: int
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., message: _Optional[int] = ..., segment: _Optional[str] = ..., special: bool = ..., word: _Optional[int] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("label", "token_indexes")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_INDEXES_FIELD_NUMBER: _ClassVar[int]
    label: str
    token_indexes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, label: _Optional[str] = ..., token_indexes: _Optional[_Iterable[int]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("prompt_text", "prompt_tokens", "sources", "provenance", "unplaced_messages", "unscored_tokens")
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    UNPLACED_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    UNSCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_text: str
    prompt_tokens: _containers.RepeatedCompositeFieldContainer[PromptToken]
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    provenance: Provenance
    unplaced_messages: _containers.RepeatedScalarFieldContainer[int]
    unscored_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, prompt_text: _Optional[str] = ..., prompt_tokens: _Optional[_Iterable[_Union[PromptToken, _Mapping]]] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., unplaced_messages: _Optional[_Iterable[int]] = ..., unscored_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("model", "versions", "sampling", "attribution", "evaluation", "structured_output")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    model: ModelInfo
    versions: _containers.ScalarMap[str, str]
    sampling: Sampling
    attribution: AttributionOptions
    evaluation: EvaluationOptions
    structured_output: StructuredOutput
    def __init__(self, model: _Optional[_Union[ModelInfo, _Mapping]] = ..., versions: _Optional[_Mapping[str, str]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., attribution: _Optional[_Union[AttributionOptions, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationOptions, _Mapping]] = ..., structured_output: _Optional[_Union[StructuredOutput, _Mapping]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "min_new_tokens", "ignore_eos", "stop_token_ids", "skip_special_tokens")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    min_new_tokens: int
    ignore_eos: bool
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_special_tokens: bool
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., min_new_tokens: _Optional[int] = ..., ignore_eos: bool = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., skip_special_tokens: bool = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("index", "id", "text", "start", "end", "logprob", "alternatives", "special", "source_index", "word", "forced_by_grammar")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    FORCED_BY_GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: int
    text: str
    start: int
    end: int
    logprob: float
    alternatives: _containers.RepeatedCompositeFieldContainer[Alternative]
    special: bool
    source_index: int
    word: int
    forced_by_grammar: bool
    def __init__(self, index: _Optional[int] = ..., id: _Optional[int] = ..., text: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., logprob: _Optional[float] = ..., alternatives: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., special: bool = ..., source_index: _Optional[int] = ..., word: _Optional[int] = ..., forced_by_grammar: bool = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("id", "text", "logprob")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    logprob: float
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class Attribution(_message.Message):
    __slots__ = ("token_index", "scores", "source_indexes", "target_token_id", "contrast_token_id", "error")
    TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_INDEXES_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    CONTRAST_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    token_index: int
    scores: _containers.RepeatedScalarFieldContainer[float]
    source_indexes: _containers.RepeatedScalarFieldContainer[int]
    target_token_id: int
    contrast_token_id: int
    error: float
    def __init__(self, token_index: _Optional[int] = ..., scores: _Optional[_Iterable[float]] = ..., source_indexes: _Optional[_Iterable[int]] = ..., target_token_id: _Optional[int] = ..., contrast_token_id: _Optional[int] = ..., error: _Optional[float] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done",)
    DONE_FIELD_NUMBER: _ClassVar[int]
    done: float
    def __init__(self, done: _Optional[float] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "stop", "usage", "timings", "agreement")
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    stop: str
    usage: Usage
    timings: Timings
    agreement: AgreementTotal
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., stop: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., agreement: _Optional[_Union[AgreementTotal, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "attributed_tokens", "reused_prompt_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REUSED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    attributed_tokens: int
    reused_prompt_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., attributed_tokens: _Optional[int] = ..., reused_prompt_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_seconds", "prefill_seconds", "decode_seconds", "attribution_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    attribution_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., prefill_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., attribution_seconds: _Optional[float] = ...) -> None: ...
