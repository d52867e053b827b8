"""What a verification asks of a client, in which order, and what it does with refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from client.explanation.verification.conftest import complete, with_model, with_settings, with_token
from gradellm import Explanation, InvalidExplanationError, InvalidRequestError, TokenizedPrompt, UnavailableError
from gradellm.explanation.verification.verify import ReplayClient, verified
from gradellm.models import ServerInfo


class Replaying:
    """Answers every call from one explanation, and notes the calls; fails with `failure` in the call of that name."""

    def __init__(self, answer: Explanation, **failures: Exception) -> None:
        self.answer = answer
        self.failures = failures
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def _note(self, name: str, keywords: dict[str, Any]) -> None:
        self.calls.append((name, keywords))
        if name in self.failures:
            raise self.failures[name]

    def server_info(self, **keywords: Any) -> ServerInfo:
        self._note("server_info", keywords)
        return ServerInfo(self.answer.provenance.model, (), cast("Any", None), {})

    def tokenize(self, prompt: str | None = None, **keywords: Any) -> TokenizedPrompt:
        self._note("tokenize", keywords)
        return TokenizedPrompt(self.answer.prompt_text, self.answer.prompt_tokens)

    def attribute(self, prompt: str | None = None, **keywords: Any) -> Explanation:
        self._note("attribute", {"prompt": prompt, **keywords})
        return self.answer

    def explain(self, prompt: str | None = None, **keywords: Any) -> Explanation:
        self._note("explain", {"prompt": prompt, **keywords})
        return self.answer

    @property
    def client(self) -> ReplayClient:
        return self

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def test_the_completion_is_replayed_after_the_reconstructed_prompt() -> None:
    replaying = Replaying(complete())
    assert verified(replaying.client, complete(), timeout=9.0).holds_strictly
    assert replaying.names == ["server_info", "tokenize", "attribute"]
    assert all(keywords["timeout"] == 9.0 for _, keywords in replaying.calls)
    (_, keywords) = replaying.calls[-1]
    assert keywords["messages"] == [("system", "The cat"), ("user", " sat on a mat")]
    assert keywords["completion_ids"] == [50, 51, 52, 53]
    assert "prompt_ids" not in keywords
    assert "resolution" not in keywords


def test_an_exact_prompt_is_replayed_at_the_stored_resolution() -> None:
    replaying = Replaying(complete())
    verified(replaying.client, with_settings(complete(), resolution="token"))
    assert replaying.calls[-1][1]["resolution"] == "token"


def test_regeneration_uses_the_same_prompt_without_attribution() -> None:
    replaying = Replaying(complete())
    assert verified(replaying.client, complete(), regenerate=True).holds_strictly
    assert replaying.names[-2:] == ["attribute", "explain"]
    (_, keywords) = replaying.calls[-1]
    assert keywords["attribution"] is None
    assert keywords["messages"] == replaying.calls[-2][1]["messages"]


def test_a_generation_that_differs_is_a_problem() -> None:
    replaying = Replaying(complete())
    stored = complete(temperature=1.0)
    replaying.explain = lambda *_, **__: with_token(complete(), 1, id=9)  # type: ignore[method-assign]
    assert not verified(replaying.client, stored, regenerate=True).holds
    assert verified(replaying.client, stored).holds


def test_nothing_is_computed_by_another_model() -> None:
    replaying = Replaying(with_model(complete(), weights_sha256="b" * 64))
    verdict = verified(replaying.client, complete(), tolerance=0.5)
    assert replaying.names == ["server_info"]
    assert "hosts another model" in verdict.other_model
    assert (verdict.holds, verdict.rows, verdict.tolerance) == (False, 0, 0.5)


@pytest.mark.parametrize("call", ["tokenize", "attribute", "explain"])
def test_a_refusal_is_a_problem(call: str) -> None:
    replaying = Replaying(complete(), **{call: InvalidRequestError("no such id")})
    verdict = verified(replaying.client, complete(), regenerate=True)
    assert verdict.problems == ("it cannot be computed again: the server refuses the replay (no such id)",)
    assert not verdict.holds


def test_other_failures_are_raised() -> None:
    """A server that does not answer says nothing about the explanation."""
    replaying = Replaying(complete(), attribute=UnavailableError("gone"))
    with pytest.raises(UnavailableError):
        verified(replaying.client, complete())


def test_roles_that_only_messages_carry_need_an_exact_prompt() -> None:
    """normalise_over="user" depends on roles, so a replay from token ids would compute other scores."""
    stored = with_settings(complete(), normalise_over="user")
    replaying = Replaying(stored)
    assert verified(replaying.client, stored).holds
    other_roles = tuple(replace(token, role="tool") for token in stored.prompt_tokens)
    inexact = Replaying(replace(stored, started=replace(stored.started, prompt_tokens=other_roles)))
    with pytest.raises(InvalidExplanationError, match="normalise_over"):
        verified(inexact.client, stored)


def test_an_explanation_without_scores_is_refused_before_any_call() -> None:
    replaying = Replaying(complete())
    with pytest.raises(InvalidExplanationError, match="nothing was explained"):
        verified(replaying.client, replace(complete(), attributions=()))
    assert replaying.calls == []
