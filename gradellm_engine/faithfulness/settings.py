"""Settings of an evaluation, which validate themselves. Errors name the fields of the wire contract."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.faithfulness.metrics.curves import PIS
from gradellm_engine.params import Switches, check_choice
from gradellm_engine.sampling_params import MAX_SEED

MAX_PIS = 99
MAX_SAMPLES = 1000
MAX_LABELS = 64
MAX_EVALUATED_METHODS = 64
MAX_EVALUATION_SEQUENCES = 1_000_000  # perturbed texts of an evaluation
# Of the perturbed texts of one step, whose outcomes stay in memory until the step is complete.
MAX_EVALUATION_STEP_TOKENS = 50_000_000


class Metric(StrEnum):
    """A faithfulness metric, or a measure of agreement with a human rationale."""

    PI_SOFT_NS = "pi_soft_ns"  # sufficiency of the kept tokens, over pi (eqs 17 and 20)
    PI_SOFT_NC = "pi_soft_nc"  # comprehensiveness of the removed tokens, over pi (eqs 18 and 20)
    SOFT_NS = "soft_ns"  # the original metrics: scores are the retaining probabilities (eq 14)
    SOFT_NC = "soft_nc"
    INSERTION = "insertion"  # share of flips while the top tokens are inserted (appendix C)
    DELETION = "deletion"  # share of flips while the top tokens are deleted
    AUPRC = "auprc"  # of the scores as a classifier of rationale tokens
    TOKEN_F1 = "token_f1"  # noqa: S105 (a metric, not a password)

    @property
    def is_soft(self) -> bool:
        """Whether it perturbs with random masks and measures Hellinger distances."""
        return self in _SOFT

    @property
    def keeps(self) -> bool:
        """Of a soft metric, whether the drawn tokens are kept (NS) or removed (NC)."""
        return self in (Metric.PI_SOFT_NS, Metric.SOFT_NS)

    @property
    def has_pis(self) -> bool:
        """Whether it is measured at each pi."""
        return self in (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC)

    @property
    def is_ranked(self) -> bool:
        """Whether it deletes or inserts tokens in the order of their scores."""
        return self in (Metric.INSERTION, Metric.DELETION)

    @property
    def needs_rationale(self) -> bool:
        """Whether it compares with a human rationale."""
        return self in (Metric.AUPRC, Metric.TOKEN_F1)


_SOFT = (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC, Metric.SOFT_NS, Metric.SOFT_NC)


class Perturb(StrEnum):
    """U, the tokens that may be perturbed."""

    USER = "user"  # the user's own text (all of a raw prompt), without special tokens
    PROMPT = "prompt"  # the whole prompt, with chat template and special tokens
    PREFIX = "prefix"  # the whole prompt and the tokens generated before the step


class Removal(StrEnum):
    """The replacement of a removed token in insertion and deletion."""

    REMOVE = "remove"  # nothing: the text gets shorter
    ZERO = "zero"  # a zero embedding
    PAD = "pad"  # the tokenizer's padding token


@dataclass(frozen=True)
class EvaluatedMethod:
    """A method to evaluate, or scores of the caller's own.

    Attributes:
        name: its name in the results; unique in an evaluation.
        method: the method's switches; None for scores of the caller's own.
        rows: scores of the caller's own, by step: one a token of the prompt [m] or of the whole prefix [m + t].
    """

    name: str
    method: Switches | None = None
    rows: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidRequestError("methods", "each method and each set of scores must have a name")
        for step, row in self.rows.items():
            for index, score in enumerate(row):
                if not math.isfinite(score):
                    raise InvalidRequestError(
                        "scores",
                        f"{self.name!r}: the score of token {index} at step {step} is {score}; all must be finite",
                    )


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation; docs/methods/metrics.md defines the metrics.

    Attributes:
        methods: the methods, and scores of the caller's own.
        metrics: the metrics, each once.
        pis: mean retaining probabilities of pi-Soft metrics; ascending, in (0, 1).
        samples: random masks for each pi.
        stride: every `stride`-th step of the completion is evaluated.
        offset: the first step that is evaluated, counted from 0.
        seed: of masks and of ties; equal seeds give equal results. Methods that draw samples have their own seeds.
        perturb: U, the tokens that may be perturbed.
        positions: U as positions in the prompt, instead of `perturb`.
        removal: the replacement of a removed token in insertion and deletion.
        labels: the possible answers, of which the most probable one is explained; empty for whole completions.
        raw_scores: whether Soft-NS and Soft-NC clip scores to [0, 1] instead of min-maxing them over U.
        rationale: names of the input's segments that form the human rationale.
    """

    methods: tuple[EvaluatedMethod, ...]
    metrics: tuple[Metric, ...] = (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC)
    pis: tuple[float, ...] = PIS
    samples: int = 3
    stride: int = 5
    offset: int = 0
    seed: int = 0
    perturb: Perturb = Perturb.USER
    positions: tuple[int, ...] = ()
    removal: Removal = Removal.REMOVE
    labels: tuple[str, ...] = ()
    raw_scores: bool = False
    rationale: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("perturb", self.perturb, Perturb)
        check_choice("removal", self.removal, Removal)
        names = [evaluated.name for evaluated in self.methods]
        if not 1 <= len(names) <= MAX_EVALUATED_METHODS:
            raise InvalidRequestError(
                "methods",
                f"give between 1 and {MAX_EVALUATED_METHODS} methods and sets of scores; there were {len(names)}",
            )
        if doubled := sorted(name for name, count in Counter(names).items() if count > 1):
            raise InvalidRequestError("methods", f"the name {doubled[0]!r} is given twice; names must be unique")
        if self.positions and self.perturb is not Perturb.USER:
            raise InvalidRequestError("perturb_positions", "replaces perturb; give one of the two")
        for metric in self.metrics:
            check_choice("metrics", metric, Metric)
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise InvalidRequestError("metrics", "give at least one metric, each once")
        self._check_numbers()
        needing = [metric for metric in self.metrics if metric.needs_rationale]
        if needing and not self.rationale:
            raise InvalidRequestError(
                "rationale", f"{needing[0]} needs the names of the segments that form the rationale"
            )
        if not needing and self.rationale:
            raise InvalidRequestError("rationale", "is used only by the metrics auprc and token_f1")
        if len(self.labels) > MAX_LABELS:
            raise InvalidRequestError("labels", f"give at most {MAX_LABELS} labels; there were {len(self.labels)}")
        if self.labels and len(set(self.labels)) < max(2, len(self.labels)):
            raise InvalidRequestError("labels", "give two or more labels, all different")

    def _check_numbers(self) -> None:
        if not self.pis or len(self.pis) > MAX_PIS:
            raise InvalidRequestError("pis", f"give between 1 and {MAX_PIS} values; there were {len(self.pis)}")
        if not all(0 < pi < 1 for pi in self.pis):  # also refuses NaN
            raise InvalidRequestError("pis", f"must lie above 0 and below 1, were {list(self.pis)}")
        if any(after - before < 1e-6 for before, after in zip(self.pis, self.pis[1:], strict=False)):
            raise InvalidRequestError("pis", f"must ascend by at least a millionth, were {list(self.pis)}")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise InvalidRequestError("samples", f"must lie between 1 and {MAX_SAMPLES}, was {self.samples}")
        if self.stride < 1:
            raise InvalidRequestError("stride", f"must be at least 1, was {self.stride}")
        if self.offset < 0:
            raise InvalidRequestError("offset", f"must be at least 0, was {self.offset}")
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidRequestError("seed", f"must lie between 0 and 2**63 - 1, was {self.seed}")

    @property
    def excludes_sink(self) -> bool:
        """Whether a method does not score the first token, which is then perturbed for none."""
        return any(each.method is not None and each.method.excludes_sink for each in self.methods)

    def steps(self, num_tokens: int) -> range:
        """The steps that are evaluated, of a completion of `num_tokens`."""
        return range(1) if self.labels else range(self.offset, num_tokens, self.stride)

    @property
    def texts_per_step(self) -> int:
        """The most perturbed texts of a step, without the two of P and P_0."""
        count = 0
        for metric in self.metrics:
            if metric.is_soft:
                count += self.samples * (len(self.pis) if metric.has_pis else 1)
            elif metric.is_ranked:
                count += 20
        return count * len(self.methods)
