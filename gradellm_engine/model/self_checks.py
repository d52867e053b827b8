"""Checks that run on the loaded model itself: the engine's assumptions about a family are tested before use.

- Logits match those of Transformers' eager attention (`eager_logits`, `check_logits`).
- A CPU trace repeats an eager pass to the last bit, a launch graph up to rounding (`check_traces`, `check_graphs`).
- Fused kernels and compiled layers run on this machine (`succeeds`).
- Attention outputs can be skipped in a replay whose linear layers are cached (`can_skip_outputs`).
- Batch-invariant execution is batch-invariant on this CPU (`is_batch_variant`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradellm_engine.compilation.graph_cache import GraphCache
from gradellm_engine.compilation.trace_cache import TRACE_AFTER_USES, CpuTraceCache
from gradellm_engine.errors import ModelLoadError, UnsupportedModelError, one_line
from gradellm_engine.kv_cache.pool import KVPool
from gradellm_engine.layers.patches import undo_patches
from gradellm_engine.layers.rotary_switch import switch_tokens
from gradellm_engine.layers.widening import widen_activations
from gradellm_engine.passes.activation_cache import ActivationCache
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from gradellm_engine.passes.explained_pass import ExplainedPass
from gradellm_engine.passes.invariant import SLOT_ALIGNMENT
from gradellm_engine.utils.memory import is_out_of_memory

CHECK_TOKENS = 6
GRAPH_TOLERANCE = 1e-5
CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}

_TRACED_TOKENS = 2  # the first token attends to itself alone
_TRACED_SEQUENCES = 2  # of a single one, what is copied of several may be a view
_REPLAYED_TOKENS = 2
_INVARIANCE_TOKENS = 8
_INVARIANCE_BATCH = 17  # sequences in addition to the first: more than a vector register holds float32 numbers
_MAX_ERROR_LENGTH = 200  # characters; compilers report pages

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """The part of `ModelRunner` that is checked here."""

    pool: KVPool
    cpu_traces: CpuTraceCache | None
    launch_graphs: GraphCache | None
    activation_cache: ActivationCache

    @property
    def every_layer(self) -> ExplainSpec:
        """Grad-ELLM's defaults, of all layers."""

    def allocate_pool(self, num_tokens: int) -> None:
        """Allocate the KV cache."""

    def prefill(self, chunks: Sequence[SequenceChunk]) -> None:
        """Prefill."""

    def step(self, chunks: Sequence[SequenceChunk]) -> Tensor:
        """Logits of the token after each chunk's last. [B, V]"""

    def explained_pass(self, chunks: Sequence[SequenceChunk], targets: Sequence[Target] | None = None) -> ExplainedPass:
        """A forward pass that can be explained."""

    def replay(self, chunks: Sequence[SequenceChunk], targets: Sequence[Target]) -> list[Tensor]:
        """Attribution rows of tokens whose targets are known."""


def eager_logits(model: PreTrainedModel) -> Tensor:
    """Transformers' logits, by its eager attention, of the token after `CHECK_TOKENS` tokens; float32. [1 or 2, V]

    Where rotary factors depend on a sequence's length, a second row has them for a long sequence. A bfloat16 model
    whose activations the engine widens is computed in float32, one matrix at a time: its logits in bfloat16 are farther
    from these than the engine's.
    """
    model.eval()
    model.set_attn_implementation("eager")
    if model.dtype is torch.float64:
        with suppress(ValueError):  # a model without experts
            model.set_experts_implementation("eager")  # the other implementations support float32 at most
    switch = switch_tokens(model.config)
    positions = [None] if switch is None else [None, switch]
    widening = widen_activations(model, is_exact=True)
    try:
        with torch.no_grad():
            return torch.stack([_logits_before(model, _check_ids(model), position) for position in positions])
    finally:
        undo_patches(widening)


def _check_ids(model: PreTrainedModel) -> Tensor:
    vocab_size: int = model.config.get_text_config(decoder=True).vocab_size
    return torch.arange(CHECK_TOKENS) % vocab_size


def _logits_before(model: PreTrainedModel, ids: Tensor, position: int | None) -> Tensor:
    """Logits after `ids`, followed by one more token at `position`, if any; float32. [V]

    That token makes the sequence a long one; attention is causal, so that nothing before it depends on it.
    """
    positions = torch.arange(len(ids))
    if position is not None:
        ids, positions = torch.cat((ids, ids[:1])), torch.cat((positions, torch.tensor([position])))
    input_ids, position_ids = (x[None].to(model.device) for x in (ids, positions))
    logits: Tensor = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    return logits[0, CHECK_TOKENS - 1].float()


def runner_logits(runner: Runner, model: PreTrainedModel) -> Tensor:
    """The same logits as `eager_logits`, by a runner over the model: prefill in two chunks, then a decode step."""
    kinds = [False] if switch_tokens(model.config) is None else [False, True]
    runner.allocate_pool(len(kinds) * (CHECK_TOKENS + SLOT_ALIGNMENT))
    slots = [runner.pool.allocate_probe(CHECK_TOKENS, is_long=is_long) for is_long in kinds]
    *first, last = _check_ids(model).tolist()
    for chunk_ids in (first[:2], first[2:]):
        runner.prefill([SequenceChunk.new(slot, chunk_ids) for slot in slots])
    return runner.step([SequenceChunk.new(slot, [last]) for slot in slots]).float()


def check_logits(model: PreTrainedModel, actual: Tensor, expected: Tensor) -> None:
    """Compare a runner's logits with those of Transformers' eager attention.

    Raises:
        ModelLoadError: if Transformers' logits are not finite.
        UnsupportedModelError: if the relative error is above `CHECK_TOLERANCE`.
    """
    if not expected.isfinite().all():
        raise ModelLoadError("the model's logits are not finite: its weights are damaged, or its dtype overflows")
    error = ((actual - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)).max().item()
    if not error <= CHECK_TOLERANCE[model.dtype]:
        raise UnsupportedModelError(
            f"{type(model).__name__}: logits differ from Transformers' own eager attention by {error:.2g} "
            f"(relative; the limit in {_name(model.dtype)} is {CHECK_TOLERANCE[model.dtype]:.2g})"
        )


@contextmanager
def as_dtype_error(model: PreTrainedModel) -> Iterator[None]:
    """Turn the error of an operation that does not support the model's dtype into one line.

    Raises:
        ModelLoadError: with the model's family and dtype.
    """
    try:
        yield
    except RuntimeError as error:  # torch has no narrower class
        if is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"the family {model.config.model_type} cannot be computed in {_name(model.dtype)} on {model.device}: "
            f"{one_line(error)}; choose another --dtype, such as float32 or bfloat16"
        ) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_traces(runner: Runner, traces: CpuTraceCache) -> None:
    """Disable `traces` unless a trace gives another token, at another position, what eager execution gives it.

    Logits and scores must be equal to the last bit. The runner runs without traces afterwards.
    """
    traces.uses_before = 1
    try:
        runner.cpu_traces = traces
        _check_second_step(runner, traces)
    finally:
        runner.cpu_traces = None
    traces.uses_before = TRACE_AFTER_USES


def check_graphs(runner: Runner, graphs: GraphCache) -> None:
    """Disable launch graphs unless they repeat a step up to rounding; as `check_traces` otherwise.

    A graph has more columns than the eager step, and the order in which torch sums over layers depends on them.
    """
    limits = graphs.limits
    graphs.limits = replace(limits, capture_after_uses=1)
    try:
        runner.launch_graphs = graphs
        _check_second_step(runner, graphs, GRAPH_TOLERANCE)
    finally:
        runner.launch_graphs = None
    graphs.limits = limits


def _check_second_step(runner: Runner, recorded: CpuTraceCache | GraphCache, tolerance: float = 0.0) -> None:
    """Disable what records steps unless it gives another token, at another position, what eager execution gives it.

    `tolerance` is relative to the largest number.
    """
    slots, explain = [runner.pool.allocate_probe(_TRACED_TOKENS) for _ in range(_TRACED_SEQUENCES)], runner.every_layer

    def explained(token_id: int) -> list[Tensor]:
        run = runner.explained_pass([SequenceChunk.new(slot, [token_id + i], explain) for i, slot in enumerate(slots)])
        return [run.logits.clone(), *run.heat_maps([Target(token_id)] * len(slots))]

    try:
        explained(0)
        repeated = explained(1)
        runner.cpu_traces = runner.launch_graphs = None
        for slot in slots:
            slot.ids.pop()
        expected = explained(1)
        largest = [tolerance * float(x.abs().max()) for x in expected]
        if not all(bool(((x - y).abs() <= z).all()) for x, y, z in zip(repeated, expected, largest, strict=True)):
            recorded.disable("a recorded step gives other numbers than the model")
    except Exception as error:  # of whatever a family does that no test has; eagerly it may work
        logger.warning("Recording a decode step failed: %s: %s", type(error).__name__, _shortened(error))
        recorded.disable("recording failed")
    finally:
        for slot in slots:
            slot.close()


def can_skip_outputs(runner: Runner) -> bool:
    """Whether attention outputs are unused in a replay whose linear layers' outputs are all cached.

    In such a pass attention gives NaN, which would reach the scores of a family that, say, gates the outputs. The
    runner must be set to skip them.
    """
    slot = runner.pool.allocate_probe(_REPLAYED_TOKENS)
    try:
        for token_id in range(_REPLAYED_TOKENS):
            runner.step([SequenceChunk.new(slot, [token_id], replay_length=_REPLAYED_TOKENS)])
        chunk = SequenceChunk.replay(slot, 0, _REPLAYED_TOKENS, runner.every_layer)
        if not runner.activation_cache.is_cached([chunk]):
            return False
        (scores,) = runner.replay([chunk], [Target(0)] * _REPLAYED_TOKENS)
        return bool(scores.isfinite().all())
    finally:
        slot.close()


def succeeds(run: Callable[[], object], fallback: str) -> bool:
    """Whether `run` raises nothing; otherwise log the error and `fallback`, a sentence on what is used instead."""
    try:
        run()
    except Exception as error:  # compilers raise errors of any class
        logger.warning("%s: %s: %s", fallback, type(error).__name__, _shortened(error))
        return False
    return True


def _shortened(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    return " ".join(str(error).split())[:_MAX_ERROR_LENGTH]


def is_batch_variant(runner: Runner, vocab_size: int) -> bool:
    """Whether a token's logits or scores depend on how its prompt was chunked or on the rest of its batch.

    Gives the runner a new pool.
    """
    runner.allocate_pool((1 + _INVARIANCE_BATCH) * _INVARIANCE_TOKENS + SLOT_ALIGNMENT * (1 + _INVARIANCE_BATCH))
    runner.pool.reuses_prefixes = False
    ids = [(7 * position + 3) % vocab_size for position in range(_INVARIANCE_TOKENS)]
    explain = runner.every_layer
    alone, *batch = (runner.pool.allocate_probe(_INVARIANCE_TOKENS) for _ in range(1 + _INVARIANCE_BATCH))
    for token_id in ids:
        result = runner.explained_pass([SequenceChunk.new(alone, [token_id], explain)])
        logits, scores = result.logits, result.heat_maps([Target(token_id)])[0]
    for i, slot in enumerate(batch):  # prefill in chunks of different lengths
        runner.prefill([SequenceChunk.new(slot, ids[: 1 + i % (_INVARIANCE_TOKENS - 2)])])
    runner.prefill([SequenceChunk.new(slot, ids[slot.length : -1]) for slot in batch])
    together = runner.explained_pass([SequenceChunk.new(slot, ids[-1:], explain) for slot in batch])
    results = zip(together.logits, together.heat_maps([Target(ids[-1])] * len(batch)), strict=True)
    again = runner.explained_pass([SequenceChunk.replay(batch[0], 0, _INVARIANCE_TOKENS, explain)])
    replayed = again.heat_maps([Target(ids[-1])] * _INVARIANCE_TOKENS)[0][-1:]
    return not all(
        torch.equal(row_logits, logits[0]) and torch.equal(row_scores, scores)
        for row_logits, row_scores in [*results, (again.logits[-1], replayed)]
    )
