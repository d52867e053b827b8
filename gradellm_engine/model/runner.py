"""One Transformers decoder over our own key-value slots: any number of sequences in one pass.

The model stays unmodified. A registered AttentionInterface function stands in for its attention: called without a cache
and with explicit positions, it gets only the new tokens' q, k and v and hands them to the pass that runs
(`gradellm_engine.passes.ragged`). What a pass needs travels beside the model, never through its keyword arguments,
which some families drop. An explained pass is one forward and one backward pass through its tokens alone.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.compilation.cpu_trace import USES_BEFORE, CpuTrace, CpuTraceCache, TraceContext, TraceKey
from gradellm_engine.compilation.cuda_graphs import CudaGraphCache, CudaRecorder, GraphCapturer
from gradellm_engine.compilation.torch_compile import Backend, CompiledLayers
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.distributed.tensor_parallel import shard_to_local_linear
from gradellm_engine.errors import UnsupportedModelError
from gradellm_engine.kv_cache.pool import KVPool, KVSlot, LayerShape, RotaryShape
from gradellm_engine.layers.linear import current_output_cache, fuse_shared_input_linears
from gradellm_engine.layers.patches import apply_patches
from gradellm_engine.layers.projection_skipping import LastTokenOnly
from gradellm_engine.layers.rotary_switch import switch_tokens
from gradellm_engine.params import GradEllm
from gradellm_engine.passes.activation_cache import ActivationCache
from gradellm_engine.passes.base import AttentionPass, ExplainSpec, SequenceChunk, Target, layer_attention_output
from gradellm_engine.passes.batched import BatchedPass, StepShape, is_step
from gradellm_engine.passes.first_layer_reuse import FirstLayer, TokenSubstitutions
from gradellm_engine.passes.full_sequence import SequenceAttention
from gradellm_engine.passes.invariant import SLOT_ALIGNMENT, PerTokenPass
from gradellm_engine.passes.lm_head import LogitHead, signs, token_ids
from gradellm_engine.passes.ragged import RaggedPass
from gradellm_engine.passes.shared_prefix import SharedPrefixAttention

if TYPE_CHECKING:  # what it needs is not everywhere
    from gradellm_engine.attention.fused import FusedAttention

ATTENTION_KERNEL = "gradellm"
# Tokens of the longest sequence of a step on a CPU: beyond it, copying keys and values takes longer than it saves.
_GATHERED_WIDTH = 192
_LONGEST_REASON = 200  # characters
_TRIED_TOKENS = 2  # the first sees only itself
_READ_TOKENS = 512  # in a pass of sequences that are read anew

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class _Meeting:
    """A first look at the model: which modules call our attention, with what shapes and rotary embeddings."""

    modules: dict[int, nn.Module] = field(default_factory=dict)
    shapes: dict[int, LayerShape] = field(default_factory=dict)
    num_heads: set[int] = field(default_factory=set)  # query heads of a layer that are here
    rotaries: dict[int, Tensor] = field(default_factory=dict)  # the cosines; layers that share them share the tensor


_current_pass: ContextVar[AttentionPass | _Meeting | SequenceAttention] = ContextVar("gradellm_pass")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401 (Transformers' contract)
) -> tuple[Tensor, None]:
    """Transformers' attention contract. query [B, H, T, D]; key, value [B, G, T, D or Dv]; returns [B, T, H, Dv].

    B is 1 but in passes over whole sequences.
    """
    current = _current_pass.get(None)
    if current is None:
        raise RuntimeError("this model belongs to a gradellm Decoder; call it through one")
    index = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(current, _Meeting):
        current.modules[index] = module
        current.num_heads.add(query.shape[1])
        current.shapes[index] = LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device)
        return value.new_zeros((1, query.shape[2], query.shape[1], value.shape[3])), None
    form = AttentionForm(
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        window=kwargs.get("sliding_window"),
    )
    if isinstance(current, SequenceAttention):
        return current.output(index, query, key, value, form), None
    current.store(index, key.detach()[0], value.detach()[0])
    return layer_attention_output(current, current.layer_attention(module, index, form), index, query, key, value), None


AttentionInterface.register(ATTENTION_KERNEL, _attention)


class ExplainedPass:
    """A pass whose graph still stands: `logits` first, then the heat maps for the tokens that were chosen.

    Attributes:
        logits: of the token after each token that was read, parts behind one another. [T, V]
    """

    def __init__(self, logits: Tensor, run: AttentionPass, differentiate: Callable[[Tensor, Tensor], None]) -> None:
        """`differentiate` takes targets and signs, as `LogitHead.backward` does."""
        self.logits = logits
        self._run = run
        self._differentiate: Callable[[Tensor, Tensor], None] | None = differentiate

    def start(self, targets: Sequence[Target | None]) -> None:
        """Have a GPU begin with what `heat_maps` waits for; a processor can do nothing beside it."""
        if self.logits.is_cuda:
            self._backward(targets)

    def heat_maps(self, targets: Sequence[Target | None]) -> list[Tensor]:
        """Scores of each explained part's tokens, in the parts' order: one score a token of the prefix. [T, S] each

        Row t of a part has zeros behind its own position. Can be called once: the backward pass frees the graph.

        Args:
            targets: one for each row of `logits`; None for those of parts that are not explained.
        """
        self._backward(targets)
        return _on_host(self._run.heat_maps())

    def _backward(self, targets: Sequence[Target | None]) -> None:
        if self._differentiate is not None:
            device = self.logits.device
            self._differentiate(token_ids(targets).to(device), signs(targets).to(device, self.logits.dtype))
            self._differentiate = None


class ModelRunner:
    """A frozen Transformers decoder that runs parts of sequences over the slots of its pool.

    Attributes:
        device: where tokens go in.
        ranks: those that share its weights out; None where it is whole.
        layer_shapes: what each attention layer stores.
        pool: the memory of all sequences.
        cuda_graphs: decode steps that a GPU replays; None where they are run call by call.
        cpu_traces: decode steps that a processor runs in a row; likewise.
        activation_cache: what linear layers gave tokens that wait for their explanation.
        blocks: the layers, each with its attention, in order.
        patches: what was replaced in the model.
        batch_invariant: whether a token's numbers are the same beside any others.
        switch_tokens: up to so many tokens a sequence has the short rotary factors; None where no sequence has others.
    """

    pool: KVPool
    cuda_graphs: CudaGraphCache | None = None
    cpu_traces: CpuTraceCache | None = None

    def __init__(
        self, model: PreTrainedModel, ranks: ProcessGroup | None = None, *, batch_invariant: bool = False
    ) -> None:
        """Take over `model`: it is frozen, put in evaluation mode and given our attention.

        `ranks` are those that share its weights out, where it is loaded so. With `batch_invariant` no token's numbers
        depend on what is read beside it; see `gradellm_engine.layers.batch_invariant`.

        Raises:
            UnsupportedModelError: where the model does not run with it, or some layer does not go through it.
        """
        model.requires_grad_(False).eval()
        model.set_attn_implementation(ATTENTION_KERNEL)
        self.device = model.get_input_embeddings().weight.device
        self.ranks = self._sharing = ranks  # the latter share heads out, too
        self._fanned_out = None if ranks is None else shard_to_local_linear(model, ranks)
        self.switch_tokens = switch_tokens(model.config)
        is_compiled = _compiles_on(self.device)  # where torch's own layers are compiled, they are as fast
        if is_compiled:
            AttentionInterface.register(ATTENTION_KERNEL, _untraced(_attention))
        self.patches = apply_patches(model, rotary_switch=self.switch_tokens, replaces_layers=not is_compiled)
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no language-model head")
        self._model = model
        self._config: Any = model.config.get_text_config(decoder=True)
        self._head: nn.Module = head
        self._compiled: CompiledLayers | None = None
        self._chooses_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        with torch.no_grad():
            self.layer_shapes, self._rotaries, self._rotary_of = self._meet()
        self.batch_invariant = batch_invariant
        if batch_invariant:
            self.patches += apply_patches(model, batch_invariant=True)
        self.activation_cache = ActivationCache(model.base_model)
        self._leaves_out: bool | None = None  # not known before there is a pool
        self._is_on_one_device = {shape.device for shape in self.layer_shapes} == {self.device}
        self._fused: FusedAttention | None = _fused_attention(self.device) if self._is_on_one_device else None

    def _meet(self) -> tuple[list[LayerShape], list[RotaryShape], dict[int, int]]:
        """Run one token, to learn what each layer stores and which rotary embedding it takes."""
        meeting = _Meeting()
        one_token = torch.zeros((2, 1), dtype=torch.long)
        fuse_shared_input_linears(self._model, lambda: self._run(one_token, meeting, self._model))
        expected = self._config.num_hidden_layers
        if expected < 1 or sorted(meeting.modules) != list(range(expected)):
            raise UnsupportedModelError(
                f"{type(self._model).__name__}: {len(meeting.modules)} of {expected} layers go through "
                "Transformers' AttentionInterface; all must"
            )
        if self.ranks is not None and meeting.num_heads == {self._config.num_attention_heads}:
            self._sharing = None  # a plan that leaves attention whole on every rank
        self.blocks = _blocks(self._model, [meeting.modules[index] for index in range(expected)])
        self._first_layer = FirstLayer(self.blocks[0], meeting.modules[0]) if expected > 1 else None
        self._last_queries = LastTokenOnly(meeting.modules[expected - 1])
        notes = {index: _noting_rotary(index) for index in meeting.modules}
        if _compiles_on(self.device):
            notes = {index: _untraced(note) for index, note in notes.items()}
        hooks = {
            index: module.register_forward_pre_hook(notes[index], with_kwargs=True)
            for index, module in meeting.modules.items()
        }
        self._run(one_token, meeting, self._model)
        shapes: list[RotaryShape] = []
        tables: dict[int, int] = {}
        rotary_of: dict[int, int] = {}
        for index, hook in hooks.items():
            cos = meeting.rotaries.get(index)
            if cos is not None and id(cos) not in tables:
                tables[id(cos)] = len(shapes)  # one layer notes it for all that share it
                shapes.append(RotaryShape(cos.shape[-1], cos.dtype, cos.device))
            else:
                hook.remove()
            if cos is not None:
                rotary_of[index] = tables[id(cos)]
        return [meeting.shapes[index] for index in range(expected)], shapes, rotary_of

    @property
    def processor(self) -> Literal["cpu", "cuda"]:
        """What it runs on, as limits that differ are named by."""
        return "cuda" if self.device.type == "cuda" else "cpu"

    @property
    def num_layers(self) -> int:
        """Attention layers."""
        return len(self.layer_shapes)

    @property
    def every_layer(self) -> ExplainSpec:
        """Grad-ELLM's defaults, of all its layers."""
        return ExplainSpec(GradEllm(layers=tuple(range(self.num_layers))))

    @property
    def bytes_per_token(self) -> int:
        """Bytes of key-value memory that a token takes, on all devices together."""
        layers = sum(shape.bytes_per_token for shape in self.layer_shapes)
        return layers + sum(shape.bytes_per_token for shape in self._rotaries)

    def _try(self, what: str) -> bool:
        """Explain a token; whether that works. What is compiled for it is not compiled on every machine."""
        slot = self.pool.allocate_probe(2)
        try:
            run = self._step_pass([SequenceChunk.new(slot, [0], self.every_layer)])
            head = LogitHead(self._head)
            logits = head.run_model(lambda: self._recorded_run(run))
            ExplainedPass(logits, run, head.backward).heat_maps([Target(0)])
        except Exception as error:  # compilers raise anything
            logger.warning("%s: %s: %s", what, type(error).__name__, _in_short(error))
            return False
        finally:
            slot.close()
        return True

    def allocate_pool(self, num_tokens: int) -> None:
        """Make room for so many tokens of all sequences together."""
        aligned = SLOT_ALIGNMENT if self.batch_invariant else 1
        self.pool = KVPool(self.layer_shapes, self._rotaries, num_tokens, aligned)
        self.cuda_graphs = None
        if self._leaves_out is None:
            self._leaves_out = self.activation_cache.max_tokens > 0 and self._can_leave_out()

    def _can_leave_out(self) -> bool:
        """Whether nothing looks at attention's outputs in a pass of which all linear layers' are known.

        Tried with tokens whose attention gives NaN: a gate behind it, say, would make scores of that.
        """
        slot = self.pool.allocate_probe(_TRIED_TOKENS)
        try:
            self._leaves_out = True
            for token_id in range(_TRIED_TOKENS):
                self.step([SequenceChunk.new(slot, [token_id], replay_length=_TRIED_TOKENS)])
            part = SequenceChunk.replay(slot, 0, _TRIED_TOKENS, self.every_layer)
            if not self.activation_cache.is_cached([part]):
                return False
            (scores,) = self.replay([part], [Target(0)] * _TRIED_TOKENS)
            return bool(scores.isfinite().all())
        finally:
            slot.close()

    def use_graphs(self, recorder: GraphCapturer | None = None) -> None:
        """From now on, record decode steps and replay them: by CUDA graphs or, on a processor, as straight lines.

        Not where several devices share the model out, nor what cannot be recorded.
        """
        if recorder is None and self._is_on_one_device and self.ranks is None:
            if self.device.type == "cuda":
                recorder = CudaRecorder(self.device)
                self.compile()
            elif self.cpu_traces is None and not _is_placed(self._model):
                self.cpu_traces = self._tried_lines()
        if recorder is not None:
            self.cuda_graphs = CudaGraphCache(recorder, self._new_step_pass, self._recorded_run, self._head)

    def compile(self, backend: Backend = "inductor") -> None:
        """Have recorded steps use kernels that are compiled for them, as far as they can be here."""
        if self._fused is not None and not self._try("attention's kernels cannot be used, torch's own are"):
            self._fused = None
        if self._compiled is None:
            self._compiled = CompiledLayers(self.blocks, backend)
            if not self._try("layers cannot be compiled and run as they are"):
                self._compiled = None

    def _tried_lines(self) -> CpuTraceCache:
        """Straight lines, if one gives of another token, at another place, what the model gives, to the last bit."""
        slot = self.pool.allocate_probe(_TRIED_TOKENS)
        explain = self.every_layer
        lines = CpuTraceCache(lambda row, run: self._run(row, run, self._model)[0], self._head, uses_before=1)

        def explained(token_id: int) -> list[Tensor]:
            run = self.explained_pass([SequenceChunk.new(slot, [token_id], explain)])
            return [run.logits, *run.heat_maps([Target(token_id)])]

        try:
            self.cpu_traces = lines
            explained(0)
            by_line = explained(1)
            self.cpu_traces = None
            slot.ids.pop()
            if not all(map(torch.equal, by_line, explained(1))):
                lines.give_up("what was written down gives other numbers")
        except Exception as error:  # of what a family does that nobody has thought of; call by call it may work
            logger.warning("decode steps cannot be written down: %s: %s", type(error).__name__, _in_short(error))
            lines.give_up("see above")
        finally:
            self.cpu_traces = None
            slot.close()
        lines.uses_before = USES_BEFORE
        return lines

    @property
    def kernels(self) -> str:
        """What recorded steps are made of, in words."""
        attention = "torch's attention" if self._fused is None else "attention in kernels of its own"
        return f"{attention}, {'layers as they are' if self._compiled is None else 'compiled layers'}"

    def _recorded_run(self, run: BatchedPass) -> Tensor:
        """A step as it is recorded: the logits. [B T, V], or [B T, 2]"""
        with nullcontext() if self._compiled is None else self._compiled.used():
            return self._run(run.ids_and_positions, run, self._model)[0]

    def read(self, parts: Sequence[SequenceChunk]) -> None:
        """Read the parts' tokens into their slots; nothing else is wanted of them. Returns once they are read."""
        with torch.no_grad():
            last = self._forward(self._parts_pass(parts), parts, self._model.base_model)
        if last.is_cuda:  # a GPU works behind; who takes the time would charge it to the pass that waits for a result
            torch.cuda.synchronize(last.device)

    def step(self, parts: Sequence[SequenceChunk]) -> Tensor:
        """Read the parts' tokens; the logits of the token after each part's last. [B, V]"""
        with torch.no_grad():
            if self._takes_at_once(parts):
                recorded = self._recorded(parts)
                if recorded is not None:
                    return recorded.logits
                return self._logits(lambda: self._step_pass(parts), parts)[0]
            if all(len(part.ids) == 1 for part in parts):
                return self._logits(lambda: self._parts_pass(parts), parts)[0]
            run = self._parts_pass(parts)
            rows = torch.tensor([place.stop - 1 for place in run.row_slices], device=self.device)
            if self._chooses_logits:
                return self._forward(run, parts, self._model, logits_to_keep=rows)[0]
            return self._forward(run, parts, self._model)[0, rows]

    def logits(self, parts: Sequence[SequenceChunk]) -> Tensor:
        """Read the parts' tokens; the logits of the token after each of them. [T, V]"""
        with torch.no_grad():
            return self._forward(self._parts_pass(parts), parts, self._model)[0]

    def explained_pass(self, parts: Sequence[SequenceChunk], known: Sequence[Target] | None = None) -> ExplainedPass:
        """Read the parts' tokens with a graph that explains what comes after each of them, where a part says how.

        `known` are the targets of all tokens where they are known already; only their logits are then computed.
        """
        is_at_once = known is None and self._takes_at_once(parts)
        if is_at_once and (recorded := self._recorded(parts)) is not None:
            return recorded

        def new_pass() -> AttentionPass:
            if is_at_once:
                return self._step_pass(parts)
            return self._parts_pass(parts, graph_anchor=torch.zeros((), device=self.device, requires_grad=True))

        head = LogitHead(self._head, None if known is None else token_ids(known))
        logits, run = self._logits(new_pass, parts, head)
        return ExplainedPass(logits, run, head.backward)

    def replay(self, parts: Sequence[SequenceChunk], targets: Sequence[Target]) -> list[Tensor]:
        """Explain tokens whose targets are known: as `explained_pass`, at a lower price."""
        if self.cuda_graphs is not None and (recorded := self.cuda_graphs.step(parts)) is not None:
            return _on_host(recorded.replay(parts, targets))
        return self.explained_pass(parts, targets).heat_maps(targets)

    def is_long(self, num_tokens: int) -> bool:
        """Whether a sequence of `num_tokens` has the long rotary factors (`gradellm_engine.layers.rotary_switch`)."""
        return self.switch_tokens is not None and num_tokens > self.switch_tokens

    def read_anew(self, slot: KVSlot, ids: Sequence[int], *, is_long: bool) -> Iterator[None]:
        """Read a slot's sequence again, with the other rotary factors; stops after every pass."""
        slot.ids.clear()
        slot.is_long = is_long
        while unread := ids[slot.length : slot.length + _READ_TOKENS]:
            self.read([SequenceChunk.new(slot, unread)])
            yield

    def mean_of_heads(self, own: Tensor) -> Tensor:
        """The mean over a layer's heads, of the mean over those that are here. Any shape"""
        return own if self._sharing is None else self._sharing.all_reduce_sum(own) / self._sharing.size

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The model's modules, with their names."""
        modules: Iterator[tuple[str, nn.Module]] = self._model.named_modules()
        return modules

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's parameters, with their names."""
        parameters: Iterator[tuple[str, nn.Parameter]] = self._model.named_parameters()
        return parameters

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """What the model makes of tokens before its first layer. [..] -> [.., hidden]"""
        with torch.no_grad():
            embedded: Tensor = self._model.get_input_embeddings()(torch.as_tensor(ids, device=self.device))
        return embedded

    def full_sequence_logits(
        self, embeddings: Tensor, positions: Tensor, rows: Tensor, run: SequenceAttention
    ) -> Tensor:
        """Run sequences of embeddings [B, T, hidden] at `positions` [T]; logits of the tokens after `rows`. [B, n, V]

        Rotary factors are those of sequences of T tokens.
        Gradients are those of the caller's mode: by the embeddings, where they require one.
        """
        kwargs = {"logits_to_keep": rows} if self._chooses_logits else {}
        positions = self._coded(positions, embeddings.shape[1]).expand(embeddings.shape[:2])
        logits = self._call(self._model, run, inputs_embeds=embeddings, position_ids=positions, **kwargs)
        return logits if self._chooses_logits else logits[:, rows]

    def last_logits(
        self,
        embeddings: Tensor,
        lengths: Sequence[int],
        run: SharedPrefixAttention,
        changes: TokenSubstitutions | None = None,
    ) -> Tensor:
        """Logits of the token after each of B sequences that go on from what `run` says. [B, V]

        Args:
            embeddings: sequences of embeddings; what stands behind a shorter one's end is not looked at. [B, T, hidden]
            lengths: how long each is. All have the same rotary factors, as has what they go on from. [B]
            run: what they go on from.
            changes: where sequences differ, if it is in one way a position.
        """
        B, T = embeddings.shape[:2]
        factors = {self.is_long(run.length + length) for length in lengths}
        if len(factors | ({run.slot.is_long} if run.length else set())) > 1:
            raise ValueError("sequences with different rotary factors do not go through the model together")
        positions = self._coded(torch.arange(run.length, run.length + T, device=self.device), run.length + T)[None]
        lasts = torch.tensor(lengths) - 1
        hooks = [
            self.blocks[-1].register_forward_pre_hook(
                run.last_row_hook(lasts, self._last_queries if self._leaves_rows_out else None), with_kwargs=True
            ),
            # What follows may count on T rows; as views of one they take no memory, and the head reads one.
            self.blocks[-1].register_forward_hook(lambda block, args, output: output.expand(B, T, -1)),
            self._head.register_forward_pre_hook(lambda head, args: (args[0][:, -1:], *args[1:])),
        ]
        try:
            with torch.no_grad(), self._first_shared(run, changes):
                return self._call(self._model, run, inputs_embeds=embeddings, position_ids=positions)[:, 0]
        finally:
            for hook in hooks:
                hook.remove()

    def _coded(self, positions: Tensor, num_tokens: int) -> Tensor:
        """Positions in sequences of so many tokens, as the model takes them; see `rotary_switch.encode_positions`."""
        return ~positions if self.is_long(num_tokens) else positions

    def _first_shared(
        self, run: SharedPrefixAttention, changes: TokenSubstitutions | None
    ) -> AbstractContextManager[None]:
        """While the model runs for texts that are changed so."""
        its = self._first_layer
        if changes is None or its is None or its.supports_dedup is False or not self._leaves_rows_out:
            return nullcontext()
        return its.dedup_first_layer(run, changes)

    @property
    def _leaves_rows_out(self) -> bool:
        """Whether layers may compute some rows alone, by tricks with their modules: a GPU gains nothing by it."""
        return self.device.type == "cpu" and self._is_on_one_device and self.ranks is None

    def _takes_at_once(self, parts: Sequence[SequenceChunk]) -> bool:
        """Whether a `BatchedPass` is the faster way, and possible."""
        if not self._is_on_one_device or self.batch_invariant or not is_step(parts):
            return False
        if self.cuda_graphs is not None or self.device.type == "cuda":
            return True
        return len(parts) > 1 and max(part.end for part in parts) <= _GATHERED_WIDTH

    def _parts_pass(self, parts: Sequence[SequenceChunk], graph_anchor: Tensor | None = None) -> RaggedPass:
        kind = PerTokenPass if self.batch_invariant else RaggedPass
        return kind(parts, self._rotary_of, self._sharing, graph_anchor)

    def _new_step_pass(self, shape: StepShape) -> BatchedPass:
        return BatchedPass(self.pool, self._rotary_of, shape, self.device, self._fused, self._sharing)

    def _step_pass(self, parts: Sequence[SequenceChunk]) -> BatchedPass:
        run = self._new_step_pass(StepShape.of(parts))
        run.fill(parts)
        run.begin()
        return run

    def _recorded(self, parts: Sequence[SequenceChunk]) -> ExplainedPass | None:
        """A step by a recording, if there is one."""
        recorded = None if self.cuda_graphs is None else self.cuda_graphs.step(parts)
        if recorded is None:
            return None
        logits = recorded.read(parts)
        _hold(parts)
        return ExplainedPass(logits, recorded.run, recorded.explain)

    def _forward(self, run: AttentionPass, parts: Sequence[SequenceChunk], model: nn.Module, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """One pass through the model: its first output, for all tokens or for those it is told to. [1, T, .]"""
        run.output_is_used = not (self._leaves_out and self.activation_cache.is_cached(parts))
        with self._carried_out(parts):
            return self._run(run.ids_and_positions, run, model, **kwargs)

    @contextmanager
    def _carried_out(self, parts: Sequence[SequenceChunk]) -> Iterator[None]:
        """Around a pass: what linear layers give is kept or known, and afterwards slots hold what was new."""
        with self.activation_cache.during(parts):
            yield
        _hold(parts)

    def _logits(
        self, new_pass: Callable[[], AttentionPass], parts: Sequence[SequenceChunk], head: LogitHead | None = None
    ) -> tuple[Tensor, AttentionPass]:
        """One pass through the model and its head, and the pass; by a straight line, if there is one. [T, V] or [T, 2]

        Args:
            new_pass: makes it.
            parts: what it reads.
            head: the language-model head of an explained pass.
        """
        knows = self.activation_cache.is_cached(parts)

        def due() -> AttentionPass:
            run = new_pass()
            run.output_is_used = not (self._leaves_out and knows)
            return run

        run = due()
        with self._carried_out(parts):
            line = self._line(run, due, parts, knows=knows, has_columns=head is not None and head.has_columns)
            if line is not None:
                running = TraceContext(run, current_output_cache.get())
                logits = line.logits(running, self._head) if head is None else line.explained_logits(running, head)
            elif head is not None:
                logits = head.run_model(lambda: self._run(run.ids_and_positions, run, self._model)[0])
            else:
                logits = self._run(run.ids_and_positions, run, self._model)[0]
        return logits, run

    def _line(
        self,
        run: AttentionPass,
        due: Callable[[], AttentionPass],
        parts: Sequence[SequenceChunk],
        *,
        knows: bool,
        has_columns: bool,
    ) -> CpuTrace | None:
        """What runs a pass, where that is written down or can be now."""
        outputs = current_output_cache.get()
        notes = outputs is not None and any(part.is_new for part in parts)
        if self.cpu_traces is None or (outputs is not None and not (notes or knows)):
            return None
        num_rows = sum(len(part.ids) for part in parts)
        kind = TraceKey(num_rows, None if run.graph_anchor is None else run.lowest, notes, knows, has_columns)
        return self.cpu_traces.line(kind, due)

    def _run(self, ids_and_positions: Tensor, run: AttentionPass | _Meeting, model: nn.Module, **kwargs: Any) -> Tensor:  # noqa: ANN401 (passed on)
        row = ids_and_positions.to(self.device)
        return self._call(model, run, input_ids=row[:1], position_ids=row[1:], **kwargs)

    def _call(self, model: nn.Module, run: AttentionPass | _Meeting | SequenceAttention, **inputs: Any) -> Tensor:  # noqa: ANN401 (passed on)
        """What the model gives first, with `run` for its attention layers."""
        token = _current_pass.set(run)
        try:
            first: Tensor = model(use_cache=False, return_dict=True, **inputs)[0]
        finally:
            _current_pass.reset(token)
            if self._fanned_out is not None:
                self._fanned_out.clear()
        return first


def _fused_attention(device: torch.device) -> FusedAttention | None:
    """Kernels for attention on this device, where there are any."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from gradellm_engine.attention.fused import FusedAttention

    return FusedAttention(device)


def _in_short(error: Exception) -> str:
    """What it says, the beginning of what may be pages."""
    return " ".join(str(error).split())[:_LONGEST_REASON]


def _is_placed(model: nn.Module) -> bool:
    """Whether accelerate brings weights to where they are needed when they are."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _compiles_on(device: torch.device) -> bool:
    """Whether recorded steps are compiled there."""
    return device.type == "cuda"


def _untraced(function: Function) -> Function:
    """The same, which torch.compile leaves alone. Not done at import: to load the compiler takes a second."""
    untraced: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return untraced


def _blocks(model: nn.Module, attentions: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers of a model, by their attention modules: what holds each of them."""
    names = {id(module): name for name, module in model.named_modules()}
    return [model.get_submodule(names[id(module)].rpartition(".")[0]) for module in attentions]


def _noting_rotary(index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """A hook before an attention module that notes its rotary embedding, of new tokens in their slots."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current, embeddings = _current_pass.get(None), kwargs.get("position_embeddings")
        if embeddings is None or current is None:
            return
        if isinstance(current, _Meeting):
            current.rotaries[index] = embeddings[0]
        elif not isinstance(current, SequenceAttention):
            current.store_rotary(index, embeddings[0][0], embeddings[1][0])

    return note


def _hold(parts: Sequence[SequenceChunk]) -> None:
    """Their slots hold what was new."""
    for part in parts:
        if part.is_new:
            part.slot.ids += part.ids


def _on_host(heat_maps: list[Tensor]) -> list[Tensor]:
    """Heat maps in main memory, all of a GPU's in one transfer."""
    if not heat_maps or not heat_maps[0].is_cuda:
        return heat_maps
    together = torch.cat([heat_map.flatten() for heat_map in heat_maps])
    pinned = torch.empty(together.shape, dtype=together.dtype, pin_memory=True).copy_(together, non_blocking=True)
    torch.cuda.synchronize(together.device)
    shares: tuple[Tensor, ...] = torch.split(pinned, [heat_map.numel() for heat_map in heat_maps])
    return [share.view(heat_map.shape) for share, heat_map in zip(shares, heat_maps, strict=True)]
