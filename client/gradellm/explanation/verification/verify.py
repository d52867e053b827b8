"""Verifies one explanation with a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from gradellm.errors import InvalidRequestError
from gradellm.explanation.verification.comparison import compared
from gradellm.explanation.verification.generation import regenerated
from gradellm.explanation.verification.prompt import replay_prompt
from gradellm.explanation.verification.provenance import other_model
from gradellm.explanation.verification.replay import attribution_settings, check_normalisation, completion_keywords
from gradellm.explanation.verification.verdict import TOLERANCE, Verdict

if TYPE_CHECKING:
    from typing import Unpack

    from gradellm.explanation.explanation import Explanation
    from gradellm.models import ServerInfo, TokenizedPrompt
    from gradellm.wire.keywords import AttributeKeywords, CallKeywords, GenerateKeywords, TokenizeKeywords

__all__ = ["ReplayClient", "verified"]


class ReplayClient(Protocol):
    """The calls of `gradellm.Client` that a verification makes."""

    def server_info(self, **keywords: Unpack[CallKeywords]) -> ServerInfo:
        """As `Client.server_info`."""
        ...

    def tokenize(self, prompt: str | None = None, **keywords: Unpack[TokenizeKeywords]) -> TokenizedPrompt:
        """As `Client.tokenize`."""
        ...

    def attribute(self, prompt: str | None = None, **keywords: Unpack[AttributeKeywords]) -> Explanation:
        """As `Client.attribute`."""
        ...

    def explain(self, prompt: str | None = None, **keywords: Unpack[GenerateKeywords]) -> Explanation:
        """As `Client.explain`."""
        ...


def verified(
    client: ReplayClient,
    stored: Explanation,
    *,
    tolerance: float = TOLERANCE,
    regenerate: bool = False,
    timeout: float | None = None,
) -> Verdict:
    """Replay a stored explanation on a client's server, and compare all of its fields.

    With `regenerate` the completion is also generated again, with the stored sampling settings and seed.

    Raises InvalidExplanationError if the explanation lacks information that a replay needs.
    """
    keywords = completion_keywords(stored)
    if difference := other_model(stored, client.server_info(timeout=timeout).model):
        return Verdict(0, 0.0, None, 0.0, (), tolerance=tolerance, other_model=difference)
    try:
        prompt = replay_prompt(lambda prompt: client.tokenize(**cast("Any", prompt), timeout=timeout), stored)
        if not prompt.is_exact:
            check_normalisation(stored)
        elif (resolution := attribution_settings(stored).resolution) is not None:
            keywords["resolution"] = resolution
        del keywords["prompt_ids"]
        replayed = client.attribute(**{**keywords, **cast("Any", prompt.keywords)}, timeout=timeout)
        redrawn = None
        if regenerate:
            redrawn = regenerated(
                lambda request: client.explain(**cast("Any", request), attribution=None, timeout=timeout),
                stored,
                prompt.keywords,
            )
    except InvalidRequestError as error:
        problem = f"it cannot be computed again: the server refuses the replay ({error})"
        return Verdict(0, 0.0, None, 0.0, (), (problem,), tolerance)
    return compared(stored, replayed, tolerance, prompt=prompt, redrawn=redrawn)
