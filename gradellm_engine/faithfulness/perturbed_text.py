"""A step's text, and the same text with some of its tokens zeroed, replaced or removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.settings import Removal


@dataclass(frozen=True)
class PerturbedText:
    """A perturbed text without the shared prefix that precedes it. Hashable: equal texts are run once.

    Attributes:
        ids: token ids. [T]
        zeroed: one byte a token: 1 where its embedding is zeroed. [T]
    """

    ids: tuple[int, ...]
    zeroed: bytes

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class StepText:
    """The text that a step's token is predicted from, without the shared prefix, and its perturbable tokens U.

    Attributes:
        step: index of the predicted token in the completion.
        ids: token ids. [T]
        indexes: U, as indexes into `ids`. [U]
        positions: U, as positions in prompt and completion. [U]
    """

    step: int
    ids: tuple[int, ...]
    indexes: NDArray[np.intp]
    positions: NDArray[np.intp]

    def zeroed(self, removed: NDArray[np.bool_]) -> PerturbedText:
        """The text with the embeddings of `removed` zeroed; the tokens keep their positions and stay attended.

        Args:
            removed: a mask over U. [U]
        """
        zeros = np.zeros(len(self.ids), dtype=np.uint8)
        zeros[self.indexes[removed]] = 1
        return PerturbedText(self.ids, zeros.tobytes())

    def without(self, removed: NDArray[np.bool_], removal: Removal, pad_id: int) -> PerturbedText:
        """The text without `removed`, as insertion and deletion perturb it.

        A model predicts nothing after an empty text: where no token would be left, the last one stays, zeroed.

        Args:
            removed: a mask over U. [U]
            removal: the replacement of a removed token.
            pad_id: the padding token, for `Removal.PAD`.
        """
        if removal is Removal.ZERO:
            return self.zeroed(removed)
        indexes = {int(index) for index in self.indexes[removed]}
        if removal is Removal.PAD:
            ids = tuple(pad_id if index in indexes else token_id for index, token_id in enumerate(self.ids))
        else:
            ids = tuple(token_id for index, token_id in enumerate(self.ids) if index not in indexes)
        return PerturbedText(ids, bytes(len(ids))) if ids else PerturbedText(self.ids[-1:], b"\1")
