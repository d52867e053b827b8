"""What can be asked of an evaluation. Every setting checks itself; names are those of the wire contract."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.faithfulness.curves import PIS
from gradellm_engine.params import MAX_SEED, Switches, check_choice

MAX_PIS = 99
MAX_SAMPLES = 1000
MAX_LABELS = 64
MAX_EVALUATED_METHODS = 64
MAX_EVALUATION_SEQUENCES = 1_000_000  # that an evaluation may run
# Of a step's changed texts together: what came of them is kept until the step's end.
MAX_EVALUATION_STEP_TOKENS = 50_000_000


class Metric(StrEnum):
    """What is measured."""

    PI_SOFT_NS = "pi_soft_ns"  # what is kept brings back, over all shares pi of the text
    PI_SOFT_NC = "pi_soft_nc"  # what goes with what is removed, likewise
    SOFT_NS = "soft_ns"  # the same with scores themselves for probabilities
    SOFT_NC = "soft_nc"
    INSERTION = "insertion"  # how often the answer differs while the best tokens come
    DELETION = "deletion"  # and while they go
    AUPRC = "auprc"  # of finding a human rationale by score
    TOKEN_F1 = "token_f1"  # noqa: S105 (a metric, not a password)

    @property
    def is_soft(self) -> bool:
        """Whether masks are drawn, and the distribution's way is measured."""
        return self in _SOFT

    @property
    def keeps(self) -> bool:
        """Of a soft metric, whether what is drawn is kept (NS) or removed (NC)."""
        return self in (Metric.PI_SOFT_NS, Metric.SOFT_NS)

    @property
    def has_pis(self) -> bool:
        """Whether it is measured at each pi."""
        return self in (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC)

    @property
    def is_ranked(self) -> bool:
        """Whether tokens go or come in the order of their scores."""
        return self in (Metric.INSERTION, Metric.DELETION)

    @property
    def needs_rationale(self) -> bool:
        """Whether it compares with a human rationale."""
        return self in (Metric.AUPRC, Metric.TOKEN_F1)


_SOFT = (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC, Metric.SOFT_NS, Metric.SOFT_NC)


class Perturb(StrEnum):
    """Which tokens may be perturbed."""

    USER = "user"  # of the user's own text, of a raw prompt all; never special ones
    PROMPT = "prompt"  # of the whole prompt, template and special ones included
    PREFIX = "prefix"  # and those generated before


class Removal(StrEnum):
    """What insertion and deletion put in a token's place."""

    REMOVE = "remove"  # nothing: the text gets shorter
    ZERO = "zero"  # a zero embedding
    PAD = "pad"  # the tokenizer's padding token


@dataclass(frozen=True)
class EvaluatedMethod:
    """Attributions that are evaluated: a method's, or the caller's own.

    Attributes:
        name: what results call it; unique in an evaluation.
        method: the method with its switches; None for the caller's own scores.
        rows: the caller's own: by step, one score a token of the prompt, or of the whole prefix.
    """

    name: str
    method: Switches | None = None
    rows: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidRequestError("methods", "what is evaluated must have a name")
        for step, row in self.rows.items():
            for index, score in enumerate(row):
                if not math.isfinite(score):
                    raise InvalidRequestError(
                        "scores",
                        f"{self.name!r}: the score of token {index} at step {step} is {score}; all must be finite",
                    )


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated, and how.

    Attributes:
        judged: whose attributions.
        metrics: which metrics, each once.
        pis: the shares of the text that pi-Soft metrics keep in the mean; ascending, in (0, 1).
        samples: masks drawn for each pi.
        stride: every so many steps of the completion are evaluated.
        offset: from this step on, 0 first.
        seed: of masks and of ties; equal seeds give equal numbers. Methods that draw have seeds of their own.
        perturb: which tokens may be perturbed.
        positions: in place of `perturb`: these tokens of the prompt.
        removal: what insertion and deletion put in a token's place.
        labels: words that answer, of which the model's most probable one is explained; empty for whole completions.
        raw_scores: whether Soft-NS and Soft-NC take scores as they are, clipped to [0, 1], not brought to it.
        rationale: names of the input's segments that people gave as the reason.
    """

    judged: tuple[EvaluatedMethod, ...]
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
        names = [judged.name for judged in self.judged]
        if not 1 <= len(names) <= MAX_EVALUATED_METHODS:
            raise InvalidRequestError(
                "methods",
                f"between 1 and {MAX_EVALUATED_METHODS} methods and scores of your own can be evaluated, "
                f"were {len(names)}",
            )
        if doubled := sorted(name for name, count in Counter(names).items() if count > 1):
            raise InvalidRequestError("methods", f"{doubled[0]!r} is there twice; names must be unique")
        if self.positions and self.perturb is not Perturb.USER:
            raise InvalidRequestError("perturb_positions", "stand in place of perturb; give one of the two")
        for metric in self.metrics:
            check_choice("metrics", metric, Metric)
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise InvalidRequestError("metrics", "must be given, each once")
        self._check_numbers()
        needing = [metric for metric in self.metrics if metric.needs_rationale]
        if needing and not self.rationale:
            raise InvalidRequestError(
                "rationale", f"{needing[0]} needs the names of the segments that are the rationale"
            )
        if not needing and self.rationale:
            raise InvalidRequestError("rationale", "has a use with the metrics auprc and token_f1 alone")
        if len(self.labels) > MAX_LABELS:
            raise InvalidRequestError("labels", f"at most {MAX_LABELS} words, there were {len(self.labels)}")
        if self.labels and len(set(self.labels)) < max(2, len(self.labels)):
            raise InvalidRequestError("labels", "must be two or more different words")

    def _check_numbers(self) -> None:
        if not self.pis or len(self.pis) > MAX_PIS:
            raise InvalidRequestError("pis", f"between 1 and {MAX_PIS} must be given, were {len(self.pis)}")
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

    def steps(self, num_tokens: int) -> range:
        """Those that are evaluated, of a completion of so many tokens."""
        return range(1) if self.labels else range(self.offset, num_tokens, self.stride)

    @property
    def sequences_a_step(self) -> int:
        """How many sequences a step runs at most, beside the two that all share."""
        count = 0
        for metric in self.metrics:
            if metric.is_soft:
                count += self.samples * (len(self.pis) if metric.has_pis else 1)
            elif metric.is_ranked:
                count += 20
        return count * len(self.judged)
