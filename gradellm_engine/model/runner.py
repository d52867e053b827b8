"""Executes batches of sequence chunks: any number of sequences in one pass over the engine's own KV cache.

The model is called without a cache and with explicit positions, so that it computes the new tokens alone; the pass that
runs reads and writes the KV cache in its attention layers (`gradellm_engine.model.attention_interface`). An explained
pass is one forward and one backward pass through its own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradellm_engine.attention.fused_kernels import fused_attention
from gradellm_engine.compilation.cuda_graphs import CudaGraphCapturer
from gradellm_engine.compilation.executor import Batch, EagerExecutor
from gradellm_engine.compilation.graph_cache import GraphCache, GraphCapturer, GraphLimits, pad_width
from gradellm_engine.compilation.launch_graphs import LaunchCapturer
from gradellm_engine.compilation.torch_compile import Backend, CompiledLayers
from gradellm_engine.compilation.trace_cache import CpuTraceCache
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.kv_cache.pool import KVPool, KVSlot
from gradellm_engine.model.last_layer import ending_at_last_layer, splitting_last_layer
from gradellm_engine.model.self_checks import can_skip_outputs, check_graphs, check_traces, succeeds
from gradellm_engine.model.transformers_model import TransformersModel
from gradellm_engine.params import GradEllm
from gradellm_engine.passes.activation_cache import ActivationCache
from gradellm_engine.passes.base import AttentionPass, ExplainSpec, SequenceChunk, Target
from gradellm_engine.passes.batched import BatchedPass, StepShape, is_replay, is_step
from gradellm_engine.passes.explained_pass import ExplainedPass
from gradellm_engine.passes.invariant import SLOT_ALIGNMENT, PerTokenPass
from gradellm_engine.passes.lm_head import LogitHead, token_ids
from gradellm_engine.passes.mixed import MixedPass
from gradellm_engine.passes.ragged import RaggedPass

# The longest sequence of a batched step on a CPU without fused attention, in tokens: beyond it, gathering keys and
# values takes longer than computing them together saves.
_MAX_GATHERED_TOKENS = 192
LAUNCH_GRAPH_LIMITS = GraphLimits(pad_width, max_graphs=24, capture_after_uses=2)
MIN_SPLIT_TOKENS = 64  # of a mixed pass, whose last layer is then computed in two parts
_REPREFILL_TOKENS = 512  # a pass, where a sequence is prefilled again


class ModelRunner(TransformersModel):
    """A decoder-only model that executes batches of sequence chunks over a KV cache.

    Attributes:
        pool: the KV cache.
        cuda_graphs: captured decode steps and replays; None where they run eagerly.
        launch_graphs: recorded decode steps on a CPU; None where they run eagerly or as traces.
        cpu_traces: traced decode steps and replays; None where they run eagerly.
        compiled_layers: the layers as torch.compile compiled them, for CUDA graphs; None where they run as they are.
        fused_attention: kernels for decode steps; None where torch computes attention.
        activation_cache: outputs of linear layers for tokens that a replay will explain.
        skips_unused_outputs: whether a replay of cached tokens skips attention outputs; None before it is known.
    """

    pool: KVPool
    cuda_graphs: GraphCache | None = None
    launch_graphs: GraphCache | None = None
    cpu_traces: CpuTraceCache | None = None
    compiled_layers: CompiledLayers | None = None
    skips_unused_outputs: bool | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        ranks: ProcessGroup | None = None,
        *,
        batch_invariant: bool = False,
        memory_bytes: int | None = None,
    ) -> None:
        """Take over `model`; see `TransformersModel`."""
        super().__init__(model, ranks, batch_invariant=batch_invariant, memory_bytes=memory_bytes)
        self.activation_cache = ActivationCache(model.base_model)
        self.fused_attention = fused_attention(self.device) if self.is_on_one_device else None
        self._eager = EagerExecutor(self._eager_logits)
        self._skips_last_layer = self.is_on_one_device and ranks is None and not _is_offloaded(model)

    @property
    def every_layer(self) -> ExplainSpec:
        """Grad-ELLM's defaults, of all layers."""
        return ExplainSpec(GradEllm(layers=tuple(range(self.num_layers))))

    @property
    def bytes_per_token(self) -> int:
        """Bytes of KV cache that a token takes, on all devices together."""
        layers = sum(shape.bytes_per_token for shape in self.layer_shapes)
        return layers + sum(shape.bytes_per_token for shape in self.rotaries)

    @property
    def execution_mode(self) -> str:
        """How captured steps compute attention and layers, in words."""
        attention = "torch attention" if self.fused_attention is None else "fused attention kernels"
        return f"{attention}, {'uncompiled' if self.compiled_layers is None else 'compiled'} layers"

    def allocate_pool(self, num_tokens: int) -> None:
        """Allocate a KV cache of `num_tokens` tokens, replacing the last one. Drops CUDA graphs, which address it."""
        aligned = SLOT_ALIGNMENT if self.batch_invariant else 1
        self.pool = KVPool(self.layer_shapes, self.rotaries, num_tokens, aligned)
        self.cuda_graphs = self.launch_graphs = None
        if self.skips_unused_outputs is None:
            self.skips_unused_outputs = self.activation_cache.max_tokens > 0
            if self.skips_unused_outputs:
                self.skips_unused_outputs = can_skip_outputs(self)

    def use_graphs(self, capturer: GraphCapturer | None = None, limits: GraphLimits | None = None) -> None:
        """Run decode steps and replays as CUDA graphs on a GPU, and as launch graphs and CPU traces on a CPU.

        A model that is spread over several devices or ranks, or that cannot be captured or traced, runs eagerly.
        """
        if capturer is None and self.is_on_one_device and self.ranks is None:
            if self.device.type == "cuda":
                capturer = CudaGraphCapturer(self.device)
                self.compile()
            elif not _is_offloaded(self.model):
                self._record_steps()
        if capturer is not None:
            self.cuda_graphs = GraphCache(capturer, self._new_batched_pass, self._captured_logits, self.lm_head, limits)

    def _record_steps(self) -> None:
        """Use CPU traces, and launch graphs where kernels compute attention, if they repeat what the model computes."""
        traces, self.cpu_traces = self.cpu_traces, None
        if traces is None:
            traces = CpuTraceCache(self._logits, self.lm_head)
            check_traces(self, traces)
        if self._attention_is_fused and not self.batch_invariant:
            graphs = GraphCache(
                LaunchCapturer(),
                self._new_batched_pass,
                self._captured_logits,
                self.lm_head,
                LAUNCH_GRAPH_LIMITS,
                self.activation_cache,
            )
            check_graphs(self, graphs)
            self.launch_graphs = graphs
        self.cpu_traces = traces

    def compile(self, backend: Backend = "inductor") -> None:
        """Compile the layers for CUDA graphs, and check that fused attention runs; each falls back by itself."""
        if self.fused_attention is not None and not succeeds(
            self._explain_one_token, "Fused attention kernels do not run; using torch attention"
        ):
            self.fused_attention = None
        if self.compiled_layers is None:
            self.compiled_layers = CompiledLayers(self.blocks, backend)
            if not succeeds(self._explain_one_token, "Layers cannot be compiled; running them uncompiled"):
                self.compiled_layers = None

    def _explain_one_token(self) -> None:
        """Run what a CUDA graph will capture."""
        slot = self.pool.allocate_probe(2)
        try:
            run = self._batched_pass([SequenceChunk.new(slot, [0], self.every_layer)])
            head = LogitHead(self.lm_head)
            logits = head.run_model(lambda: self._captured_logits(run))
            ExplainedPass(logits, run, head.backward).heat_maps([Target(0)])
        finally:
            slot.close()

    def prefill(self, chunks: Sequence[SequenceChunk]) -> None:
        """Prefill: write the chunks' keys and values into the KV cache. Returns once they are computed."""
        with torch.no_grad():
            run = self._ragged_pass(chunks)
            end = ending_at_last_layer(self.blocks[-1], run) if self._skips_last_layer else nullcontext()
            with self.activation_cache.during(chunks), end:
                self.forward_tokens(run.ids_and_positions, run, self.model.base_model)
            _commit_ids(chunks)
        device = self.layer_shapes[-1].device
        if device.type == "cuda":  # else its time would be charged to the pass that next waits for the GPU
            torch.cuda.synchronize(device)

    def step(self, chunks: Sequence[SequenceChunk], prefill: Sequence[SequenceChunk] = ()) -> Tensor:
        """A decode step: logits of the token after each chunk, which has one token. [B, V]

        `prefill` are chunks of any length that the same pass prefills, before the decode step's: of other sequences, or
        of the same (`SequenceChunk.new(after=)`).
        """
        return self._execute(chunks, prefill=prefill).logits

    def logits(self, chunks: Sequence[SequenceChunk]) -> Tensor:
        """Logits of the token after each of the chunks' tokens. [T, V]"""
        with torch.no_grad():
            run = self._ragged_pass(chunks)
            with self.activation_cache.during(chunks):
                logits = self.forward_tokens(run.ids_and_positions, run, self.model)[0]
            _commit_ids(chunks)
        return logits

    def explained_pass(self, chunks: Sequence[SequenceChunk], targets: Sequence[Target] | None = None) -> ExplainedPass:
        """A forward pass over the chunks, with the graph that explains those whose `explain` is set.

        `targets` are those of all tokens, where they are known before the pass; it then computes their logits alone.
        """
        return self._execute(chunks, is_explained=True, targets=targets)

    def replay(self, chunks: Sequence[SequenceChunk], targets: Sequence[Target]) -> list[Tensor]:
        """Teacher-forced replay: attribution rows of tokens that the KV cache holds, by their targets. [T, S] each"""
        return self.explained_pass(chunks, targets).heat_maps(targets)

    def _execute(
        self,
        step: Sequence[SequenceChunk],
        *,
        prefill: Sequence[SequenceChunk] = (),
        is_explained: bool = False,
        targets: Sequence[Target] | None = None,
    ) -> ExplainedPass:
        """Run decode steps or a replay: by CUDA graph, by CPU trace or eagerly, chosen here alone."""
        chunks = [*prefill, *step]
        is_batched = self.runs_batched(step) if targets is None else self._replays_batched(step)
        batch = Batch(chunks, self._make_pass, is_batched, num_prefill=len(prefill), targets=targets)
        if self.cuda_graphs is not None and not prefill and (is_batched or targets is not None):
            captured = self.cuda_graphs.execute(batch)
            if captured is not None:
                _commit_ids(chunks)
                return captured
        activations = self.activation_cache
        batch.is_cached = activations.is_cached(chunks)
        if self.launch_graphs is not None and not prefill and is_batched:
            if activations.caches_all_layers:
                batch.cache_rows = activations.cached_rows(chunks) or activations.rows_to_fill(chunks)
            captured = self.launch_graphs.execute(batch)
            if captured is not None:
                activations.end_pass(chunks, batch.cache_rows)
                _commit_ids(chunks)
                return captured
        if is_explained:
            batch.head = LogitHead(self.lm_head, None if targets is None else token_ids(targets))
        with activations.during(chunks):
            # The rows of a pass with prompts are of any number: each would need a trace of its own.
            result = None if self.cpu_traces is None or prefill else self.cpu_traces.execute(batch)
            if result is None:
                result = self._eager.execute(batch)
        _commit_ids(chunks)
        return result

    def runs_batched(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Whether a `BatchedPass` can run the chunks, and is faster than a `RaggedPass`."""
        if not self.is_on_one_device or self.batch_invariant or not is_step(chunks):
            return False
        if self.cuda_graphs is not None or self.device.type == "cuda" or self._attention_is_fused:
            return True
        return len(chunks) > 1 and max(chunk.end for chunk in chunks) <= _MAX_GATHERED_TOKENS

    def _replays_batched(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Whether a `BatchedPass` replays the chunks, as a launch graph once their shape has occurred before."""
        if self.launch_graphs is None or not self.launch_graphs.is_possible:
            return False
        num_tokens = len(chunks[0].ids)
        is_even = all(len(chunk.ids) == num_tokens for chunk in chunks)
        return is_even and is_replay(chunks, num_tokens)

    @property
    def _attention_is_fused(self) -> bool:
        """Whether kernels compute the attention of all layers in a decode step."""
        is_float = {shape.dtype for shape in self.layer_shapes} == {torch.float32}
        return self.fused_attention is not None and self.has_plain_attention and is_float

    def _make_pass(self, batch: Batch) -> AttentionPass:
        run: AttentionPass
        if batch.is_batched and batch.num_prefill:
            prefill, step = batch.chunks[: batch.num_prefill], batch.chunks[batch.num_prefill :]
            run = MixedPass([self._ragged_pass(prefill), self._batched_pass(step)], len(step))
        elif batch.is_batched:
            run = self._batched_pass(batch.chunks)
        else:
            has_graph = batch.head is not None
            graph_anchor = torch.zeros((), device=self.device, requires_grad=True) if has_graph else None
            run = self._ragged_pass(batch.chunks, graph_anchor)
            if batch.num_prefill:
                run.num_logits = len(batch.chunks) - batch.num_prefill
        run.output_is_used = not (self.skips_unused_outputs and batch.is_cached)
        return run

    def _ragged_pass(self, chunks: Sequence[SequenceChunk], graph_anchor: Tensor | None = None) -> RaggedPass:
        kind = PerTokenPass if self.batch_invariant else RaggedPass
        return kind(chunks, self.rotary_of, self.head_ranks, graph_anchor, fused=self.fused_attention)

    def _new_batched_pass(self, shape: StepShape) -> BatchedPass:
        return BatchedPass(self.pool, self.rotary_of, shape, self.device, self.fused_attention, self.head_ranks)

    def _batched_pass(self, chunks: Sequence[SequenceChunk]) -> BatchedPass:
        shape = StepShape.of(chunks)
        if self.launch_graphs is not None:  # so that a step gives the same numbers before it is recorded
            shape = self.launch_graphs.limits.pad(shape)
        run = self._new_batched_pass(shape)
        run.fill(chunks)
        run.begin()
        return run

    def _eager_logits(self, run: AttentionPass) -> Tensor:
        """One pass by the model's modules; see `_logits`."""
        row = run.ids_and_positions
        if isinstance(run, MixedPass) and self._skips_last_layer and row.shape[1] >= MIN_SPLIT_TOKENS:
            with splitting_last_layer(self.blocks[-1], run):
                return self._logits(row, run)
        return self._logits(row, run)

    def _logits(self, row: Tensor, run: AttentionPass) -> Tensor:
        """One pass through the model. [T, V], or [T, 2]; of the last `run.num_logits` tokens where that is set"""
        if run.num_logits == 0:
            return self.forward_tokens(row, run, self.model)[0]
        if self._takes_logits_to_keep:
            return self.forward_tokens(row, run, self.model, logits_to_keep=run.num_logits)[0]
        return self.forward_tokens(row, run, self.model)[0, -run.num_logits :]

    def _captured_logits(self, run: BatchedPass) -> Tensor:
        """One pass as a CUDA graph captures it. [B T, V], or [B T, 2]"""
        with nullcontext() if self.compiled_layers is None else self.compiled_layers.used():
            return self._logits(run.ids_and_positions, run)

    def prefill_again(self, slot: KVSlot, ids: Sequence[int], *, is_long: bool) -> Iterator[None]:
        """Prefill a slot's sequence again, with the other rotary factors; yields after every pass."""
        slot.ids.clear()
        slot.is_long = is_long
        while unread := ids[slot.length : slot.length + _REPREFILL_TOKENS]:
            self.prefill([SequenceChunk.new(slot, unread)])
            yield


def _is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate moves weights to their device when a module runs."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _commit_ids(chunks: Sequence[SequenceChunk]) -> None:
    """Append new tokens to their slots, once the pass has stored their keys and values."""
    for chunk in chunks:
        if chunk.is_new:
            chunk.slot.ids += chunk.ids
