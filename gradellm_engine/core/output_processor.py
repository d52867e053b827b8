"""Turns a request's tokens and scores into its output events, in order.

A token is emitted once its text is final: a part of a character waits for the rest, and text that could begin a stop
text waits for what follows. Scores are emitted after their token, once the columns of all earlier tokens are final.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from gradellm_engine.core.outputs import Alternative, Attribution, Step
from gradellm_engine.core.request_spec import RequestSpec
from gradellm_engine.core.sampler import Distribution
from gradellm_engine.errors import ComputationError
from gradellm_engine.params import AttributionSettings
from gradellm_engine.passes.base import Target
from gradellm_engine.tokenization.detokenizer import CompletionText
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.sources import Source, SourceMap
from gradellm_engine.tokenization.words import WordCounter


@dataclass(frozen=True)
class _ScoreRow:
    """Scores of a token that have not been emitted.

    Attributes:
        scores: one a token of its prefix, on the CPU. [S]
        target: the logit that they explain.
        error: the method's own error estimate.
    """

    scores: Tensor
    target: Target
    error: float | None


class OutputProcessor:
    """The output of one request.

    Attributes:
        num_attributed: tokens whose scores have been added.
    """

    def __init__(self, encoder: TextEncoder, spec: RequestSpec) -> None:
        self._encoder, self._special_ids = encoder, encoder.special_ids
        sampling = spec.sampling
        self._num_alternatives, self._skip_special_tokens = sampling.num_alternatives, sampling.skip_special_tokens
        settings = spec.attribution or AttributionSettings()
        self._top_k = settings.top_k_sources
        self._source_map = SourceMap(spec.prompt, settings)
        self._text = CompletionText(
            self._decode,
            spec.prompt.ids,
            () if spec.is_completion else sampling.stop,
            self._special_token_text,
            num_unstopped=sampling.min_new_tokens,
            may_end_later=spec.following is not None,
        )
        self._is_special: list[bool] = []  # of each token of the completion
        self._held: list[Step] = []  # tokens that have not been emitted
        self._words = WordCounter()
        self._num_counted = 0  # tokens that have been added to `_words`
        self._columns: list[int | None] = []  # of the first tokens of the completion
        self._rows: dict[int, _ScoreRow] = {}  # by token index
        self._is_finished = False
        self.num_attributed = 0

    @property
    def sources(self) -> tuple[Source, ...]:
        """The columns of scores over the prompt."""
        return self._source_map.sources

    @property
    def text(self) -> str:
        """The completion's text that has been emitted, or is about to be."""
        return self._text.text

    @property
    def stop(self) -> str | None:
        """The stop text that ended the completion, if any."""
        return self._text.stop

    def skip_token(self, token_id: int, *, has_text: bool = True) -> None:
        """Add a token that was emitted before this request: one that a resumed completion begins with."""
        self._is_special.append(token_id in self._special_ids)
        self._text.push(token_id, has_text=has_text)

    def add_token(
        self,
        token_id: int,
        distribution: Distribution,
        *,
        is_new: bool,
        has_text: bool = True,
        forced_by_grammar: bool = False,
    ) -> None:
        """Add the completion's next token, with the model's own distribution."""
        special = token_id in self._special_ids
        alternatives = tuple(
            Alternative(token.id, self._encoder.decode_alone(token.id), token.logprob)
            for token in distribution.top(self._num_alternatives)
        )
        step = Step(
            index=len(self._is_special),
            id=token_id,
            text="",  # set when it is emitted
            start=0,
            end=0,
            logprob=distribution.logprob(token_id),
            alternatives=alternatives,
            special=special,
            word=None,
            source_index=None,
            attribution=None,
            is_new=is_new,
            forced_by_grammar=forced_by_grammar,
        )
        self._is_special.append(special)
        self._text.push(token_id, has_text=has_text)
        self._held.append(step)

    def add_scores(self, index: int, target: Target, scores: Tensor, error: float | None = None) -> None:
        """Add a token's scores, one for each token of its prefix. [S]

        Raises:
            ComputationError: where a score is not finite.
        """
        scores = scores.cpu()
        if not scores.isfinite().all():
            raise ComputationError(f"the attribution of token {index} is not finite: the model's numbers overflow")
        self._rows[index] = _ScoreRow(scores, target, error)
        self.num_attributed += 1

    def finish(self) -> None:
        """The completion has ended: no text waits any longer."""
        self._text.finish()
        self._is_finished = True

    def take_ready(self) -> list[Step | Attribution]:
        """Tokens whose text is final, and scores of tokens that have been emitted."""
        first = len(self._is_special) - len(self._held)
        self._add_columns()
        count = max(0, len(self._columns) - first)
        events: list[Step | Attribution] = []
        for step in self._held[:count]:
            start, end = self._text.spans[step.index]
            events.append(
                replace(
                    step,
                    text=self._text.text[start:end],
                    start=start,
                    end=end,
                    word=self._words.words[step.index] if start < end or step.special else None,
                    source_index=self._columns[step.index],
                )
            )
        del self._held[:count]
        ready = sorted(index for index in self._rows if index < first + count)
        events += [self._attribution(index, self._rows.pop(index)) for index in ready]
        return events

    def _add_columns(self) -> None:
        """Add tokens whose text is final to the words, and to the sources of later tokens.

        Where a column is a word, a part of a character waits for the rest: its column is the character's.
        """
        for index in range(self._num_counted, self._text.num_safe_tokens):
            start, end = self._text.spans[index]
            self._words.push(self._text.text[start:end], special=self._is_special[index])
            self._num_counted += 1
        if self._is_finished:
            self._words.finish()
        words = self._words.words
        num_final = len(words) if self._source_map.takes_words else self._num_counted
        for index in range(len(self._columns), num_final):
            self._columns.append(self._source_map.add_generated(words[index] if index < len(words) else None))

    def _attribution(self, index: int, row: _ScoreRow) -> Attribution:
        """A token's scores by source; of all sources, or the `top_k_sources` largest by magnitude."""
        scores, target = self._source_map.aggregate(row.scores), row.target
        if self._top_k is None or self._top_k >= len(scores):
            return Attribution(index, scores, None, target.token_id, target.contrast_id, row.error)
        largest = scores.abs().topk(self._top_k).indices
        return Attribution(index, scores[largest], largest, target.token_id, target.contrast_id, row.error)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._encoder.decode(ids, skip_special_tokens=self._skip_special_tokens)

    def _special_token_text(self, token_id: int) -> str:
        """A special token as a stop text writes it; empty for tokens that have a text of their own."""
        if token_id not in self._special_ids or self._decode([token_id]):
            return ""
        return self._encoder.decode_alone(token_id)
