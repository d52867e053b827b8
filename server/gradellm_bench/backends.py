"""Ways of decoding and explaining, each as a function from a prompt to the timeline of its completion."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradellm_bench.full_prefix_baseline import recompute_step
from gradellm_bench.models import BenchModel
from gradellm_bench.served.streams import STREAM_MODES, new_requests, run_in_turns, run_streams
from gradellm_bench.timeline import Stopwatch, Timeline

Ids = Sequence[int]
Run = Callable[[BenchModel, Sequence[Ids], int], list[Timeline]]


@dataclass(frozen=True)
class Backend:
    """One of them.

    Attributes:
        name: what tables call it.
        description: what it does, in a sentence.
        run: subject, prompts of one length, number of tokens of each -> what came of each.
        reads: how often it must read a token's weights: those of the layers, and those of the head, of which the
            backward pass needs single rows; None where that grows with the prompt.
        chunk_size: tokens that are explained together; only whole chunks are measured.
        is_slow: seconds a token, so that it is given few of them, and one prompt at a time.
        kind: of this engine's ways, which kind of stream it is; None for others.
        families_without: that it cannot run.
        needs: the package that must be installed, None for none.
    """

    name: str
    description: str
    run: Run
    reads: tuple[float, float] | None
    chunk_size: int = 1
    is_slow: bool = False
    kind: str | None = None
    families_without: frozenset[str] = frozenset()
    needs: str | None = None

    def decode(self, bench_model: BenchModel, ids: Ids, count: int) -> Timeline:
        """One prompt."""
        return self.run(bench_model, [ids], count)[0]

    def floor(self, bench_model: BenchModel, context: int, streams: int, bandwidth: float) -> float | None:
        """Seconds of a step of so many streams, if weights, keys and values were read as often as must be.

        None where the work grows with the prompt.
        """
        if self.reads is None:
            return None
        body, head = self.reads
        keys_and_values = (
            streams * context * sum(shape.bytes_per_token for shape in bench_model.loaded.runner.layer_shapes)
        )
        return (body * (bench_model.body_bytes + keys_and_values) + head * bench_model.head_bytes) / bandwidth

    @property
    def is_installed(self) -> bool:
        """Whether what it needs is there."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


TOKENS_A_TURN = 8


def decode_in_turns(bench_model: BenchModel, ways: Sequence[Backend], ids: Ids, count: int) -> dict[str, Timeline]:
    """One prompt by several of this engine's ways, some tokens at a time; what came of each, by name."""
    engine = bench_model.engine(max_running=len(ways), num_tokens=len(ways) * (len(ids) + count))
    bench_model.loaded.runner.pool.reuses_prefixes = False
    streams = [new_requests(engine, [ids], count, STREAM_MODES[way.kind])[0] for way in ways if way.kind is not None]
    try:
        timelines = run_in_turns(engine, streams, tokens_a_turn=TOKENS_A_TURN)
    finally:
        bench_model.loaded.runner.pool.reuses_prefixes = True
    return {way.name: timeline for way, timeline in zip(ways, timelines, strict=True)}


def _by_engine(kind: str) -> Run:
    def run(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
        num_tokens = sum(len(prompt) + count for prompt in prompts)
        engine = bench_model.engine(max_running=len(prompts), num_tokens=num_tokens)
        streams = new_requests(engine, prompts, count, STREAM_MODES[kind])
        return run_streams(engine, streams, decode_together=True)

    return run


class _Streamer:
    """Notes when Transformers' generate has a token of each prompt."""

    def __init__(self, watch: Stopwatch, timelines: Sequence[Timeline]) -> None:
        self._watch, self._timelines, self._is_prompt = watch, timelines, True

    def put(self, value: Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        now = self._watch()
        for timeline, token_id in zip(self._timelines, value.flatten().tolist(), strict=True):
            timeline.ids.append(token_id)
            timeline.tokens.append(now)

    def end(self) -> None:
        pass


def _generate(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
    timelines = [Timeline() for _ in prompts]
    _generated(bench_model, prompts, count, streamer=_Streamer(Stopwatch(), timelines))
    return timelines


def _generated(bench_model: BenchModel, prompts: Sequence[Ids], count: int, **kwargs: Any) -> list[int]:  # noqa: ANN401 (passed on)
    """Tokens of the first; prompts are of one length."""
    given = torch.tensor([list(ids) for ids in prompts], device=bench_model.device)
    output = bench_model.reference.generate(
        given,
        attention_mask=torch.ones_like(given),
        min_new_tokens=count,
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        **kwargs,
    )
    new_ids: list[int] = output[0, given.shape[1] :].tolist()
    return new_ids


def _recompute(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
    watch, timeline, known = Stopwatch(), Timeline(read=0.0), list(prompts[0])
    for _ in range(count):
        chosen, _ = recompute_step(bench_model.reference, known)
        known.append(chosen)
        timeline.ids.append(chosen)
        timeline.tokens.append(watch())
        timeline.vectors.append(watch())
    return [timeline]


def _inseq(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
    """Inseq explains a completion that exists; generating it is not counted."""
    import inseq

    prompt, completion, new_ids = _texts(bench_model, prompts[0], count)
    model = inseq.load_model(
        bench_model.reference, "saliency", tokenizer=bench_model.loaded.tokenizer, device=str(bench_model.device)
    )
    watch = Stopwatch()
    with _gradients(bench_model.reference):
        model.attribute(prompt, prompt + completion, show_progress=False, attributed_fn="logit")
    return [_after(watch(), new_ids)]


def _captum(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
    """Captum explains a completion that exists; generating it is not counted."""
    from captum.attr import LayerGradientXActivation, LLMGradientAttribution, TextTokenInput

    prompt, completion, new_ids = _texts(bench_model, prompts[0], count)
    model, tokenizer = bench_model.reference, bench_model.loaded.tokenizer
    watch = Stopwatch()
    with _gradients(model):
        method = LLMGradientAttribution(LayerGradientXActivation(model, model.get_input_embeddings()), tokenizer)
        method.attribute(TextTokenInput(prompt, tokenizer), target=completion)
    return [_after(watch(), new_ids)]


def _texts(bench_model: BenchModel, ids: Ids, count: int) -> tuple[str, str, list[int]]:
    """Prompt and completion as text, for libraries that tokenise themselves; and the completion's tokens."""
    new_ids = _generated(bench_model, [ids], count)
    tokenizer: Any = bench_model.loaded.tokenizer
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


BACKENDS: dict[str, Backend] = {
    way.name: way
    for way in (
        Backend("plain", "this engine without attribution", _by_engine("plain"), (1, 1), kind="plain"),
        Backend(
            "per_token", "this engine, each token with its vector", _by_engine("per_token"), (2, 1), kind="per_token"
        ),
        *(
            Backend(
                f"chunked({size})",
                f"this engine, vectors {size} tokens at a time",
                _by_engine(f"chunked({size})"),
                (1 + 1 / size, 1),
                size,
                kind=f"chunked({size})",
            )
            for size in (16, 32)
        ),
        Backend("generate", "Transformers' generate, no attribution", _generate, (1, 1)),
        Backend(
            "recompute",
            "Grad-ELLM by a pass over the whole prefix for each token",
            _recompute,
            None,
            is_slow=True,
            families_without=frozenset({"gemma2", "gpt_oss"}),  # torch's own attention knows no soft cap and no sinks
        ),
        Backend("inseq", "Inseq's saliency of a given completion", _inseq, None, is_slow=True, needs="inseq"),
        Backend(
            "captum",
            "Captum's gradient x activation of a given completion",
            _captum,
            None,
            is_slow=True,
            needs="captum",
        ),
    )
}
