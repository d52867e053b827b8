"""Value zeroing (Mohebbi et al. 2023): how much a layer's output changes when one token's value vector is zeroed.

In each layer by itself, token i's value is zeroed in all heads, while attention weights and the layer's input are kept.
The score is 1 - cosine between the layer's outputs at the explained position before and after, the mean over layers.

Zeroing a value subtracts A_i v_i from the attention's output and changes nothing else. So a single pass covers all
layers, with one sequence of one token for each token of the prefix: attention returns o - A_i v_i, the layer's output
is compared with the original one, and the original is passed on to the next layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm, AttentionState, grouped_matmul
from gradellm_engine.methods.hooks import Hook, hooked
from gradellm_engine.methods.post_hoc import CompletionModel, Objective, ScoreStream, StepScores
from gradellm_engine.params import LayerSwitches
from gradellm_engine.passes.full_sequence import FullSequenceAttention, SequenceAttention, ungrouped


@dataclass(frozen=True)
class ValueZeroing(LayerSwitches):
    """Switches: layers."""

    name: ClassVar[str] = "value_zeroing"


def explain(model: CompletionModel, switches: ValueZeroing) -> ScoreStream:
    """1 - cosine of layer outputs, for each token of the prefix."""
    completion, layers = model.completion, switches.explicit_layers
    attended: dict[int, AttentionState] = {}
    with torch.no_grad(), _record_outputs(model) as outputs:
        model.values(model.embeddings[None], Objective.LOGIT, FullSequenceAttention(watch=attended.__setitem__))
    originals = {index: output[0].clone() for index, output in outputs.items()}  # [T, h]
    total = 1 + completion.num_steps
    yield 1 / total
    for done, step in enumerate(completion.steps):
        scores = torch.zeros(completion.prefix_length(step), dtype=torch.float32)
        at_once = max(1, min(completion.prefix_length(step), model.sequences_per_pass() * completion.num_tokens))
        for start in range(0, completion.prefix_length(step), at_once):
            tokens = range(start, min(completion.prefix_length(step), start + at_once))
            changes = _output_changes(model, step, tokens, layers, attended, originals)
            scores[tokens.start : tokens.stop] = changes.mean(0).float().cpu()
            yield (1 + done + tokens.stop / completion.prefix_length(step)) / total
        yield StepScores(step, scores)


def _output_changes(
    model: CompletionModel,
    step: int,
    tokens: range,
    layers: tuple[int, ...],
    attended: dict[int, AttentionState],
    originals: dict[int, Tensor],
) -> Tensor:
    """1 - cosine for each layer and zeroed token. [layers, tokens]"""
    position = model.completion.prefix_length(step) - 1
    attention = ValueZeroingAttention(position, tokens, attended)
    x = model.embeddings[position].expand(len(tokens), 1, -1)
    positions = torch.tensor([position], device=model.device)
    changes = []

    def compare(index: int, output: Tensor) -> Tensor:
        original = originals[index][position]
        if index in layers:
            cosines = torch.cosine_similarity(output[:, 0].float(), original.float(), dim=-1)
            changes.append((1 - cosines).clamp_min(0))
        return original.expand_as(output)

    with torch.no_grad(), _replaced_outputs(model, compare):
        model.runner.full_sequence_logits(x, positions, torch.zeros_like(positions), attention)
    return torch.stack([change.to(model.device) for change in changes])


@dataclass
class ValueZeroingAttention(SequenceAttention):
    """Attention at one position, with one sequence for each zeroed token.

    Attributes:
        position: the explained position.
        tokens: the zeroed tokens.
        attended: each layer's attention over the whole sequence.
    """

    position: int
    tokens: range
    attended: dict[int, AttentionState]

    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """O - A_i v_i for each zeroed token i. [N, 1, H, Dv]"""
        forward, tokens = self.attended[index], slice(self.tokens.start, self.tokens.stop)
        A = forward.A[0, :, :, self.position, tokens]  # [G, r, N]
        V = forward.V[0, :, tokens]  # [G, N, Dv]
        zeroed = torch.einsum("grn,gnd->ngrd", A, V)
        o = grouped_matmul(forward.A[0, :, :, self.position, None], forward.V[0])[:, :, 0] - zeroed  # [N, G, r, Dv]
        return ungrouped(o[..., None, :].to(query.dtype))


@contextmanager
def _record_outputs(model: CompletionModel) -> Iterator[dict[int, Tensor]]:
    """Record each layer's output [B, T, h] for the duration of the block."""
    outputs: dict[int, Tensor] = {}

    def record(index: int, output: Tensor) -> Tensor:
        outputs[index] = output
        return output

    with _replaced_outputs(model, record):
        yield outputs


def _replaced_outputs(model: CompletionModel, replace: Callable[[int, Tensor], Tensor]) -> AbstractContextManager[None]:
    """Replace each layer's output by `replace(index, output)` for the duration of the block."""

    def hook_of(index: int) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401 (a tensor, or a tuple)
            if isinstance(output, Tensor):
                return replace(index, output)
            return (replace(index, output[0]), *output[1:])

        return hook

    return hooked((block, hook_of(index)) for index, block in enumerate(model.runner.blocks))
