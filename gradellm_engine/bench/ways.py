"""Ways of decoding and explaining, each as a function from a prompt to the timeline of its completion."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradellm_engine.bench.recompute import recomputed_step
from gradellm_engine.bench.subject import Subject
from gradellm_engine.bench.timeline import Stopwatch, Timeline
from gradellm_engine.events import Attribution, Finished, Step
from gradellm_engine.prompts import PromptInput
from gradellm_engine.settings import AttributionSettings, Delivery, Sampling
from gradellm_engine.stream import Phase, Stream

Ids = Sequence[int]
Decode = Callable[[Subject, Ids, int], Timeline]


@dataclass(frozen=True)
class Way:
    """One of them.

    Attributes:
        name: what tables call it.
        description: what it does, in a sentence.
        decode: subject, prompt, number of tokens -> timeline.
        reads: how often it must read a token's weights: those of the layers, and those of the head, of which the
            backward pass needs single rows; None where that grows with the prompt.
        chunk_size: tokens that are explained together; only whole chunks are measured.
        is_slow: seconds a token, so that it is given few of them.
        families_without: that it cannot run.
        needs: the package that must be installed, None for none.
    """

    name: str
    description: str
    decode: Decode
    reads: tuple[float, float] | None
    chunk_size: int = 1
    is_slow: bool = False
    families_without: frozenset[str] = frozenset()
    needs: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether what it needs is there."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def chunked(size: int) -> AttributionSettings:
    """Delivery chunked, with chunks of one size."""
    return AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=size)


def _by_engine(attribution: AttributionSettings | None) -> Decode:
    def decode(subject: Subject, ids: Ids, count: int) -> Timeline:
        engine = subject.engine(max_running=1, num_tokens=len(ids) + count)
        stream = engine.stream(PromptInput(prompt_ids=tuple(ids)), sampling(count), attribution)
        watch, timeline = Stopwatch(), Timeline()
        engine.scheduler.submit(stream)
        while not stream.is_closed:
            for _ in engine.scheduler.tick():
                note(timeline, stream, watch())
        note(timeline, stream, watch())
        return timeline

    return decode


def sampling(count: int) -> Sampling:
    """Greedy, as many tokens."""
    return Sampling(max_new_tokens=count, temperature=0.0)


def note(timeline: Timeline, stream: Stream, now: float) -> None:
    """Take what a stream has to tell.

    Raises:
        Exception: what the stream ended with.
    """
    if stream.error is not None:
        raise stream.error
    if timeline.read is None and stream.phase in (Phase.DECODE, Phase.EXPLAIN):
        timeline.read = now
    for event in stream.take_events():
        if isinstance(event, Step):
            timeline.ids.append(event.id)
            timeline.tokens.append(now)
        elif isinstance(event, Attribution):
            timeline.vectors.append(now)
        elif isinstance(event, Finished):
            timeline.finished = event


class _Streamer:
    """Notes when Transformers' generate has each token."""

    def __init__(self, watch: Stopwatch, timeline: Timeline) -> None:
        self._watch, self._timeline, self._is_prompt = watch, timeline, True

    def put(self, value: Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        self._timeline.ids += value.flatten().tolist()
        self._timeline.tokens.append(self._watch())

    def end(self) -> None:
        pass


def _generate(subject: Subject, ids: Ids, count: int) -> Timeline:
    timeline = Timeline()
    _generated(subject, ids, count, streamer=_Streamer(Stopwatch(), timeline))
    return timeline


def _generated(subject: Subject, ids: Ids, count: int, **kwargs: Any) -> list[int]:  # noqa: ANN401 (passed on)
    given = torch.tensor([list(ids)], device=subject.device)
    output = subject.reference.generate(
        given,
        attention_mask=torch.ones_like(given),
        min_new_tokens=count,
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        **kwargs,
    )
    new_ids: list[int] = output[0, len(ids) :].tolist()
    return new_ids


def _recompute(subject: Subject, ids: Ids, count: int) -> Timeline:
    watch, timeline, known = Stopwatch(), Timeline(read=0.0), list(ids)
    for _ in range(count):
        chosen, _ = recomputed_step(subject.reference, known)
        known.append(chosen)
        timeline.ids.append(chosen)
        timeline.tokens.append(watch())
        timeline.vectors.append(watch())
    return timeline


def _inseq(subject: Subject, ids: Ids, count: int) -> Timeline:
    """Inseq explains a completion that exists; generating it is not counted."""
    import inseq

    prompt, completion, new_ids = _texts(subject, ids, count)
    model = inseq.load_model(
        subject.reference, "saliency", tokenizer=subject.loaded.tokenizer, device=str(subject.device)
    )
    watch = Stopwatch()
    with _gradients(subject.reference):
        model.attribute(prompt, prompt + completion, show_progress=False, attributed_fn="logit")
    return _after(watch(), new_ids)


def _captum(subject: Subject, ids: Ids, count: int) -> Timeline:
    """Captum explains a completion that exists; generating it is not counted."""
    from captum.attr import LayerGradientXActivation, LLMGradientAttribution, TextTokenInput

    prompt, completion, new_ids = _texts(subject, ids, count)
    model, tokenizer = subject.reference, subject.loaded.tokenizer
    watch = Stopwatch()
    with _gradients(model):
        method = LLMGradientAttribution(LayerGradientXActivation(model, model.get_input_embeddings()), tokenizer)
        method.attribute(TextTokenInput(prompt, tokenizer), target=completion)
    return _after(watch(), new_ids)


def _texts(subject: Subject, ids: Ids, count: int) -> tuple[str, str, list[int]]:
    """Prompt and completion as text, for libraries that tokenise themselves; and the completion's tokens."""
    new_ids = _generated(subject, ids, count)
    tokenizer: Any = subject.loaded.tokenizer
    prompt = tokenizer.decode(list(ids))
    return prompt, tokenizer.decode([*ids, *new_ids])[len(prompt) :], new_ids


class _gradients:  # noqa: N801 (a context manager, used like a function)
    """These libraries expect parameters with gradients, as a model has them when it is loaded."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.requires_grad_(True)

    def __exit__(self, *error: object) -> None:
        self._model.requires_grad_(False)
        self._model.zero_grad(set_to_none=True)


def _after(seconds: float, ids: list[int]) -> Timeline:
    """All at once, at the end."""
    return Timeline(ids, 0.0, [seconds] * len(ids))


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way("plain", "this engine without attribution", _by_engine(None), (1, 1)),
        Way("per_token", "this engine, each token with its vector", _by_engine(AttributionSettings()), (2, 1)),
        *(
            Way(
                f"chunked({size})",
                f"this engine, vectors {size} tokens at a time",
                _by_engine(chunked(size)),
                (1 + 2 / size, 1),
                size,
            )
            for size in (16, 32)
        ),
        Way("generate", "Transformers' generate, no attribution", _generate, (1, 1)),
        Way(
            "recompute",
            "Grad-ELLM by a pass over the whole prefix for each token",
            _recompute,
            None,
            is_slow=True,
            families_without=frozenset({"gemma2", "gpt_oss"}),  # torch's own attention knows no soft cap and no sinks
        ),
        Way("inseq", "Inseq's saliency of a given completion", _inseq, None, is_slow=True, needs="inseq"),
        Way(
            "captum",
            "Captum's gradient x activation of a given completion",
            _captum,
            None,
            is_slow=True,
            needs="captum",
        ),
    )
}
