"""Next-token distributions after many perturbed texts of one sequence.

All perturbed texts of an evaluation share a prefix: the chat template and the tokens before U. The request's KV slot
holds that prefix's keys and values, so passes read only what follows it, in batches of sequences of similar length. Of
each sequence only the last position goes through the last layer and the LM head.

A text has the rotary factors of its own length (`gradellm_engine.layers.rotary_switch`). Where the slot's keys were
rotated with other factors, as when tokens were removed from a longer text, the prefix is read again with the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, repeat

import numpy as np
import torch
from torch import Tensor

from gradellm_engine.faithfulness.metrics.hellinger import probabilities
from gradellm_engine.faithfulness.pass_budget import PassBudget
from gradellm_engine.faithfulness.perturbed_text import PerturbedText
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.first_layer_reuse import TokenSubstitutions
from gradellm_engine.passes.shared_prefix import SharedPrefixAttention

FREED_BLOCK_BYTES = 2**25 - 2**16  # glibc raises its mmap threshold to freed blocks of up to 32 MiB


class PerturbationRunner:
    """Runs perturbed texts of one sequence, whose KV slot holds the prefix that all texts share.

    Attributes:
        prefix_length: tokens of the shared prefix; the slot may hold more.
        num_run: texts run so far.
    """

    def __init__(self, runner: ModelRunner, slot: KVSlot, prefix_length: int, budget: PassBudget) -> None:
        self._runner, self._slot, self._budget = runner, slot, budget
        self.prefix_length = prefix_length
        self.num_run = 0
        _raise_mmap_threshold()

    def run(self, texts: Sequence[PerturbedText]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Run texts; yields after each pass the indexes in `texts` of its sequences, and their probabilities [B, V].

        The longest texts come first. Passes are about equally full, for a pass of few texts is slower per text.
        """
        by_length = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        for is_long, indexes in groupby(by_length, lambda index: self._is_long(texts[index])):
            can_reuse = not self.prefix_length or self._slot.is_long == is_long
            yield from self._run(texts, list(indexes), self.prefix_length if can_reuse else 0)

    def _is_long(self, text: PerturbedText) -> bool:
        return self._runner.is_long(self.prefix_length + len(text))

    def _run(
        self, texts: Sequence[PerturbedText], waiting: Sequence[int], num_reused: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Run the texts at `waiting`; the slot's first `num_reused` tokens are attended, not read again."""
        prefix = tuple(self._slot.ids[num_reused : self.prefix_length])
        num_done = 0
        while num_left := len(waiting) - num_done:
            longest = len(prefix) + len(texts[waiting[num_done]])
            most = max(1, min(self._budget.max_sequences, self._budget.next_tokens // longest))
            indexes = list(waiting[num_done : num_done + math.ceil(num_left / math.ceil(num_left / most))])
            num_done += len(indexes)
            batch = [texts[index] for index in indexes]
            if prefix:
                batch = [PerturbedText(prefix + text.ids, bytes(len(prefix)) + text.zeroed) for text in batch]
            yield indexes, self._probabilities(batch, num_reused)

    def _probabilities(self, texts: Sequence[PerturbedText], num_reused: int) -> Tensor:
        """Next-token distributions after the texts, in one pass. [B, V]"""
        longest, device = max(len(text) for text in texts), self._runner.device
        padded = chain.from_iterable(chain(text.ids, repeat(0, longest - len(text))) for text in texts)
        ids = torch.from_numpy(np.fromiter(padded, np.int64, len(texts) * longest)).view(len(texts), longest)
        zeroed_bytes = b"".join(text.zeroed.ljust(longest, b"\0") for text in texts)
        zeroed = torch.frombuffer(bytearray(zeroed_bytes), dtype=torch.bool).view(len(texts), longest)
        embeddings = self._runner.embed(ids.flatten()).view(*ids.shape, -1)
        embeddings = embeddings.masked_fill(zeroed.to(device)[:, :, None], 0)
        lengths = [len(text) for text in texts]
        # -1 is no token id: a zeroed embedding equals no token's embedding.
        substitutions = TokenSubstitutions.of(ids.masked_fill(zeroed, -1), lengths)
        attention = SharedPrefixAttention(self._slot, num_reused)
        self.num_run += len(texts)
        self._budget.used += ids.numel()
        return probabilities(self._runner.last_logits(embeddings, lengths, attention, substitutions))


def _raise_mmap_threshold() -> None:
    """Have glibc reuse the memory of freed tensors for those of the next layer.

    Freeing one large block raises glibc's dynamic mmap threshold to its size. Below the threshold, glibc returns freed
    memory to the system after every layer and maps it again, which took up to a tenth of a pass's time. The block's
    pages are never touched.
    """
    torch.empty(FREED_BLOCK_BYTES, dtype=torch.uint8)
