"""What linear layers gave tokens that will be read once more.

With delivery chunked a token goes through the model twice: by itself, to find the next one, and once more in a chunk,
to be explained. The second pass would read all weights forward and backward. Kept from the first, its linear layers'
outputs need not be computed again, so that a chunk of C tokens reads the weights once: 1 + 1/C reads a token instead
of 1 + 2/C, and the same numbers.

What is kept stays below a share of the model's own size: a chunk for which there is no room is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.linear import FrozenLinear, current_output_cache
from gradellm_engine.passes.base import SequenceChunk

SHARE_OF_WEIGHTS = 4  # what is kept takes at most a fourth of what the model takes


@dataclass
class _Recording:
    """Outputs of one pass, as they come.

    Attributes:
        layers: of which they are wanted.
        parts: whose tokens are wanted.
        rows: which tokens of the pass are wanted, None for all.
        num_tokens: of the pass.
        of: what each layer gave, and how often that had been written to.
        all: what they gave, told together.
    """

    layers: frozenset[nn.Module]
    parts: Sequence[SequenceChunk]
    rows: list[int] | None
    num_tokens: int
    of: dict[nn.Module, tuple[Tensor, int] | None] = field(default_factory=dict)
    all: Mapping[nn.Module, Tensor] | None = None

    def get(self, layer: nn.Module) -> Tensor | None:
        return None  # nothing is: it comes now

    def put(self, layer: nn.Module, output: Tensor) -> None:
        if layer not in self.layers:
            return
        is_first = layer not in self.of and output.shape[:-1] == (1, self.num_tokens)
        self.of[layer] = (output.detach(), output._version) if is_first else None

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        self.all = outputs

    def settled(self) -> Mapping[nn.Module, Tensor]:
        """After the pass: those that are still what the layers gave. [1, rows, out] each"""
        settled = self.all
        if settled is None:
            noted = {layer: its for layer, its in self.of.items() if its is not None}
            settled = {layer: output for layer, (output, version) in noted.items() if output._version == version}
        return settled if self.rows is None else {layer: output[:, self.rows] for layer, output in settled.items()}


@dataclass(frozen=True)
class _Row:
    """One token's share of the outputs of a pass.

    Attributes:
        of: what layers gave all its tokens. [1, rows, out] each
        index: which of them it is; None for the only one.
    """

    of: Mapping[nn.Module, Tensor]
    index: int | None

    def output(self, layer: nn.Module) -> Tensor | None:
        """What a layer gave it, None where that is not known. [1, 1, out]"""
        its = self.of.get(layer)
        return its if its is None or self.index is None else its[:, self.index : self.index + 1]


@dataclass
class _Chunk:
    """Tokens of a sequence that will be read again together.

    Attributes:
        room: for how many there is room; 0 where there was none for all of them.
        rows: those that have been read, by position.
    """

    room: int
    rows: dict[int, _Row] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cached:
    """Outputs of tokens that were read before, in the order of the pass."""

    rows: Sequence[_Row]

    def get(self, layer: nn.Module) -> Tensor | None:
        # A chunk is dozens of layers times dozens of rows.
        rows = [row.of.get(layer) if row.index is None else row.output(layer) for row in self.rows]
        return None if any(row is None for row in rows) else torch.cat(rows, dim=1)  # type: ignore[arg-type]

    def put(self, layer: nn.Module, output: Tensor) -> None:
        pass  # it came of what is known

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        pass


class ActivationCache:
    """What is kept, of all sequences.

    Attributes:
        max_tokens: that may be kept at a time.
    """

    def __init__(self, body: nn.Module) -> None:
        """`body` is the model without its head: of that, chunks need single logits."""
        self._layers = frozenset(module for module in body.modules() if type(module) is FrozenLinear)
        bytes_per_token = sum(layer.out_features * layer.weight.itemsize for layer in self._layers)
        nbytes = sum(parameter.nbytes for parameter in body.parameters())
        self.max_tokens = nbytes // SHARE_OF_WEIGHTS // bytes_per_token if self._layers else 0
        self._chunks: WeakKeyDictionary[KVSlot, _Chunk] = WeakKeyDictionary()

    @property
    def num_tokens(self) -> int:
        """Tokens for which room is taken."""
        return sum(chunk.room for chunk in self._chunks.values())

    @contextmanager
    def during(self, parts: Sequence[SequenceChunk]) -> Iterator[None]:
        """Around a pass: keep what layers give its tokens that will be read again, or reuse it where they are."""
        noted, known = self._to_note(parts), self._recalled(parts)
        token = current_output_cache.set(noted or known)
        try:
            yield
        finally:
            current_output_cache.reset(token)
        if noted is not None:
            settled = noted.settled()
            for row, part in enumerate(noted.parts):
                self._chunks[part.slot].rows[part.start] = _Row(settled, row if len(noted.parts) > 1 else None)

    def is_cached(self, parts: Sequence[SequenceChunk]) -> bool:
        """Whether all is known of all tokens of a pass: what every layer will give."""
        known = self._known(parts)
        return known is not None and all(len(row.of) == len(self._layers) for row in known.rows)

    def _to_note(self, parts: Sequence[SequenceChunk]) -> _Recording | None:
        wanted = [part.replay_length > 0 and self._has_room(part) for part in parts]
        if not any(wanted):
            return None
        ends = list(accumulate(len(part.ids) for part in parts))
        rows = [end - 1 for end, is_wanted in zip(ends, wanted, strict=True) if is_wanted]
        chosen = [part for part, is_wanted in zip(parts, wanted, strict=True) if is_wanted]
        return _Recording(self._layers, chosen, None if len(rows) == ends[-1] else rows, ends[-1])

    def _has_room(self, part: SequenceChunk) -> bool:
        """Whether the chunk that a token belongs to is kept; decided at its first token."""
        chunk = self._chunks.get(part.slot)
        if chunk is None:
            is_possible = self.num_tokens + part.replay_length <= self.max_tokens
            self._chunks[part.slot] = chunk = _Chunk(part.replay_length if is_possible else 0)
        elif len(chunk.rows) == chunk.room:  # it has grown since
            self._chunks[part.slot] = chunk = _Chunk(0)
        return chunk.room > 0

    def _recalled(self, parts: Sequence[SequenceChunk]) -> _Cached | None:
        """What is known of all tokens of the pass; it is forgotten with this."""
        known = self._known(parts)
        for part in parts:
            if not part.is_new:
                self._chunks.pop(part.slot, None)
        return known

    def _known(self, parts: Sequence[SequenceChunk]) -> _Cached | None:
        """What is known of all tokens of the pass; None where it is not of some."""
        rows: list[_Row | None] = []
        for part in parts:
            chunk = None if part.is_new else self._chunks.get(part.slot)
            rows += [chunk.rows.get(place) for place in range(part.start, part.end)] if chunk else [None]
        known = [row for row in rows if row is not None]
        return _Cached(known) if len(known) == len(rows) else None
