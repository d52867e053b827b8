"""What the model would say next after changed texts, many of them at once.

All changed texts of an evaluation begin alike, with what stands before the first token that may be perturbed: template
and first token. The stream that is evaluated holds that beginning's keys and values, so it is not read again. What
follows goes through the model in large batches, sequences of similar length together; of each the last position alone
goes through the last layer and the head. Equal texts run once.

A text has the rotary factors of a sequence as long as itself (`gradellm_engine.layers.rotary_switch`). Where the
beginning's keys have others, as they do where tokens were taken away from a text that was longer, it is read as a
whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, repeat

import numpy as np
import torch
from torch import Tensor

from gradellm_engine.faithfulness.hellinger import probabilities
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.first_layer_reuse import TokenSubstitutions
from gradellm_engine.passes.shared_prefix import SharedPrefixAttention


@dataclass(frozen=True)
class PerturbedText:
    """A changed text, behind the common beginning. Equal ones are equal.

    Attributes:
        ids: its tokens.
        zeroed: one byte a token: 1 where its embedding is zero.
    """

    ids: tuple[int, ...]
    zeroed: bytes

    def __len__(self) -> int:
        return len(self.ids)


KEPT_BYTES = 2**25 - 2**16  # the most that glibc learns from
FIRST_TOKENS = 512  # of a first pass, whose time is not known yet


@dataclass
class PassBudget:
    """How much one pass may take; whoever runs it may change that between two passes.

    Attributes:
        most: tokens of all sequences together that there is memory for.
        sequences: how many there is memory for, however short: each has the common beginning's keys and values before
            it, and a distribution after it.
        tokens: how many tokens the next pass may take, if that is decided by time; one sequence at least.
        used: tokens of all passes so far.
        is_steady: whether passes are as large as memory allows, however long they take. What texts share a pass is then
            a function of the request alone; it moves the last digits of what comes out.
    """

    most: int
    sequences: int
    used: int = 0
    is_steady: bool = False

    def __post_init__(self) -> None:
        self.tokens = min(self.most, FIRST_TOKENS)

    @property
    def next_tokens(self) -> int:
        """How many tokens the next pass takes at most."""
        return self.most if self.is_steady else self.tokens


class PerturbationRunner:
    """Runs changed texts of one sequence.

    Attributes:
        first: where the common beginning ends. Of what follows, a part may be as it was.
        num_run: texts that were run.
    """

    def __init__(self, runner: ModelRunner, slot: KVSlot, first: int, allowance: PassBudget) -> None:
        self._runner, self._slot, self._allowance = runner, slot, allowance
        self.first = first
        self.num_run = 0
        _keep_memory()

    def run(self, texts: Sequence[PerturbedText]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Next-token distributions after each: places in `texts`, and the probabilities of those, [B, V].

        One batch between two results; the longest texts first. Batches are about equally full, for one of a few texts
        takes longer than its share.
        """
        waiting = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        for is_long, alike in groupby(waiting, lambda place: self._runner.is_long(self.first + len(texts[place]))):
            goes_on = not self.first or self._slot.is_long == is_long
            yield from self._run(texts, list(alike), self.first if goes_on else 0)

    def _run(
        self, texts: Sequence[PerturbedText], waiting: Sequence[int], first: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Those at `waiting`, with `first` tokens of the common beginning as the slot holds them, the others read."""
        before = tuple(self._slot.ids[first : self.first])
        done = 0
        while left := len(waiting) - done:
            longest = len(before) + len(texts[waiting[done]])
            most = max(1, min(self._allowance.sequences, self._allowance.next_tokens // longest))
            places = list(waiting[done : done + math.ceil(left / math.ceil(left / most))])
            done += len(places)
            chosen = [texts[place] for place in places]
            if before:
                chosen = [PerturbedText(before + text.ids, bytes(len(before)) + text.zeroed) for text in chosen]
            yield places, self._probabilities(chosen, first)

    def _probabilities(self, texts: Sequence[PerturbedText], first: int) -> Tensor:
        """[B, V]"""
        longest, device = max(len(text) for text in texts), self._runner.device
        flat = chain.from_iterable(chain(text.ids, repeat(0, longest - len(text))) for text in texts)
        ids = torch.from_numpy(np.fromiter(flat, np.int64, len(texts) * longest)).view(len(texts), longest)
        zeroed = b"".join(text.zeroed.ljust(longest, b"\0") for text in texts)
        gone = torch.frombuffer(bytearray(zeroed), dtype=torch.bool).view(len(texts), longest)
        embeddings = self._runner.embed(ids.flatten()).view(*ids.shape, -1).masked_fill(gone.to(device)[:, :, None], 0)
        lengths = [len(text) for text in texts]
        # A token whose embedding is zero is none of those that are there.
        changes = TokenSubstitutions.of(ids.masked_fill(gone, -1), lengths)
        run = SharedPrefixAttention(self._slot, first)
        self.num_run += len(texts)
        self._allowance.used += ids.numel()
        return probabilities(self._runner.last_logits(embeddings, lengths, run, changes))


def _keep_memory() -> None:
    """Have the process keep the memory of tensors that are no more, for those of the next layer.

    glibc takes the largest block that was given back for what will be asked for again. Else it returns memory to the
    system after every layer and gets it anew, which took up to a tenth of a batch's time. Nobody writes to the block.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
