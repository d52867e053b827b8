"""Backends that are compared: this engine's modes, Transformers' generate, recomputation, Inseq, Captum."""

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
    """A decoder that is measured: a mode of this engine, or another library.

    Attributes:
        name: its name in tables and in --backends.
        description: one sentence.
        run: (model, prompts of one length, tokens to decode of each) -> a timeline of each.
        reads: how often a token must read the layers' weights, and the head's (whose backward pass reads single rows);
            None if that grows with the prompt.
        chunk_size: tokens explained together; only whole chunks are measured.
        is_slow: whether a token takes seconds, so that few are decoded, one prompt at a time.
        mode: the stream mode (`STREAM_MODES`) of this engine's backends; None for others.
        families_without: model families that it cannot run.
        needs: the package that it needs; None for none.
    """

    name: str
    description: str
    run: Run
    reads: tuple[float, float] | None
    chunk_size: int = 1
    is_slow: bool = False
    mode: str | None = None
    families_without: frozenset[str] = frozenset()
    needs: str | None = None

    def decode(self, bench_model: BenchModel, ids: Ids, count: int) -> Timeline:
        """The timeline of one prompt."""
        return self.run(bench_model, [ids], count)[0]

    def floor(self, bench_model: BenchModel, context: int, streams: int, bandwidth: float) -> float | None:
        """Lower bound of a step's seconds: weights, keys and values read as often as necessary at this bandwidth.

        None if the work grows with the prompt.
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
        """Whether the package it needs is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


TOKENS_PER_TURN = 8


def decode_in_turns(bench_model: BenchModel, backends: Sequence[Backend], ids: Ids, count: int) -> dict[str, Timeline]:
    """Decode one prompt by several of this engine's backends, alternating every few tokens; timelines by name."""
    engine = bench_model.engine(max_running=len(backends), num_tokens=len(backends) * (len(ids) + count))
    bench_model.loaded.runner.pool.reuses_prefixes = False
    requests = [
        new_requests(engine, [ids], count, STREAM_MODES[backend.mode])[0]
        for backend in backends
        if backend.mode is not None
    ]
    try:
        timelines = run_in_turns(engine, requests, tokens_per_turn=TOKENS_PER_TURN)
    finally:
        bench_model.loaded.runner.pool.reuses_prefixes = True
    return {backend.name: timeline for backend, timeline in zip(backends, timelines, strict=True)}


def _by_engine(mode: str) -> Run:
    def run(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
        num_tokens = sum(len(prompt) + count for prompt in prompts)
        engine = bench_model.engine(max_running=len(prompts), num_tokens=num_tokens)
        requests = new_requests(engine, prompts, count, STREAM_MODES[mode])
        return run_streams(engine, requests, decode_together=True)

    return run


class _Streamer:
    """A streamer for Transformers' generate that records the time of each token."""

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
    """The first completion's token ids; prompts have one length."""
    input_ids = torch.tensor([list(ids) for ids in prompts], device=bench_model.device)
    output = bench_model.reference.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        min_new_tokens=count,
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        **kwargs,
    )
    new_ids: list[int] = output[0, input_ids.shape[1] :].tolist()
    return new_ids


def _recompute(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
    watch, timeline, prefix = Stopwatch(), Timeline(read=0.0), list(prompts[0])
    for _ in range(count):
        chosen, _ = recompute_step(bench_model.reference, prefix)
        prefix.append(chosen)
        timeline.ids.append(chosen)
        timeline.tokens.append(watch())
        timeline.vectors.append(watch())
    return [timeline]


def _inseq(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
    """Inseq explains a finished completion; generating it is not timed."""
    import inseq

    prompt, completion, new_ids = _texts(bench_model, prompts[0], count)
    model = inseq.load_model(
        bench_model.reference, "saliency", tokenizer=bench_model.loaded.tokenizer, device=str(bench_model.device)
    )
    watch = Stopwatch()
    with _gradients(bench_model.reference):
        model.attribute(prompt, prompt + completion, show_progress=False, attributed_fn="logit")
    return [_all_at_end(watch(), new_ids)]


def _captum(bench_model: BenchModel, prompts: Sequence[Ids], count: int) -> list[Timeline]:
    """Captum explains a finished completion; generating it is not timed."""
    from captum.attr import LayerGradientXActivation, LLMGradientAttribution, TextTokenInput

    prompt, completion, new_ids = _texts(bench_model, prompts[0], count)
    model, tokenizer = bench_model.reference, bench_model.loaded.tokenizer
    watch = Stopwatch()
    with _gradients(model):
        method = LLMGradientAttribution(LayerGradientXActivation(model, model.get_input_embeddings()), tokenizer)
        method.attribute(TextTokenInput(prompt, tokenizer), target=completion)
    return [_all_at_end(watch(), new_ids)]


def _texts(bench_model: BenchModel, ids: Ids, count: int) -> tuple[str, str, list[int]]:
    """Prompt and completion as text, for libraries that tokenize themselves, and the completion's token ids."""
    new_ids = _generated(bench_model, [ids], count)
    tokenizer: Any = bench_model.loaded.tokenizer
    prompt = tokenizer.decode(list(ids))
    return prompt, tokenizer.decode([*ids, *new_ids])[len(prompt) :], new_ids


class _gradients:  # noqa: N801 (a context manager, used like a function)
    """Gives parameters gradients, which Inseq and Captum expect of a loaded model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.requires_grad_(True)

    def __exit__(self, *error: object) -> None:
        self._model.requires_grad_(False)
        self._model.zero_grad(set_to_none=True)


def _all_at_end(seconds: float, ids: list[int]) -> Timeline:
    """A timeline whose tokens all come at the end."""
    return Timeline(ids, 0.0, [seconds] * len(ids))


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("plain", "this engine without attribution", _by_engine("plain"), (1, 1), mode="plain"),
        Backend(
            "per_token", "this engine, attribution token by token", _by_engine("per_token"), (2, 1), mode="per_token"
        ),
        *(
            Backend(
                f"chunked({size})",
                f"this engine, attribution in chunks of {size} tokens",
                _by_engine(f"chunked({size})"),
                (1 + 1 / size, 1),
                size,
                mode=f"chunked({size})",
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
            families_without=frozenset({"gemma2", "gpt_oss"}),  # torch's SDPA supports neither soft caps nor sinks
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
