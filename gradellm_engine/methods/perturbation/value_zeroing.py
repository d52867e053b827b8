"""Value zeroing (Mohebbi et al. 2023): how much a layer's output changes when nothing is taken from a token's value.

In each layer by itself, token i's value is zero in all heads while attention weights and the layer's input stay as
they are. The score is 1 - cosine between the layer's outputs at the explained position, before and after; the mean over
layers.

Zeroing a value takes A_i v_i out of the attention's output and changes nothing else in it. So one pass with a sequence
for each token of the prefix, one token long, does it for all layers: attention returns o - A_i v_i, and what the layer
makes of it is noted and put back to what the model made of it, for the next layer.
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
    """Which layers."""

    name: ClassVar[str] = "value_zeroing"


def explain(model: CompletionModel, switches: ValueZeroing) -> ScoreStream:
    """1 - cosine of layer outputs, a token of the prefix."""
    given, layers = model.given, switches.explicit_layers
    attended: dict[int, AttentionState] = {}
    with torch.no_grad(), _outputs(model) as outputs:
        model.values(model.embeddings[None], Objective.LOGIT, FullSequenceAttention(watch=attended.__setitem__))
    originals = {index: output[0].clone() for index, output in outputs.items()}  # [T, h]
    total = 1 + given.num_steps
    yield 1 / total
    for step in range(given.num_steps):
        scores = torch.zeros(given.prefix(step), dtype=torch.float32)
        at_once = max(1, min(given.prefix(step), model.sequences_a_pass() * given.num_tokens))
        for start in range(0, given.prefix(step), at_once):
            tokens = range(start, min(given.prefix(step), start + at_once))
            changes = _changes(model, step, tokens, layers, attended, originals)
            scores[tokens.start : tokens.stop] = changes.mean(0).float().cpu()
            yield (1 + step + tokens.stop / given.prefix(step)) / total
        yield StepScores(step, scores)


def _changes(
    model: CompletionModel,
    step: int,
    tokens: range,
    layers: tuple[int, ...],
    attended: dict[int, AttentionState],
    originals: dict[int, Tensor],
) -> Tensor:
    """1 - cosine, a layer and a token whose value is zero. -> [layers, tokens]"""
    position = model.given.prefix(step) - 1
    run = Zeroed(position, tokens, attended)
    x = model.embeddings[position].expand(len(tokens), 1, -1)
    places = torch.tensor([position], device=model.device)
    changes = []

    def compare(index: int, output: Tensor) -> Tensor:
        original = originals[index][position]
        if index in layers:
            cosines = torch.cosine_similarity(output[:, 0].float(), original.float(), dim=-1)
            changes.append((1 - cosines).clamp_min(0))
        return original.expand_as(output)

    with torch.no_grad(), _replaced_outputs(model, compare):
        model.runner.full_sequence_logits(x, places, torch.zeros_like(places), run)
    return torch.stack([change.to(model.device) for change in changes])


@dataclass
class Zeroed(SequenceAttention):
    """Attention at one position, of one sequence for each token whose value is zero; see `whole_pass.Attending`."""

    position: int
    tokens: range
    attended: dict[int, AttentionState]

    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """What is left of o without A_i v_i, for every token i. -> [N, 1, H, Dv]"""
        forward, tokens = self.attended[index], slice(self.tokens.start, self.tokens.stop)
        A = forward.A[0, :, :, self.position, tokens]  # [G, r, N]
        V = forward.V[0, :, tokens]  # [G, N, Dv]
        taken = torch.einsum("grn,gnd->ngrd", A, V)
        o = grouped_matmul(forward.A[0, :, :, self.position, None], forward.V[0])[:, :, 0] - taken  # [N, G, r, Dv]
        return ungrouped(o[..., None, :].to(query.dtype))


@contextmanager
def _outputs(model: CompletionModel) -> Iterator[dict[int, Tensor]]:
    """What layers put out. [B, T, h] each"""
    noted: dict[int, Tensor] = {}

    def note(index: int, output: Tensor) -> Tensor:
        noted[index] = output
        return output

    with _replaced_outputs(model, note):
        yield noted


def _replaced_outputs(model: CompletionModel, replace: Callable[[int, Tensor], Tensor]) -> AbstractContextManager[None]:
    """Layers put out what `replace` makes of their index and output."""

    def hook_of(index: int) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401 (a tensor, or a tuple)
            if isinstance(output, Tensor):
                return replace(index, output)
            return (replace(index, output[0]), *output[1:])

        return hook

    return hooked((block, hook_of(index)) for index, block in enumerate(model.runner.blocks))
