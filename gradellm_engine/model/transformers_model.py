"""A Transformers decoder under the engine's attention: frozen, patched, probed, and called.

The model's source stays unmodified: its attention is the engine's (`gradellm_engine.model.attention_interface`), and
some of its modules are replaced by faster ones of the same function.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.distributed.tensor_parallel import local_bytes, shard_to_local_linear
from gradellm_engine.errors import UnsupportedModelError
from gradellm_engine.layers.linear import fuse_shared_input_linears, pack_weights, packed_bytes
from gradellm_engine.layers.patches import add_relevance_rules, apply_patches
from gradellm_engine.layers.projection_skipping import LastTokenOnly
from gradellm_engine.layers.relevance_rules import RelevanceRules
from gradellm_engine.layers.rotary_switch import switch_tokens
from gradellm_engine.model.attention_interface import (
    ATTENTION_KERNEL,
    AttentionProbe,
    current_pass,
    register_untraced,
)
from gradellm_engine.model.families import FAMILIES, Family
from gradellm_engine.model.introspection import probe_layers
from gradellm_engine.passes.base import AttentionPass
from gradellm_engine.passes.first_layer_reuse import FirstLayer, TokenSubstitutions
from gradellm_engine.passes.full_sequence import SequenceAttention
from gradellm_engine.passes.shared_prefix import SharedPrefixAttention
from gradellm_engine.utils.memory import available_bytes

PACKED_SHARE = 0.25  # of the free memory, that packed copies of weights may take


class TransformersModel:
    """A frozen decoder whose attention layers call the pass that runs.

    Attributes:
        model: the decoder.
        config: its configuration, the text part of it.
        lm_head: its language-model head.
        blocks: its decoder layers, in order.
        first_layer: the first of them, which texts that differ in few tokens can share; None in a model of one layer.
        device: where tokens enter the model.
        is_on_one_device: whether all layers are on that device.
        ranks: the tensor-parallel process group; None for a single process.
        head_ranks: the same, where ranks share the attention heads of a layer; None where every rank has all heads.
        layer_shapes: what each attention layer stores in the KV cache.
        rotaries: the rotary embeddings that the KV cache stores with them.
        rotary_of: which of `rotaries` a layer takes, by layer index.
        has_plain_attention: whether no layer's attention has a soft cap or sinks.
        patches: what was replaced in `model`, in order.
        relevance_rules: the rules of relevance of activations and gates, in passes that propagate it.
        batch_invariant: whether results do not depend on batch composition.
        switch_tokens: the longest sequence with the short rotary factors; None where no sequence has long ones.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ranks: ProcessGroup | None = None,
        *,
        batch_invariant: bool = False,
        memory_bytes: int | None = None,
    ) -> None:
        """Take over `model`: freeze it, put it in evaluation mode and give it the engine's attention.

        Args:
            model: the decoder.
            ranks: the tensor-parallel process group, if the weights are sharded.
            batch_invariant: see `gradellm_engine.layers.batch_invariant`.
            memory_bytes: a limit of the memory of this process, which packed copies of weights keep to.

        Raises:
            UnsupportedModelError: if some layer's attention does not go through Transformers' AttentionInterface, or
                the model has no language-model head.
        """
        model.requires_grad_(False).eval()
        model.set_attn_implementation(ATTENTION_KERNEL)
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no language-model head")
        self.model = model
        self.config: Any = model.config.get_text_config(decoder=True)
        self.lm_head: nn.Module = head
        self.device = model.get_input_embeddings().weight.device
        self.ranks = self.head_ranks = ranks
        self.batch_invariant = batch_invariant
        self._memory_bytes = memory_bytes
        self.switch_tokens = switch_tokens(model.config)
        self._copy_to_parallel = None if ranks is None else shard_to_local_linear(model, ranks)
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.relevance_rules = RelevanceRules()
        probe = AttentionProbe()
        with torch.no_grad():
            self._patch_model(probe)
            layout = probe_layers(model, probe, self._run_probe, is_compiled=compiles_layers(self.device))
        if ranks is not None and layout.num_heads == {self.config.num_attention_heads}:
            self.head_ranks = None  # this family's plan keeps all heads on every rank
        self.blocks, self.layer_shapes = layout.blocks, layout.layer_shapes
        self.rotaries, self.rotary_of = layout.rotaries, layout.rotary_of
        self.has_plain_attention = probe.is_plain
        self.first_layer = FirstLayer(self.blocks[0], layout.attentions[0]) if len(self.blocks) > 1 else None
        self._last_token_only = LastTokenOnly(layout.attentions[-1])
        gates = FAMILIES.get(self.config.model_type, Family()).gates
        add_relevance_rules(model, self.relevance_rules, gates or ())
        self.is_on_one_device = {shape.device for shape in self.layer_shapes} == {self.device}

    def _patch_model(self, probe: AttentionProbe) -> None:
        """Replace modules by frozen ones that compute the same faster, or batch-invariantly."""
        is_compiled = compiles_layers(self.device)
        if is_compiled:
            register_untraced()
        # Layers that are compiled are as fast with torch's own modules.
        self.patches = apply_patches(self.model, rotary_switch=self.switch_tokens, replaces_layers=not is_compiled)
        fuse_shared_input_linears(self.model, lambda: self._run_probe(probe))
        if self.batch_invariant:
            self.patches += apply_patches(self.model, batch_invariant=True)
        elif not is_compiled:
            num_ranks = 1 if self.ranks is None else self.ranks.size
            free = available_bytes(limit=self._memory_bytes)
            self.patches += pack_weights(self.model, self.lm_head, int(PACKED_SHARE * free / num_ranks))

    @property
    def processor(self) -> Literal["cpu", "cuda"]:
        """The kind of device, by which limits are looked up."""
        return "cuda" if self.device.type == "cuda" else "cpu"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, of those in this process."""
        return local_bytes(self.model)

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed copies of weights."""
        return packed_bytes(self.model)

    @property
    def num_layers(self) -> int:
        """Attention layers."""
        return len(self.layer_shapes)

    def is_long(self, num_tokens: int) -> bool:
        """Whether a sequence of `num_tokens` has the long rotary factors (`gradellm_engine.layers.rotary_switch`)."""
        return self.switch_tokens is not None and num_tokens > self.switch_tokens

    def _run_probe(self, probe: AttentionProbe) -> None:
        self.forward_tokens(torch.zeros((2, 1), dtype=torch.long), probe, self.model)

    def forward_tokens(
        self,
        row: Tensor,
        run: AttentionPass | AttentionProbe,
        model: nn.Module,
        **kwargs: Any,  # noqa: ANN401 (passed on)
    ) -> Tensor:
        """The first output of `model` for token ids and positions [2, T], with `run` for its attention. [1, T, .]"""
        row = row.to(self.device)
        return self.forward(model, run, input_ids=row[:1], position_ids=row[1:], **kwargs)

    def forward(
        self,
        model: nn.Module,
        run: AttentionPass | AttentionProbe | SequenceAttention,
        **inputs: Any,  # noqa: ANN401 (passed on)
    ) -> Tensor:
        """The first output of `model`, which is the decoder or its base model, with `run` for its attention."""
        rows = False if isinstance(run, AttentionProbe | SequenceAttention) else run.relevance_rows
        token = current_pass.set(run)
        try:
            with self.relevance_rules.during(rows):
                first: Tensor = model(use_cache=False, return_dict=True, **inputs)[0]
        finally:
            current_pass.reset(token)
            if self._copy_to_parallel is not None:
                self._copy_to_parallel.clear()
        return first

    def mean_of_heads(self, local: Tensor) -> Tensor:
        """The mean over a layer's heads, from the mean over this rank's heads. Any shape"""
        return local if self.head_ranks is None else self.head_ranks.all_reduce_sum(local) / self.head_ranks.size

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The model's modules, with their names."""
        modules: Iterator[tuple[str, nn.Module]] = self.model.named_modules()
        return modules

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's parameters, with their names."""
        parameters: Iterator[tuple[str, nn.Parameter]] = self.model.named_parameters()
        return parameters

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Token embeddings. [..] -> [.., hidden]"""
        with torch.no_grad():
            embedded: Tensor = self.model.get_input_embeddings()(torch.as_tensor(ids, device=self.device))
        return embedded

    def full_sequence_logits(
        self, embeddings: Tensor, positions: Tensor, rows: Tensor, run: SequenceAttention
    ) -> Tensor:
        """Logits of the tokens after `rows` of sequences of embeddings; differentiable in the embeddings. [B, n, V]

        Args:
            embeddings: [B, T, hidden]
            positions: of the tokens. [T]
            rows: n token indices.
            run: computes attention.
        """
        kwargs = {"logits_to_keep": rows} if self._takes_logits_to_keep else {}
        positions = self._coded(positions, embeddings.shape[1]).expand(embeddings.shape[:2])
        logits = self.forward(self.model, run, inputs_embeds=embeddings, position_ids=positions, **kwargs)
        return logits if self._takes_logits_to_keep else logits[:, rows]

    def last_logits(
        self,
        embeddings: Tensor,
        lengths: Sequence[int],
        run: SharedPrefixAttention,
        changes: TokenSubstitutions | None = None,
    ) -> Tensor:
        """Logits of the token after each of B sequences that continue the prefix of `run`. [B, V]

        Args:
            embeddings: of the sequences, padded on the right. [B, T, hidden]
            lengths: of the sequences. All have the same rotary factors, and so has the prefix. [B]
            run: computes attention, over the prefix as well.
            changes: which of two tokens each sequence has at a position, if that is how they differ.

        Raises:
            ValueError: if the sequences have different rotary factors.
        """
        B, T = embeddings.shape[:2]
        factors = {self.is_long(run.length + length) for length in lengths}
        if len(factors | ({run.slot.is_long} if run.length else set())) > 1:
            raise ValueError("sequences with different rotary factors cannot go through the model in one pass")
        positions = self._coded(torch.arange(run.length, run.length + T, device=self.device), run.length + T)[None]
        lasts = torch.tensor(lengths) - 1
        hooks = [
            self.blocks[-1].register_forward_pre_hook(
                run.last_row_hook(lasts, self._last_token_only if self._skips_rows else None), with_kwargs=True
            ),
            # What follows may count on T rows; as views of one they take no memory, and the head reads one.
            self.blocks[-1].register_forward_hook(lambda block, args, output: output.expand(B, T, -1)),
            self.lm_head.register_forward_pre_hook(lambda head, args: (args[0][:, -1:], *args[1:])),
        ]
        try:
            with torch.no_grad(), self._shared_first_layer(run, changes):
                return self.forward(self.model, run, inputs_embeds=embeddings, position_ids=positions)[:, 0]
        finally:
            for hook in hooks:
                hook.remove()

    def _coded(self, positions: Tensor, num_tokens: int) -> Tensor:
        """Positions in sequences of `num_tokens`, as the model takes them; see `rotary_switch.encode_positions`."""
        return ~positions if self.is_long(num_tokens) else positions

    def _shared_first_layer(
        self, run: SharedPrefixAttention, changes: TokenSubstitutions | None
    ) -> AbstractContextManager[None]:
        """While sequences that differ by `changes` go through the model."""
        layer = self.first_layer
        if changes is None or layer is None or layer.supports_dedup is False or not self._skips_rows:
            return nullcontext()
        return layer.dedup_first_layer(run, changes)

    @property
    def _skips_rows(self) -> bool:
        """Whether layers may compute some of their rows alone, by patching their modules: on a GPU it saves no time."""
        return self.device.type == "cpu" and self.is_on_one_device and self.ranks is None


def compiles_layers(device: torch.device) -> bool:
    """Whether captured steps run layers compiled by torch.compile on this device."""
    return device.type == "cuda"
