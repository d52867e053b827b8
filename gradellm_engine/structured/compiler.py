"""Compiles grammars for one model's tokenizer: within limits, away from the thread that runs the model, and once.

Compilation is bounded by sizes (`settings`, `schema_check`) and llguidance's own limits. A grammar that takes longer
than COMPILE_SECONDS nevertheless is refused; its thread ends by itself.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import cached_property

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from gradellm_engine.errors import BusyError, InvalidRequestError
from gradellm_engine.structured.grammar_source import compile_error, grammar_source
from gradellm_engine.structured.settings import FIELD, StructuredOutput
from gradellm_engine.structured.state import AllowedTokens, EndTokens, GrammarState
from gradellm_engine.tokenization.encoder import TextEncoder, interruption_point

COMPILE_SECONDS = 2.0
COMPILE_THREADS = 2
MASK_THREADS = 2
WAIT_SECONDS = 0.05  # between two looks whether the caller still waits
MAX_CACHED_GRAMMARS = 64
MAX_CACHED_CHARACTERS = 4 << 20  # of all sources together
# A lexer's state takes up to 2 kB; llguidance's own limit is 250,000.
MAX_LEXER_STATES = 20_000


@dataclass(frozen=True)
class _CompiledGrammar:
    """A compiled grammar.

    Attributes:
        matcher: at its start; copied for each request.
        allowed: the tokens that are allowed first.
    """

    matcher: LLMatcher
    allowed: AllowedTokens


class GrammarCompiler:
    """Compiles grammars, and keeps those that were used last.

    Args:
        encoder: the model's tokenizer.
        vocab_size: tokens of the model.
        end_ids: tokens that end a text.
        is_follower: whether this rank repeats what rank 0 has compiled in time: it has no time limit of its own.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        vocab_size: int,
        end_ids: Collection[int],
        *,
        is_follower: bool = False,
    ) -> None:
        self._encoder, self._vocab_size, self._end_ids = encoder, vocab_size, end_ids
        self._time_limit = None if is_follower else COMPILE_SECONDS
        self._lock = threading.Lock()
        self._cache: OrderedDict[StructuredOutput, _CompiledGrammar] = OrderedDict()
        self._compiling = ThreadPoolExecutor(COMPILE_THREADS, "gradellm-grammar")
        self._masks = ThreadPoolExecutor(MASK_THREADS, "gradellm-mask")

    def prepare(self) -> None:
        """Read the tokenizer now: for a large vocabulary that takes seconds, in which no other thread runs Python."""
        if self._end_ids:
            with self._lock:
                _ = self._tokenizer

    def start(self, settings: StructuredOutput, forced_ids: Sequence[int] = ()) -> GrammarState:
        """The state of a new request, after the tokens that its completion begins with.

        Raises:
            InvalidRequestError: where the grammar cannot be compiled, or does not allow the tokens.
            BusyError: where all threads compile grammars of other requests.
        """
        if not self._end_ids:
            raise InvalidRequestError(FIELD, "this model has no token that ends a text, which structured output needs")
        self.prepare()
        compiled = self._compiled(settings)
        matcher = compiled.matcher.deep_copy()
        state = GrammarState(settings, matcher, self._end, self._vocab_size, self._masks, compiled.allowed)
        state.advance_all(forced_ids)
        return state

    @cached_property
    def _end(self) -> EndTokens:
        own = self._encoder.tokenizer.eos_token_id
        return EndTokens(self._end_ids, own if own in self._end_ids else min(self._end_ids))

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """The tokenizer, as llguidance reads it."""
        core = self._encoder.core
        num_tokens = max(self._vocab_size, core.get_vocab_size(with_added_tokens=True))
        others = sorted(token_id for token_id in self._end_ids if token_id != self._end.first)
        try:
            return LLTokenizer(core.to_str(), n_vocab=num_tokens, eos_token=[self._end.first, *others])
        except ValueError as error:
            raise InvalidRequestError(
                FIELD, f"this model's tokenizer does not support it: {str(error)[:200]}"
            ) from None

    def _compiled(self, settings: StructuredOutput) -> _CompiledGrammar:
        with self._lock:
            if (compiled := self._cache.get(settings)) is not None:
                self._cache.move_to_end(settings)
                return compiled
        compiled = self._await(settings, self._compiling.submit(self._compile, settings))
        with self._lock:
            self._cache[settings] = compiled
            while len(self._cache) > MAX_CACHED_GRAMMARS or self._num_cached_characters > MAX_CACHED_CHARACTERS:
                self._cache.popitem(last=False)
        return compiled

    @property
    def _num_cached_characters(self) -> int:
        return sum(settings.num_characters for settings in self._cache)

    def _await(self, settings: StructuredOutput, future: Future[_CompiledGrammar]) -> _CompiledGrammar:
        began = time.monotonic()
        while True:
            try:
                return future.result(WAIT_SECONDS)
            except FutureTimeoutError:
                if future.done():  # it ended between the two
                    continue
            interruption_point.get()()
            if self._time_limit is not None and time.monotonic() - began > self._time_limit:
                if future.cancel():
                    raise BusyError("other requests' grammars are being compiled; try again later")
                raise InvalidRequestError(
                    settings.field, f"was not compiled within {self._time_limit:g} seconds: simplify it"
                )

    def _compile(self, settings: StructuredOutput) -> _CompiledGrammar:
        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, grammar_source(settings), log_level=0, limits=limits)
        if matcher.is_error():
            raise compile_error(settings, matcher.get_error())
        start = GrammarState(settings, matcher.deep_copy(), self._end, self._vocab_size, self._masks)
        return _CompiledGrammar(matcher, start.allowed_tokens())
