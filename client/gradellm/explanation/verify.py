"""For the auditor: computes a stored explanation again, and tells what differs.

1. The server must host the model that the explanation names, by its hashes; else nothing is sent.
2. The prompt is made again, in the form that its tokens tell of: messages, a text, or token ids. Text, offsets, roles
   and segments must come out as they are stored.
3. The completion is explained again by its token ids, with the settings as they were resolved. Tokens, their
   log-probabilities and scores must come out as they are stored; what comes of sampling is checked where it can be.
4. All that is left is named as not checked: no field of an explanation is passed over in silence.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

from gradellm.errors import InvalidExplanationError, InvalidRequestError
from gradellm.explanation.queries import selected, total_of
from gradellm.explanation.words import Word
from gradellm.models import (
    AttributionSettings,
    Finished,
    ModelInfo,
    Provenance,
    Sampling,
    Started,
    TokenizedPrompt,
)
from gradellm.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gradellm.client import Client
    from gradellm.explanation.explanation import Explanation
    from gradellm.models import Attribution, PromptToken, Source, Token
    from gradellm.wire.requests import AttributeKeywords

__all__ = [
    "Mismatch",
    "NotChecked",
    "PromptAgain",
    "Verdict",
    "compared",
    "contrast_keywords",
    "explained_row",
    "grouped",
    "other_model",
    "prompt_again",
    "replay_keywords",
    "replayable",
    "verified",
]

_TOLERANCE = 1e-3  # of a row's largest score: other kernels, threads and batches round differently
_MOST_ALTERNATIVES = 20  # that a server tells
_IDENTITY = {"weights_sha256": "weights", "config_sha256": "configuration"}
"""What makes it another model; all else of `ModelInfo` is how it is served."""
_FORM = ("sources", "resolution", "top_k_sources", "delivery", "chunk_size", "preset", "target_token_id", "seed")
_OF_DELIVERY = ("delivery", "chunk_size")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something that was otherwise when the explanation was made."""

    what: str
    """Which part of the provenance, such as model.weights_sha256 or versions.torch."""
    then: str
    now: str


@dataclass(frozen=True, slots=True)
class NotChecked:
    """Something that the explanation says and that nothing was compared with."""

    what: str
    """Its path in the file, such as finished.timings."""
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of computing it again."""

    rows: int
    """Tokens whose scores were compared."""
    largest_difference: float
    """Of a score, relative to the largest of its row."""
    worst_token: int | None
    """In whose row that is; None where there are none."""
    largest_logprob_difference: float
    mismatches: tuple[Mismatch, ...]
    """Of the provenance: the same may come of them, and they are not those of then."""
    problems: tuple[str, ...] = ()
    """What the explanation says and the server does not."""
    tolerance: float = _TOLERANCE
    not_checked: tuple[NotChecked, ...] = ()
    other_model: str = ""
    """How the server's model is another one than the explanation's; nothing was computed then. Else empty."""

    @property
    def holds(self) -> bool:
        """Whether the same came again, scores within the tolerance. Mismatches alone do not decide it."""
        found = self.rows > 0 and not self.problems and not self.other_model
        return found and self.largest_difference <= self.tolerance  # NaN is not

    @property
    def holds_strictly(self) -> bool:
        """Whether it holds, and model, versions and settings are those of then as well."""
        return self.holds and not self.mismatches

    def to_plain(self) -> dict[str, Any]:
        """Return it in what JSON can hold."""
        return {"holds": self.holds, "holds_strictly": self.holds_strictly, **to_plain(self)}


# --- what is asked ----------------------------------------------------------------------------------------------------


def verified(
    client: Client,
    stored: Explanation,
    *,
    tolerance: float = _TOLERANCE,
    regenerate: bool = False,
    timeout: float | None = None,
) -> Verdict:
    """Compute a stored explanation again on a client's server, and compare all that it says.

    With `regenerate` its tokens are drawn again as well, with the sampling settings and the seed that it names.

    Raises InvalidExplanationError where what was stored does not say enough to be computed again.
    """
    keywords = _replay_keywords(stored)
    if difference := other_model(stored, client.server_info(timeout=timeout).model):
        return Verdict(0, 0.0, None, 0.0, (), tolerance=tolerance, other_model=difference)
    try:
        prompt = prompt_again(lambda given: client.tokenize(**cast("Any", given), timeout=timeout), stored)
        if not prompt.is_exact:
            _check_normalised(stored)
        elif (resolution := _settings(stored).resolution) is not None:
            keywords["resolution"] = resolution
        del keywords["prompt_ids"]
        again = client.attribute(**{**keywords, **cast("Any", prompt.keywords)}, timeout=timeout)
        redrawn = _drawn_again(client, stored, prompt, timeout) if regenerate else None
    except InvalidRequestError as error:
        problem = f"it cannot be computed again: the server refuses what it says ({error})"
        return Verdict(0, 0.0, None, 0.0, (), (problem,), tolerance)
    return compared(stored, again, tolerance, prompt=prompt, redrawn=redrawn)


def other_model(stored: Explanation, now: ModelInfo) -> str:
    """Say how a model is another one than an explanation's; an empty text where it is not."""
    then = stored.provenance.model
    for name, title in _IDENTITY.items():
        was, is_now = getattr(then, name), getattr(now, name)
        if was != is_now and (name == "weights_sha256" or (was and is_now)):  # an older file says no configuration
            return (
                f"the server hosts another model, {now.name} ({title} {is_now[:12] or 'unknown'}); the explanation is "
                f"of {then.name} ({title} {was[:12] or 'unknown'})"
            )
    return ""


def replay_keywords(explanation: Explanation) -> AttributeKeywords:
    """Return the keywords of `attribute` that compute it again by its token ids, at one score a token.

    Raises InvalidExplanationError where what was stored does not say enough.
    """
    keywords = _replay_keywords(explanation)
    _check_normalised(explanation)
    return keywords


def replayable(explanation: Explanation) -> None:
    """Raise InvalidExplanationError where what was stored does not say enough to be computed again."""
    _replay_keywords(explanation)


def _check_normalised(explanation: Explanation) -> None:
    settings = _settings(explanation)
    if settings.normalise_over == "user" and any(token.role != "user" for token in explanation.prompt_tokens):
        raise InvalidExplanationError("normalise_over='user' cannot be replayed from token ids, which have no roles")


def _settings(explanation: Explanation) -> AttributionSettings:
    settings = explanation.provenance.attribution
    if settings is None or not explanation.attributions:
        raise InvalidExplanationError("nothing was explained, so there is nothing to verify")
    return settings


def _replay_keywords(explanation: Explanation) -> AttributeKeywords:
    settings = _settings(explanation)
    if not explanation.tokens or explanation.tokens[0].index != 0:
        raise InvalidExplanationError("the completion began with forced tokens, whose ids are not stored")
    keywords: dict[str, Any] = {
        each.name: value
        for each in fields(settings)
        if each.name not in _FORM and (value := getattr(settings, each.name)) not in (None, ())
    }
    if settings.seed is not None:
        keywords["attribution_seed"] = settings.seed
    if settings.target_token_id is not None:
        keywords["target"] = settings.target_token_id
    keywords["sources"] = settings.sources or "prompt"
    keywords["prompt_ids"] = [token.id for token in explanation.prompt_tokens]
    keywords["completion_ids"] = [token.id for token in explanation.tokens]
    has_alternatives = any(token.alternatives for token in explanation.tokens)
    keywords["num_alternatives"] = _MOST_ALTERNATIVES if has_alternatives else 1
    return keywords  # type: ignore[return-value]


def contrast_keywords(explanation: Explanation, place: Word | int, instead: str | int) -> tuple[int, AttributeKeywords]:
    """Return which token is explained, and the keywords of `attribute` that tell why it came and not another.

    Raises InvalidExplanationError where the explanation has no such token, or does not say enough.
    """
    index = place.token_indexes[0] if isinstance(place, Word) else place
    (index,) = selected(explanation, index)
    keywords: dict[str, Any] = dict(replay_keywords(explanation))
    keywords["completion_ids"] = keywords["completion_ids"][: index + 1]
    keywords["contrast"] = instead
    return index, keywords  # type: ignore[return-value]


def explained_row(explanation: Explanation, index: int) -> Attribution:
    """Return a token's attribution. Raises InvalidExplanationError where the server has not explained it."""
    row = explanation.row(index)
    if row is None:
        raise InvalidExplanationError(f"the server did not explain token {index}")
    return row


# --- the prompt, made again -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PromptAgain:
    """A stored prompt, as the server makes it now."""

    keywords: dict[str, Any]
    """The input that makes it: prompt, messages or prompt_ids, and segments."""
    is_exact: bool
    """Whether that gives the stored prompt in all of its fields; else `keywords` has the token ids."""
    problems: tuple[str, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()


_MOST_TRIED = 24  # forms of one prompt's messages
_OF_ROLES = ("role", "message", "segment")


def prompt_again(tokenize: Callable[[dict[str, Any]], TokenizedPrompt], stored: Explanation) -> PromptAgain:
    """Find the input that a stored prompt was made from, and compare the prompt with what the server makes of it now.

    What was sent is not stored, but follows from the tokens' messages, roles and segments, and the text at their
    offsets. `tokenize` asks the server, by keywords of `tokenize`.

    Raises what `tokenize` raises where the server knows none of the token ids.
    """
    has_segments = any(token.segment for token in stored.prompt_tokens)
    own = (NotChecked("started.prompt_tokens.segment", "the names are the caller's own"),) if has_segments else ()
    nearest: TokenizedPrompt | None = None
    refusal = ""
    for keywords in itertools.islice(_inputs(stored), _MOST_TRIED):
        try:
            made = tokenize(keywords)
        except InvalidRequestError as error:
            refusal = refusal or str(error)
            continue
        problems = _prompt_problems(stored, made)
        if not problems:
            return PromptAgain(keywords, True, (), (*own, *_unsaid_of_prompt(stored, made)))
        if nearest is None or _ids(made.tokens) == _ids(stored.prompt_tokens) != _ids(nearest.tokens):
            nearest = made
    by_ids = {"prompt_ids": _ids(stored.prompt_tokens)}
    made = tokenize(by_ids)
    if not _prompt_problems(stored, made):
        return PromptAgain(by_ids, True, (), (*own, *_unsaid_of_prompt(stored, made)))
    problems = _text_problems(tokenize, stored, made)
    if problems:
        return PromptAgain(by_ids, False, tuple(problems), own)
    said, unsaid = _role_problems(stored, nearest, refusal)
    return PromptAgain(by_ids, False, tuple(said), (*own, *unsaid))


def _ids(tokens: Sequence[PromptToken]) -> list[int]:
    return [token.id for token in tokens]


def _prompt_problems(stored: Explanation, made: TokenizedPrompt) -> list[str]:
    """What a stored prompt has otherwise than one that was made now."""
    if _ids(stored.prompt_tokens) != _ids(made.tokens) or stored.prompt_text != made.prompt_text:
        return ["the prompt has other tokens or another text"]
    pairs = zip(stored.prompt_tokens, made.tokens, strict=True)
    return [problem for place, pair in enumerate(pairs) for problem in _field_problems(*pair, f"prompt token {place}")]


def _field_problems(then: Any, now: Any, where: str, names: Sequence[str] | None = None) -> Iterator[str]:  # noqa: ANN401
    """What one of two dataclasses of a kind has otherwise; fields that came later and are not said are passed over."""
    for each in fields(then):
        if names is not None and each.name not in names:
            continue
        was, is_now = getattr(then, each.name), getattr(now, each.name)
        if was != is_now and not _is_unsaid(each, was):
            yield f"{where}: its {each.name} is {_shown(was)}, and {_shown(is_now)} comes again"


def _is_unsaid(of: Any, value: object) -> bool:  # noqa: ANN401  (a Field)
    """Whether a file says nothing of a field: one that came after the first version, at its default."""
    return of.default is not MISSING and value == of.default


def _unsaid_of_prompt(stored: Explanation, made: TokenizedPrompt) -> Iterator[NotChecked]:
    pairs = zip(stored.prompt_tokens, made.tokens, strict=True)
    names = {
        each.name
        for then, now in pairs
        for each in fields(then)
        if _is_unsaid(each, getattr(then, each.name)) and getattr(then, each.name) != getattr(now, each.name)
    }
    for name in sorted(names):
        yield NotChecked(f"started.prompt_tokens.{name}", "the file does not say it")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _inputs(stored: Explanation) -> Iterator[dict[str, Any]]:
    """Yield the inputs that the prompt may have been made from, the likeliest first."""
    if all(token.message is None for token in stored.prompt_tokens):
        yield {"prompt": stored.prompt_text, **_segments(stored, {None: (0, len(stored.prompt_text))})}
        return
    places: dict[int | None, tuple[int, int]] = {}
    roles: dict[int, set[str | None]] = {}
    for token in stored.prompt_tokens:
        if token.message is not None:
            start, _ = places.get(token.message, (token.start, 0))
            places[token.message] = (start, token.end)
            roles.setdefault(token.message, set()).add(token.role)
    if any(len(of) > 1 for of in roles.values()) or len(roles) > len(stored.prompt_tokens):
        return
    count = max(roles) + 1
    if count > 2 * len(stored.prompt_tokens):
        return
    named = [_role_names(stored, index, roles, places) for index in range(count)]
    for chosen in _choices(named):
        for trim in (str, str.strip, str.rstrip, str.lstrip):  # a token may reach into the template's white space
            cut: dict[int | None, tuple[int, int]] = {}
            for index, (start, end) in places.items():
                text = stored.prompt_text[start:end]
                kept = trim(text)
                start += len(text) - len(text.lstrip()) if trim in (str.strip, str.lstrip) else 0
                cut[index] = (start, start + len(kept))
            messages = [
                (role, stored.prompt_text[slice(*cut[index])] if index in cut else "")
                for index, role in enumerate(chosen)
            ]
            yield {"messages": messages, **_segments(stored, cut)}


def _role_names(
    stored: Explanation, index: int, roles: dict[int, set[str | None]], places: dict[int | None, tuple[int, int]]
) -> list[str]:
    """The names that a message's role may have had, the likeliest first."""
    if index not in roles:  # an empty message has no tokens
        return ["system", "user", "assistant"] if index == 0 else ["assistant", "user", "tool"]
    (role,) = roles[index]
    if role not in ("other", "template", None):
        return [role]
    before = max((end for _, end in places.values() if end <= places[index][0]), default=0)
    near = re.findall(r"\w+", stored.prompt_text[max(before, places[index][0] - 200) : places[index][0]])
    return list(dict.fromkeys(reversed(near)))[:8] or ["other"]


def _choices(named: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Yield a role for each message: all of the first choice, of the second, and so on."""
    for place in range(max(map(len, named))):
        yield [names[min(place, len(names) - 1)] for names in named]


def _segments(stored: Explanation, places: dict[int | None, tuple[int, int]]) -> dict[str, Any]:
    """The segments as the tokens tell them, as the keyword."""
    found: dict[str, tuple[int | None, int, int]] = {}
    before = ""
    for token in stored.prompt_tokens:
        if token.segment and token.segment != before and token.segment in found:
            return {}  # in two places, which no caller can say
        if token.segment:
            text = stored.prompt_text[token.start : token.end]
            anchor = token.start + len(text) - len(text.lstrip()) if text.strip() else token.start
            _, start, _ = found.get(token.segment, (None, anchor, 0))
            found[token.segment] = (token.message, start, max(token.end, anchor + 1))
        before = token.segment
    said: dict[str, Any] = {}
    for name, (message, start, end) in found.items():
        if message not in places:
            return {}
        first, last = places[message]
        place = (max(0, start - first), min(end, last) - first)
        said[name] = place if message is None else (message, *place)
    return {"segments": said} if said else {}


def _text_problems(
    tokenize: Callable[[dict[str, Any]], TokenizedPrompt], stored: Explanation, by_ids: TokenizedPrompt
) -> list[str]:
    """Whether the prompt's text is that of its tokens, whoever wrote which: as a raw text, or decoded from the ids."""
    ours = stored.prompt_tokens
    names = [each.name for each in fields(ours[0]) if each.name not in _OF_ROLES] if ours else []
    shared = [name for name in names if name in ("id", "text", "start", "end", "special")]
    try:
        theirs = tokenize({"prompt": stored.prompt_text}).tokens if stored.prompt_text else ()
    except InvalidRequestError:
        theirs = ()
    first = next((at for at, token in enumerate(theirs) if not (token.special and not token.text)), 0)
    for skipped in sorted({0, first}):  # tokens that the tokenizer adds to a text, and a template writes itself
        part = theirs[skipped : skipped + len(ours)]
        if _ids(part) == _ids(ours):
            return _each_problem(ours, part, shared)
    decoded = _each_problem(ours, by_ids.tokens, ("text", "special"))
    if stored.prompt_text == by_ids.prompt_text:
        return [*decoded, *_each_problem(ours, by_ids.tokens, ("start", "end"))]
    changed = [
        problem
        for place, (then, now) in enumerate(zip(ours, by_ids.tokens, strict=False))
        if not (then.special or now.special) and then.text.strip() != now.text.strip()
        for problem in _field_problems(then, now, f"prompt token {place}", ("text",))
    ]
    placed = (
        f"prompt token {place}: its text is {_shown(token.text)}, and at its offsets stands "
        f"{_shown(stored.prompt_text[token.start : token.end])}"
        for place, token in enumerate(ours)
        if token.text != stored.prompt_text[token.start : token.end]
    )
    return ["the prompt's text is not that of its tokens", *changed, *placed]


def _each_problem(ours: Sequence[PromptToken], theirs: Sequence[PromptToken], names: Sequence[str]) -> list[str]:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return [problem for place, pair in pairs for problem in _field_problems(*pair, f"prompt token {place}", names)]


def _role_problems(
    stored: Explanation, made: TokenizedPrompt | None, refusal: str
) -> tuple[list[str], list[NotChecked]]:
    """What is amiss with roles, messages and segments, where text and offsets are right."""
    what = "started.prompt_tokens.role, .message and .segment"
    if all(token.special or token.role in ("template", None) for token in stored.prompt_tokens) and not any(
        token.message is not None or token.segment for token in stored.prompt_tokens
    ):
        return [], [NotChecked(what, "they tell nobody's words from the template's")]
    if unplaced := getattr(stored.started, "unplaced_messages", ()):
        why = f"the chat template rewrote message {', '.join(map(str, unplaced))}, which cannot be sent again"
        return [], [NotChecked(what, why)]
    if made is None:
        said = f"the server refuses them: {refusal}" if refusal else "they are not those of whole messages"
        return [f"the prompt cannot be made again of the messages that its tokens' roles tell: {said}"], []
    if made.prompt_text == stored.prompt_text and _ids(made.tokens) == _ids(stored.prompt_tokens):
        return _each_problem(stored.prompt_tokens, made.tokens, [each.name for each in fields(made.tokens[0])]), []
    if _written(made) == _written(stored):
        if _without_dates(made.prompt_text) == _without_dates(stored.prompt_text):
            return [], [NotChecked("the chat template's own text", "it writes the date, which is another one now")]
        if _headers(made.prompt_text, made.tokens) == _headers(stored.prompt_text, stored.prompt_tokens):
            return [], [
                NotChecked("the chat template's own text", "it depends on what it does not show of the messages")
            ]
    at = next(
        (
            place
            for place, pair in enumerate(zip(stored.prompt_text, made.prompt_text, strict=False))
            if len({*pair}) > 1
        ),
        min(len(stored.prompt_text), len(made.prompt_text)),
    )
    return [
        "the prompt is another one when it is made again of the messages that its tokens' roles tell, from code point "
        f"{at} on: {_shown(stored.prompt_text[at : at + 40])} then, {_shown(made.prompt_text[at : at + 40])} now"
    ], []


def _written(prompt: TokenizedPrompt | Explanation) -> list[tuple[object, ...]]:
    tokens = prompt.tokens if isinstance(prompt, TokenizedPrompt) else prompt.prompt_tokens
    return [(t.id, t.text, t.role, t.message, t.segment) for t in tokens if t.role != "template"]


_ROLE_NAMES = re.compile(r"system|user|assistant|tool|\bhuman\b|\bmodel\b", re.IGNORECASE)


def _headers(text: str, tokens: Sequence[PromptToken]) -> list[object]:
    """Which roles the template names before each message and behind the last, where it names some, and all are there.

    What cannot tell one role from another is like nothing else, so that it never counts as the same.
    """
    found: list[object] = []
    before, message = 0, -1
    for token in tokens:
        if token.message is None:
            continue
        if token.message != message:
            found.append(_names(text[before : token.start]) if token.message == message + 1 else object())
        before, message = token.end, token.message
    return [*found, _names(text[before:])]


def _names(text: str) -> object:
    return Counter(map(str.lower, _ROLE_NAMES.findall(text))) or object()


_DATES = re.compile(
    r"\d+|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    re.IGNORECASE,
)


def _without_dates(text: str) -> str:
    """A prompt's text without what the clock decides in it: Llama 3's template, and others, write the day."""
    return _DATES.sub("0", text)


# --- what comes again -------------------------------------------------------------------------------------------------


@dataclass
class _Findings:
    """What has been found so far."""

    problems: list[str] = field(default_factory=list)
    not_checked: list[NotChecked] = field(default_factory=list)

    def skip(self, why: str, *what: str) -> None:
        self.not_checked += [NotChecked(each, why) for each in what]


def compared(
    stored: Explanation,
    again: Explanation,
    tolerance: float = _TOLERANCE,
    *,
    prompt: PromptAgain | None = None,
    redrawn: Explanation | None = None,
) -> Verdict:
    """Compare a stored explanation with the same one, computed again by `replay_keywords`.

    Without `prompt`, which `prompt_again` makes, roles and segments are not checked; without `redrawn`, the same
    completion generated again, only what follows from the tokens is of sampling and of why it ended.
    """
    found = _Findings()
    _compare_prompt(stored, again, prompt, found)
    _compare_tokens(stored, again, tolerance, found)
    worst, worst_token = _compare_rows(stored, again, tolerance, found)
    _compare_sampling(stored, again, redrawn, tolerance, found)
    _compare_finish(stored, redrawn, found)
    logprobs = [
        _distance(ours.logprob, theirs.logprob) for ours, theirs in zip(stored.tokens, again.tokens, strict=False)
    ]
    return Verdict(
        rows=len(stored.attributions),
        largest_difference=worst,
        worst_token=worst_token,
        largest_logprob_difference=max(logprobs, default=0.0),
        mismatches=_mismatches(stored.provenance, again.provenance, found),
        problems=tuple(found.problems),
        tolerance=tolerance,
        not_checked=tuple(found.not_checked),
    )


def _distance(one: float, other: float) -> float:
    """How far two numbers are apart; 0 for two that are the same, finite or not."""
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    return math.inf if math.isnan(one) or math.isnan(other) else abs(one - other)


def _is_close(one: float, other: float, tolerance: float) -> bool:
    return _distance(one, other) <= tolerance * max(1.0, abs(other) if math.isfinite(other) else 1.0)


def _compare_prompt(stored: Explanation, again: Explanation, prompt: PromptAgain | None, found: _Findings) -> None:
    if prompt is None:
        found.problems += _changed_texts(stored, again)
        found.skip("ask the server to make the prompt again", "started.prompt_tokens.role, .message and .segment")
    else:
        found.problems += prompt.problems
        found.not_checked += prompt.not_checked
    same_form = prompt is not None and prompt.is_exact
    by_token = stored.provenance.attribution is None or stored.provenance.attribution.resolution in (None, "token")
    if by_token == bool(stored.started.sources):
        found.problems.append(
            f"its resolution is {_settings(stored).resolution}, and it has {len(stored.started.sources)} sources"
        )
    if same_form:
        if len(stored.started.sources) != len(again.started.sources):
            found.problems.append(
                f"it has {len(stored.started.sources)} sources, and {len(again.started.sources)} come again"
            )
        for place, (then, now) in enumerate(zip(stored.started.sources, again.started.sources, strict=False)):
            found.problems += _field_problems(then, now, f"source {place}")
    elif stored.started.sources:
        found.skip("scores are summed up as it says", "started.sources", "provenance.attribution.resolution")
    for each in fields(Started):  # what later versions say
        was, is_now = getattr(stored.started, each.name), getattr(again.started, each.name)
        if each.name in ("prompt_text", "prompt_tokens", "sources", "provenance") or was == is_now:
            continue
        if same_form and not _is_unsaid(each, was):
            found.problems.append(f"its {each.name} is {_shown(was)}, and {_shown(is_now)} comes again")
        else:
            found.skip("the file does not say it, or the prompt was sent in another form", f"started.{each.name}")


def _changed_texts(stored: Explanation, again: Explanation) -> Iterator[str]:
    """Texts of the prompt that are not those of the ids beside them, as far as ids alone tell."""
    for index, (mine, its) in enumerate(zip(stored.prompt_tokens, again.prompt_tokens, strict=False)):
        if not (mine.special or its.special) and mine.text.strip() != its.text.strip():
            yield f"token {index} of the prompt is {mine.text!r}, not {its.text!r}"
    ends = [0, *(token.end for token in stored.prompt_tokens)]
    pairs = zip(ends, stored.prompt_tokens, strict=False)
    placed = "".join(stored.prompt_text[max(token.start, before) : token.end] for before, token in pairs)
    if placed != stored.prompt_text:
        yield "the prompt's text is not that of its tokens"
    for index, token in enumerate(stored.prompt_tokens):
        if token.text != stored.prompt_text[token.start : token.end]:
            yield f"token {index} of the prompt is {token.text!r}, and at its offsets stands another text"


def _compare_tokens(stored: Explanation, again: Explanation, tolerance: float, found: _Findings) -> None:
    if len(stored.tokens) != len(again.tokens):
        found.problems.append(f"it has {len(stored.tokens)} tokens, and {len(again.tokens)} come again")
    cut = _cut(stored, again, found)
    same_columns = bool(stored.started.sources) == bool(again.started.sources)
    handled = {"text", "start", "end", "logprob", "alternatives", *(() if same_columns else ("source_index",))}
    names = [each.name for each in fields(again.tokens[0]) if each.name not in handled] if again.tokens else []
    asked = max((len(token.alternatives) for token in stored.tokens), default=0)
    for ours, theirs in zip(stored.tokens, again.tokens, strict=False):
        where = f"token {ours.index}"
        expected = replace(
            theirs,
            text=theirs.text[: max(0, cut - theirs.start)],
            start=min(theirs.start, cut),
            end=min(theirs.end, cut),
        )
        is_cut = expected.text != theirs.text  # words and columns of what is left may be others
        of_token = ("index", "id", "special") if is_cut else names
        found.problems += _field_problems(ours, expected, where, (*of_token, "text", "start", "end"))
        if not _is_close(ours.logprob, theirs.logprob, tolerance):
            found.problems.append(f"{where}: its log-probability is {ours.logprob:.6g}, and {theirs.logprob:.6g} again")
        if len(ours.alternatives) != asked:
            found.problems.append(f"{where} has {len(ours.alternatives)} alternatives, and others have {asked}")
        found.problems += _alternative_problems(ours, theirs, tolerance)
    if not same_columns and any(token.source_index is not None for token in stored.tokens):
        found.skip("scores come again one a token", "tokens.source_index")


def _cut(stored: Explanation, again: Explanation, found: _Findings) -> int:
    """Where a stop text cuts the completion's text off; far behind it where none does."""
    text, finished = again.text, stored.finished
    if finished is None or finished.reason != "stop_text":
        return len(text)
    at = text.find(finished.stop) if finished.stop else -1
    if at < 0:
        if not any(token.special for token in again.tokens):
            found.problems.append(f"finished.stop: the completion does not hold {_shown(finished.stop)}")
        else:
            found.skip("special tokens have no text to look for it in", "finished.stop")
        return len(stored.text) if text.startswith(stored.text) else len(text)
    return at


def _alternative_problems(ours: Token, theirs: Token, tolerance: float) -> Iterator[str]:
    where = f"token {ours.index}"
    if not ours.alternatives:
        return
    known = {alternative.id: alternative for alternative in theirs.alternatives}
    if len({alternative.id for alternative in ours.alternatives}) < len(ours.alternatives):
        yield f"{where}: one of its alternatives is there twice"
    for place, then in enumerate(ours.alternatives):
        now = known.get(then.id)
        at_place = theirs.alternatives[place] if place < len(theirs.alternatives) else None
        # Tokens that are as likely as each other may change places; one is at its place within the tolerance.
        if now is None or at_place is None or not _is_close(then.logprob, at_place.logprob, tolerance):
            yield f"{where}: its alternative {place} is {_shown(then)}, and {_shown(at_place)} comes again"
            continue
        if not _is_close(then.logprob, now.logprob, tolerance):
            yield f"{where}: alternative {place} has log-probability {then.logprob:.6g}, and {now.logprob:.6g} again"
        yield from _field_problems(then, replace(now, logprob=then.logprob), f"{where}: alternative {place}")


def _compare_rows(
    stored: Explanation, again: Explanation, tolerance: float, found: _Findings
) -> tuple[float, int | None]:
    """Compare all scores; return the largest difference and its token."""
    worst, worst_token = 0.0, None
    explained = {row.token_index for row in stored.attributions}
    found.problems += [f"token {token.index} has no scores" for token in stored.tokens if token.index not in explained]
    for row in stored.attributions:
        other = again.row(row.token_index)
        if other is None:
            found.problems.append(f"token {row.token_index} has scores, and none come again")
            continue
        expected = _coarsened(stored, again, other.scores, row.token_index)
        found.problems += _row_problems(stored, row, other, expected, tolerance)
        difference = _difference(row.by_column(), expected)
        if worst_token is None or not difference <= worst:  # also where it is NaN
            worst, worst_token = difference, row.token_index
        if math.isnan(worst):
            break
    limit = _settings(stored).top_k_sources
    if limit is not None and all(limit >= len(row.scores) and not row.source_indexes for row in stored.attributions):
        found.skip("no token has so many sources", "provenance.attribution.top_k_sources")
    return worst, worst_token


def _row_problems(
    stored: Explanation, row: Attribution, other: Attribution, expected: Sequence[float], tolerance: float
) -> Iterator[str]:
    """What is amiss with a row beside its numbers."""
    where = f"token {row.token_index}"
    handled = ("token_index", "scores", "source_indexes", "error")
    yield from _field_problems(row, other, where, [each.name for each in fields(row) if each.name not in handled])
    if row.error != other.error and not (
        row.error is not None and other.error is not None and _is_close(row.error, other.error, tolerance)
    ):
        yield f"{where}: its error is {row.error}, and {other.error} comes again"
    limit = _settings(stored).top_k_sources
    count = len(expected) if limit is None else min(limit, len(expected))
    if len(row.scores) != count:
        yield f"{where} has {len(row.scores)} scores, not {count}"
    elif limit is not None:
        chosen = set(row.source_indexes)
        left_out = [abs(score) for column, score in enumerate(expected) if column not in chosen]
        kept = min((abs(expected[column]) for column in row.source_indexes if column < len(expected)), default=0.0)
        margin = tolerance * max(map(abs, expected), default=0.0)
        if row.source_indexes and max(left_out, default=0.0) > kept + margin:
            yield f"{where} leaves out a larger score than it has"
        sizes = [abs(score) for score in row.scores]
        if row.source_indexes and any(later > before + margin for before, later in itertools.pairwise(sizes)):
            yield f"{where}: its scores are not in order, the largest first"


def _difference(found: dict[int, float], expected: Sequence[float]) -> float:
    peak = max((abs(score) for score in expected), default=0.0)
    differences = [
        abs(score - expected[column]) if column < len(expected) else math.inf for column, score in found.items()
    ]
    if any(map(math.isnan, differences)):
        return math.nan
    largest = max(differences, default=0.0)
    return largest / peak if peak else (0.0 if largest == 0 else math.inf)


def _coarsened(stored: Explanation, again: Explanation, scores: Sequence[float], index: int) -> Sequence[float]:
    """Scores of single tokens, added up to the columns that the stored explanation has for this token."""
    sources: Sequence[Source] = stored.sources
    if again.started.sources or not stored.started.sources:
        return scores
    num_prompt_tokens = len(stored.prompt_tokens)
    sums = []
    for source in sources:
        if not source.token_indexes and min(source.completion_indexes, default=index) >= index:
            break  # what lies behind the token
        its = [scores[i] for i in source.token_indexes]
        its += [
            scores[num_prompt_tokens + i]
            for i in source.completion_indexes
            if i < index and num_prompt_tokens + i < len(scores)
        ]
        sums.append(total_of(its))
    return sums


# --- sampling and the end ---------------------------------------------------------------------------------------------

_BY_EFFECT = "only by what comes of it: the same tokens come again"


def _drawn_again(client: Client, stored: Explanation, prompt: PromptAgain, timeout: float | None) -> Explanation | None:
    """Generate the completion again with its own settings; None where it was given."""
    sampling = stored.provenance.sampling
    if sampling is None or (stored.finished is not None and stored.finished.reason == "end_of_completion"):
        return None
    settings = {each.name: getattr(sampling, each.name) for each in fields(Sampling)}
    settings["max_new_tokens"] = sampling.max_new_tokens or None
    if stored.finished is None:  # it broke off
        settings["max_new_tokens"] = len(stored.tokens)
    return client.explain(**cast("Any", {**prompt.keywords, **settings}), attribution=None, timeout=timeout)


def _compare_sampling(
    stored: Explanation, again: Explanation, redrawn: Explanation | None, tolerance: float, found: _Findings
) -> None:
    """Whether the tokens are those that the sampling settings draw."""
    sampling, finished = stored.provenance.sampling, stored.finished
    names = [f"provenance.sampling.{each.name}" for each in fields(Sampling)]
    given = finished is not None and finished.reason == "end_of_completion"
    if sampling is None:
        return
    if given:  # nothing was drawn: what was told are defaults
        for each in fields(Sampling):
            was, is_now = getattr(sampling, each.name), getattr(again.provenance.sampling, each.name, None)
            if was != is_now:
                found.problems.append(f"its completion was given, and sampling.{each.name} is {_shown(was)}")
        return
    if sampling.max_new_tokens and len(stored.tokens) > sampling.max_new_tokens:
        found.problems.append(f"it has {len(stored.tokens)} tokens, more than max_new_tokens={sampling.max_new_tokens}")
    is_greedy = sampling.temperature == 0
    for ours, theirs in zip(stored.tokens, again.tokens, strict=False):
        best = theirs.alternatives[0] if theirs.alternatives else None
        if is_greedy and best is not None and theirs.logprob < best.logprob - tolerance * max(1.0, abs(best.logprob)):
            found.problems.append(
                f"token {ours.index} is {_shown(ours.text)}, and greedy decoding takes {_shown(best.text)}"
            )
    if redrawn is not None:
        found.problems += _drawn_problems(stored, redrawn)
        found.skip(_BY_EFFECT, *names)
    elif is_greedy:
        found.skip(_BY_EFFECT, names[1])
        found.skip("greedy decoding does not show them; --regenerate tries them", *names[:1], *names[2:])
    else:
        found.skip("tokens were drawn, and not drawn again; --regenerate does it", *names)


def _drawn_problems(stored: Explanation, redrawn: Explanation) -> Iterator[str]:
    for ours, theirs in itertools.zip_longest(stored.tokens, redrawn.tokens):
        if ours is None or theirs is None:
            yield f"it has {len(stored.tokens)} tokens, and {len(redrawn.tokens)} are generated with its settings"
            return
        if ours.id != theirs.id:
            yield (
                f"token {ours.index} is {_shown(ours.text)}, and {_shown(theirs.text)} is generated with its settings; "
                "so may be what follows"
            )
            return
        yield from _field_problems(ours, theirs, f"token {ours.index}", ("text", "start", "end", "special"))


def _compare_finish(stored: Explanation, redrawn: Explanation | None, found: _Findings) -> None:
    """Whether why it ended, and what was counted, can be."""
    finished, sampling = stored.finished, stored.provenance.sampling
    if finished is None:
        found.skip("the stream broke off, and the file has none", "finished")
        return
    found.problems += _end_problems(stored, finished, sampling)
    if redrawn is not None and redrawn.finished is not None:
        found.problems += _field_problems(finished, redrawn.finished, "finished", ("reason", "stop"))
    usage = finished.usage
    counts = {
        "prompt_tokens": len(stored.prompt_tokens),
        "completion_tokens": len(stored.tokens),
        "attributed_tokens": len(stored.attributions),
    }
    for name, count in counts.items():
        if getattr(usage, name) != count:
            found.problems.append(f"finished.usage.{name} is {getattr(usage, name)}, not {count}")
    found.skip(
        "measured then",
        *(f"finished.usage.{each.name}" for each in fields(usage) if each.name not in counts),
        *(f"finished.timings.{each.name}" for each in fields(finished.timings)),
    )


def _end_problems(stored: Explanation, finished: Finished, sampling: Sampling | None) -> Iterator[str]:
    count, last = len(stored.tokens), stored.tokens[-1]
    reason = finished.reason
    if reason is None:
        yield "finished.reason is none that is known here"
    if finished.stop and reason != "stop_text":
        yield f"finished.stop is {_shown(finished.stop)}, and finished.reason is {reason}"
    if reason == "end_of_completion" or sampling is None:
        if reason != "end_of_completion":
            yield f"finished.reason is {reason}, and nothing was generated"
        return
    if reason == "stop_text" and finished.stop not in sampling.stop:
        yield f"finished.stop is {_shown(finished.stop)}, which is none of sampling.stop"
    if reason == "end_of_text" and not last.special:
        yield f"finished.reason is end_of_text, and the last token is {_shown(last.text)}"
    if reason == "max_new_tokens" and sampling.max_new_tokens and count != sampling.max_new_tokens:
        yield f"finished.reason is max_new_tokens={sampling.max_new_tokens}, and there are {count} tokens"
    if reason != "stop_text":
        yield from (
            f"the completion holds the stop text {_shown(stop)}, and finished.reason is {reason}"
            for stop in sampling.stop
            if stop and stop in stored.text
        )


# --- provenance -------------------------------------------------------------------------------------------------------


def _mismatches(then: Provenance, now: Provenance, found: _Findings) -> tuple[Mismatch, ...]:
    pairs = [
        (f"model.{each.name}", getattr(then.model, each.name), getattr(now.model, each.name))
        for each in fields(ModelInfo)
        if not _passed_over(each, then.model, now.model, "model", found)
    ]
    packages = sorted(then.versions.keys() | now.versions.keys())
    pairs += [(f"versions.{name}", then.versions.get(name, ""), now.versions.get(name, "")) for name in packages]
    if then.attribution is not None and now.attribution is not None:
        pairs += [
            (f"attribution.{each.name}", getattr(then.attribution, each.name), getattr(now.attribution, each.name))
            for each in fields(AttributionSettings)
            if each.name not in ("sources", "resolution", "top_k_sources", "preset", *_OF_DELIVERY)
            and not _passed_over(each, then.attribution, now.attribution, "attribution", found)
        ]
        found.skip(
            "it changes when scores come, and none of them", *(f"provenance.attribution.{n}" for n in _OF_DELIVERY)
        )
        found.skip("the switches beside it are what counts", "provenance.attribution.preset")
    if then.evaluation is not None:
        found.skip("it is no part of an explanation", "provenance.evaluation")
    return tuple(Mismatch(what, str(was), str(is_now)) for what, was, is_now in pairs if was != is_now)


def _passed_over(each: Any, then: object, now: object, where: str, found: _Findings) -> bool:  # noqa: ANN401
    """Whether a file says nothing of a field that the server speaks of."""
    was = getattr(then, each.name)
    if not _is_unsaid(each, was) or was == getattr(now, each.name):
        return False
    found.skip("the file does not say it", f"provenance.{where}.{each.name}")
    return True


def grouped(not_checked: Iterable[NotChecked]) -> Iterator[str]:
    """Yield what was not checked as people read it: a line a reason."""
    by_reason: dict[str, list[str]] = {}
    for one in not_checked:
        by_reason.setdefault(one.why, []).append(one.what)
    for why, what in by_reason.items():
        yield f"{', '.join(dict.fromkeys(_shortened(what)))} ({why})"


def _shortened(paths: Sequence[str]) -> Iterator[str]:
    """Several fields of one place by that place's name once: finished.timings.*."""
    parents = Counter(path.rpartition(".")[0] for path in paths)
    for path in paths:
        parent = path.rpartition(".")[0]
        names = [each.rpartition(".")[2] for each in paths if each.rpartition(".")[0] == parent]
        yield f"{parent}: {', '.join(names)}" if parent and parents[parent] > 1 else path
