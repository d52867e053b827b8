"""One request: explained at once, late or not at all, resumed and undisturbed, stopped, closed and broken."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Lowercase
from torch import Tensor

from gradellm_engine import (
    Attribution,
    AttributionSettings,
    BusyError,
    ComputationError,
    Contrast,
    Delivery,
    Engine,
    FinishReason,
    GenerationIterator,
    GradEllm,
    InvalidRequestError,
    Message,
    NormaliseOver,
    PromptInput,
    Rectify,
    Resolution,
    Role,
    Rotary,
    Sampling,
    Segment,
    Sources,
    Step,
)
from gradellm_engine.attention.ops import AttentionState
from gradellm_engine.core.scheduler import MAX_PIECE_TOKENS
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.explained_pass import ExplainedPass
from gradellm_engine.passes.ragged import RaggedPass
from gradellm_engine.tokenization.words import WordCounter
from support.oracle import relative_error
from support.tiny_models import byte_tokenizer, save_random_model

PROMPT = "Once upon a time, a small red fox did not like rain."
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.2, top_k=80, top_p=0.95, seed=5)
PREFIX = AttributionSettings(sources=Sources.PREFIX)
ModelPath = Callable[[str], Path]

# With each token, or so many tokens at once: what is told is the same.
deliveries = pytest.mark.parametrize("chunk_size", [None, 1, 3, 16], ids=["per_token", "by 1", "by 3", "by 16"])


def delivered(settings: AttributionSettings, chunk_size: int | None) -> AttributionSettings:
    if chunk_size is None:
        return settings
    return replace(settings, delivery=Delivery.CHUNKED, chunk_size=chunk_size)


def same(a: Tensor, b: Tensor, chunk_size: int | None = None) -> bool:
    """To the last bit where the passes are the same; a token that is read in another company may round otherwise."""
    return torch.equal(a, b) if chunk_size is None else relative_error(a, b.double()) <= 1e-5


def forget_prefixes(engine: Engine) -> None:
    """Memory that holds nothing yet."""
    engine.model.runner.allocate_pool(engine.kv_tokens)


def row(step: Step) -> Tensor:
    assert step.attribution is not None
    return step.attribution.scores


def attribution(step: Step) -> Attribution:
    assert step.attribution is not None
    return step.attribution


def said(steps: Sequence[Step]) -> list[tuple[int | str | None, ...]]:
    """All of a step but its numbers."""
    return [(s.index, s.id, s.text, s.start, s.end, s.source_index, s.word) for s in steps]


def ended(generation: GenerationIterator) -> FinishReason:
    assert generation.finished is not None
    return generation.finished.reason


def completion(generation: GenerationIterator) -> str:
    list(generation)
    assert generation.finished is not None
    return generation.finished.text


@pytest.fixture(scope="module")
def demo(model_path: ModelPath) -> Engine:
    return Engine.load(str(model_path("demo")))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "method",
    [GradEllm(), GradEllm.preset("knockout", layers=1), GradEllm.preset("grad_eclip")],
    ids=["paper", "knockout", "grad_eclip"],
)
@deliveries
def test_explaining_changes_no_token(
    engine: Engine, sampling: Sampling, method: GradEllm, chunk_size: int | None
) -> None:
    plain = list(engine.generate(PROMPT, sampling))
    explained = list(engine.generate(PROMPT, sampling, delivered(AttributionSettings(method), chunk_size)))
    assert said(explained) == said(plain)
    assert [s.logprob for s in explained] == [s.logprob for s in plain]  # to the last bit
    assert all(s.attribution is None for s in plain)
    assert all(row(s).shape == (len(engine.tokenize(PROMPT).tokens),) for s in explained)


@deliveries
def test_late_scores_are_the_same(engine: Engine, chunk_size: int | None) -> None:
    """They belong to the prefix that their token was read off, however much came after it."""
    for settings in (PREFIX, replace(PREFIX, resolution=Resolution.WORD, contrast=Contrast(runner_up=True))):
        at_once = list(engine.generate(PROMPT, SAMPLED, settings))
        late = list(engine.generate(PROMPT, SAMPLED, delivered(settings, chunk_size)))
        assert said(late) == said(at_once)
        for a, b in zip(late, at_once, strict=True):
            assert row(a).shape == row(b).shape
            assert same(row(a), row(b), chunk_size)
            assert attribution(a).contrast_token_id == attribution(b).contrast_token_id


@deliveries
def test_steps_and_the_whole_agree(engine: Engine, chunk_size: int | None) -> None:
    forget_prefixes(engine)
    generation = engine.generate(PROMPT, replace(SAMPLED, num_alternatives=3), delivered(PREFIX, chunk_size))
    steps = list(generation)
    finished = generation.finished
    assert finished is not None
    assert finished.text == "".join(step.text for step in steps)
    assert [finished.text[s.start : s.end] for s in steps] == [s.text for s in steps]
    assert [s.index for s in steps] == list(range(12))
    assert finished.num_completion_tokens == finished.num_attributed_tokens == 12
    assert finished.num_prompt_tokens == len(generation.started.prompt.tokens)
    assert finished.num_reused_tokens == 0
    assert finished.queue_seconds >= 0
    assert finished.prefill_seconds > 0
    assert finished.decode_seconds > 0
    assert finished.attribution_seconds > 0 or chunk_size == 16  # see below
    for step in steps:
        best = step.alternatives
        assert len(best) == 3
        assert best[0].logprob >= best[1].logprob >= best[2].logprob
        assert step.logprob <= best[0].logprob
        assert all(a.logprob == step.logprob for a in best if a.id == step.id)


@pytest.mark.parametrize("kind", ["plain", "chunked", "completion"])
def test_the_last_pass_is_charged(engine: Engine, kind: str) -> None:
    chunk = delivered(AttributionSettings(), 16)
    generation = {
        "plain": lambda: engine.generate(PROMPT, replace(GREEDY, max_new_tokens=1)),
        "chunked": lambda: engine.generate(PROMPT, GREEDY, chunk),
        "completion": lambda: engine.attribute(PROMPT, "a fox", chunk),
    }[kind]()
    list(generation)
    assert generation.finished is not None
    assert generation.finished.decode_seconds > 0
    assert kind == "plain" or generation.finished.attribution_seconds > 0


def test_what_was_read_before_is_told(engine: Engine) -> None:
    forget_prefixes(engine)
    for num_reused in (0, 52):
        generation = engine.generate(PROMPT, GREEDY, PREFIX)
        list(generation)
        assert generation.finished is not None
        assert generation.finished.num_reused_tokens == num_reused
        assert (generation.finished.prefill_seconds > 0) == (num_reused == 0)


def test_the_engine_says_the_seed_that_it_chose(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=6, temperature=1.5)
    first = engine.generate(PROMPT, sampling)
    seed = first.started.sampling.seed
    assert seed is not None
    again = engine.generate(PROMPT, replace(sampling, seed=seed))
    assert said(list(first)) == said(list(again))
    assert engine.generate(PROMPT, sampling).started.sampling.seed != seed


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("rotary", "chunk_size"),
    [(Rotary.ROTATED, None), (Rotary.ROTATED, 3), (Rotary.UNROTATED, 1), (Rotary.UNROTATED, 16)],
)
def test_a_stream_is_resumed_at_every_place(
    engine: Engine, sampling: Sampling, rotary: Rotary, chunk_size: int | None
) -> None:
    sampling = replace(sampling, max_new_tokens=6)
    settings = AttributionSettings(GradEllm(rotary=rotary), sources=Sources.PREFIX, resolution=Resolution.WORD)
    settings = delivered(settings, chunk_size)
    whole_generation = engine.generate(PROMPT, sampling, settings)
    whole = list(whole_generation)
    ids = [step.id for step in whole]
    for split in range(len(ids) + 1):
        for first in {0, split // 2, split}:
            generation = engine.generate(PROMPT, sampling, settings, forced_ids=ids[:split], first_attribution=first)
            resumed = list(generation)
            assert said(resumed) == said(whole[first:])
            assert [s.is_new for s in resumed] == [s.index >= split for s in resumed]
            for a, b in zip(resumed, whole[first:], strict=True):
                assert relative_error(row(a), row(b).double()) <= 1e-5
                assert math.isclose(a.logprob, b.logprob, rel_tol=1e-4)
            assert generation.finished is not None
            assert whole_generation.finished is not None
            assert generation.finished.text == whole_generation.finished.text
            assert generation.finished.reason is whole_generation.finished.reason


def test_resuming_without_attribution_tells_new_tokens_alone(engine: Engine) -> None:
    ids = [step.id for step in engine.generate(PROMPT, GREEDY)]
    resumed = list(engine.generate(PROMPT, GREEDY, forced_ids=ids[:5], first_attribution=0))
    assert [step.id for step in resumed] == ids[5:]


@pytest.mark.parametrize("as_text", [False, True])
@deliveries
def test_attributing_a_completion_repeats_its_generation(demo: Engine, as_text: bool, chunk_size: int | None) -> None:
    generation = demo.generate(PROMPT, Sampling(max_new_tokens=12), PREFIX)
    steps = list(generation)
    assert generation.finished is not None
    given: Any = generation.finished.text if as_text else [s.id for s in steps]
    again = demo.attribute(PROMPT, given, replace(PREFIX, chunk_size=chunk_size))
    repeated = list(again)
    assert said(repeated) == said(steps)
    for a, b in zip(repeated, steps, strict=True):
        assert relative_error(row(a), row(b).double()) <= 1e-5
        assert math.isclose(a.logprob, b.logprob, rel_tol=1e-4, abs_tol=1e-5)
        assert a.is_new
    assert ended(again) is FinishReason.END_OF_COMPLETION


@pytest.mark.parametrize(
    ("model", "prompt", "text", "pieces"),
    [
        ("llama", "abc", "dé", ["d", "", "é"]),
        ("demo", "Once upon a", " time", [" time"]),
        ("stories260K", "Once upon a", " time", [" time"]),
        ("stories260K", "😀", "é", ["é"]),
        ("demo", "Once", "</s>", None),
    ],
)
def test_a_completion_is_tokenised_as_it_reads_after_the_prompt(
    model_path: ModelPath, model: str, prompt: str, text: str, pieces: list[str] | None
) -> None:
    engine = Engine.load(str(model_path(model)))
    generation = engine.attribute(prompt, text)
    steps = list(generation)
    if pieces is not None:
        assert [s.text for s in steps] == pieces
    ids = engine.tokenize(prompt).ids + [s.id for s in steps]
    assert engine.tokenize(PromptInput(prompt_ids=tuple(ids))).text.endswith(prompt + text)


def test_a_completion_that_would_read_otherwise_is_refused(model_path: ModelPath) -> None:
    """'t' and 'ime' are not the tokens of 'time', and 'ime' alone would begin with a space."""
    engine = Engine.load(str(model_path("stories260K")))
    with pytest.raises(InvalidRequestError, match="completion_ids") as caught:
        engine.attribute("Once upon a t", "ime")
    assert caught.value.field == "completion"


def test_a_completion_after_messages_and_ids(engine: Engine) -> None:
    for given in (PromptInput(messages=(Message("user", "hi"),)), PromptInput(prompt_ids=(256, 64, 65))):
        assert completion(engine.attribute(given, "yes")) == "yes"


@deliveries
def test_ends_of_text(engine: Engine, chunk_size: int | None) -> None:
    ids = [step.id for step in engine.generate(PROMPT, SAMPLED)]
    end = next(i for i, token_id in enumerate(ids) if i >= 3 and ids.count(token_id) == 1)
    ending = Engine(replace(engine.model, end_ids=frozenset({ids[end]})))
    generation = ending.generate(PROMPT, SAMPLED, delivered(PREFIX, chunk_size))
    assert [step.id for step in generation] == ids[: end + 1]
    assert ended(generation) is FinishReason.END_OF_TEXT
    # A completion that is only explained goes on behind it; so do forced tokens.
    assert len(list(ending.attribute(PROMPT, ids))) == len(ids)
    behind = ending.generate(PROMPT, SAMPLED, forced_ids=ids[: end + 3])
    assert [step.id for step in behind] == ids[end + 3 :]
    # Forced tokens that end with it end the completion.
    over = ending.generate(PROMPT, SAMPLED, forced_ids=ids[: end + 1])
    assert list(over) == []
    assert ended(over) is FinishReason.END_OF_TEXT


def test_the_model_s_own_end_is_a_special_token_without_text(engine: Engine) -> None:
    generation = engine.generate(PROMPT, GREEDY, forced_ids=[64, 257], attribution=PREFIX, first_attribution=0)
    a, end = list(generation)
    assert (a.text, a.special, end.text, end.special) == ("a", False, "", True)
    assert ended(generation) is FinishReason.END_OF_TEXT


def test_max_new_tokens(engine: Engine) -> None:
    for count in (1, 3):
        generation = engine.generate(PROMPT, replace(GREEDY, max_new_tokens=count))
        assert len(list(generation)) == count
        assert ended(generation) is FinishReason.MAX_NEW_TOKENS


@deliveries
def test_stop_texts_cut_the_completion(engine: Engine, chunk_size: int | None) -> None:
    settings = delivered(PREFIX, chunk_size)
    whole = engine.generate(PROMPT, SAMPLED, settings)
    steps = list(whole)
    text = completion(whole)
    for begin in range(0, len(text), 1 if chunk_size is None else 5):
        for end in (begin + 1, begin + 2):
            stop = text[begin:end]
            generation = engine.generate(PROMPT, replace(SAMPLED, stop=(stop, "never met")), settings)
            stopped = list(generation)
            at = text.index(stop)
            assert generation.finished is not None
            assert generation.finished.text == text[:at] == "".join(s.text for s in stopped)
            assert generation.finished.stop == stop
            assert ended(generation) is FinishReason.STOP_TEXT
            assert generation.finished.num_completion_tokens == len(stopped)
            assert [s.id for s in stopped] == [s.id for s in steps[: len(stopped)]]
            assert generation.finished.num_attributed_tokens == len(stopped)
            assert all(same(row(a), row(b), chunk_size) for a, b in zip(stopped, steps, strict=False))


@deliveries
def test_half_a_stop_text_at_the_end_loses_no_token(engine: Engine, chunk_size: int | None) -> None:
    settings = delivered(PREFIX, chunk_size)
    whole = list(engine.generate(PROMPT, SAMPLED, settings))
    last = next(s.text for s in reversed(whole) if s.text)
    held = list(engine.generate(PROMPT, replace(SAMPLED, stop=(last + "never",)), settings))
    assert said(held) == said(whole)
    assert all(same(row(a), row(b), chunk_size) for a, b in zip(held, whole, strict=True))


def test_forced_tokens_behind_a_stop_text_say_nothing(engine: Engine) -> None:
    forced = engine.tokenize("axbc").ids[1:]
    generation = engine.generate(PROMPT, replace(GREEDY, stop=("x",)), PREFIX, forced_ids=forced, first_attribution=0)
    steps = list(generation)
    assert [s.text for s in steps] == ["a", "", "", ""]
    assert completion(generation) == "a"
    assert ended(generation) is FinishReason.STOP_TEXT


@deliveries
def test_targets_and_contrasts_are_told(engine: Engine, chunk_size: int | None) -> None:
    at_once = delivered(AttributionSettings(), chunk_size)
    target = replace(at_once, target_token_id=7, contrast=Contrast(token_id=9))
    assert {
        (attribution(s).target_token_id, attribution(s).contrast_token_id)
        for s in engine.generate(PROMPT, GREEDY, target)
    } == {(7, 9)}
    for step in engine.generate(PROMPT, SAMPLED, at_once):
        assert (attribution(step).target_token_id, attribution(step).contrast_token_id) == (step.id, None)
    text = replace(at_once, contrast=Contrast(text="z"))
    assert attribution(next(iter(engine.generate(PROMPT, GREEDY, text)))).contrast_token_id == ord("z") - 33
    for step in engine.generate(
        PROMPT, replace(SAMPLED, num_alternatives=2), replace(at_once, contrast=Contrast(runner_up=True))
    ):
        assert attribution(step).contrast_token_id == next(a.id for a in step.alternatives if a.id != step.id)


@deliveries
def test_a_contrast_is_a_difference(engine: Engine, chunk_size: int | None) -> None:
    """Unrectified scores are linear in the target; a token against itself is nothing."""
    method = GradEllm(rectify=Rectify.NONE)

    def first(target: int, contrast: int | None = None) -> Tensor:
        settings = AttributionSettings(
            method, target_token_id=target, contrast=None if contrast is None else Contrast(token_id=contrast)
        )
        return row(next(iter(engine.generate(PROMPT, GREEDY, delivered(settings, chunk_size))))).double()

    assert relative_error(first(7, 9), first(7) - first(9)) <= 1e-4
    assert not first(7, 7).any()


@pytest.mark.parametrize("sources", Sources)
def test_words_and_segments_sum_their_tokens(engine: Engine, sources: Sources) -> None:
    given = PromptInput(prompt=PROMPT, segments=(Segment("who", 20, 33), Segment("first", 0, 4)))
    tokens = list(engine.generate(given, SAMPLED, AttributionSettings(sources=sources)))
    for resolution in (Resolution.WORD, Resolution.SEGMENT):
        generation = engine.generate(given, SAMPLED, AttributionSettings(sources=sources, resolution=resolution))
        columns = generation.started.sources
        labels = {s.label for s in columns}
        assert labels == (
            {"template", "user", "who", "first"} if resolution is Resolution.SEGMENT else {"", *PROMPT.split()}
        )
        for coarse, fine in zip(generation, tokens, strict=True):
            sums = [row(fine)[list(source.token_indexes)].sum() for source in columns]
            assert torch.allclose(row(coarse)[: len(columns)], torch.stack(sums), rtol=1e-5)
            assert torch.allclose(row(coarse).sum(), row(fine).sum(), rtol=1e-5)


@deliveries
@pytest.mark.parametrize("sources", Sources)
@pytest.mark.parametrize("stop", [(), ("a", "ue", "\ufffd")])
def test_words_are_those_of_the_finished_text(
    engine: Engine, sources: Sources, stop: tuple[str, ...], chunk_size: int | None
) -> None:
    """Told as they come, in chunks or resumed: texts of a random model, which breaks characters off as it likes."""
    settings = delivered(AttributionSettings(sources=sources, resolution=Resolution.WORD), chunk_size)
    sampling = replace(SAMPLED, max_new_tokens=24, stop=stop)
    steps = list(engine.generate(PROMPT, sampling, settings))
    counter = WordCounter()
    for step in steps:
        counter.push(step.text, special=step.special)
    counter.finish()
    for step, word in zip(steps, counter.words, strict=True):
        assert step.word == (word if step.text or step.special else None)
    if sources is Sources.PREFIX:  # a column a word
        num_columns = engine.generate(PROMPT, sampling, settings).started.prompt.words[-1] + 1
        assert [step.source_index for step in steps] == [num_columns + word for word in counter.words]
        for step in steps[1:]:
            assert len(row(step)) == num_columns + counter.words[step.index - 1] + 1
    rest = engine.generate(PROMPT, sampling, settings, forced_ids=[step.id for step in steps[:7]])
    assert said([step for step in rest if step.is_new]) == said(steps[7:])


@pytest.mark.parametrize("resolution", Resolution)
@deliveries
def test_rows_over_the_prefix_grow_with_their_columns(
    engine: Engine, resolution: Resolution, chunk_size: int | None
) -> None:
    """A row that comes late has no column for what came after its token."""
    settings = delivered(AttributionSettings(sources=Sources.PREFIX, resolution=resolution), chunk_size)
    generation = engine.generate(PROMPT, SAMPLED, settings)
    columns = len(generation.started.sources)
    for step in generation:
        assert row(step).shape == (columns,)
        assert step.source_index in (columns - 1, columns)
        columns = max(columns, (step.source_index or 0) + 1)
    assert all(s.source_index is None for s in engine.generate(PROMPT, GREEDY, AttributionSettings()))


@deliveries
def test_the_prompt_s_scores_are_the_same_with_and_without_the_prefix(engine: Engine, chunk_size: int | None) -> None:
    prompt = list(engine.generate(PROMPT, SAMPLED, delivered(AttributionSettings(), chunk_size)))
    prefix = list(engine.generate(PROMPT, SAMPLED, delivered(PREFIX, chunk_size)))
    assert all(torch.equal(row(a), row(b)[: len(row(a))]) for a, b in zip(prompt, prefix, strict=True))


def test_top_k_sources_are_the_largest_by_magnitude(engine: Engine) -> None:
    method = GradEllm(rectify=Rectify.NONE)
    whole = list(engine.generate(PROMPT, GREEDY, AttributionSettings(method, sources=Sources.PREFIX)))
    for count in (1, 5):
        settings = AttributionSettings(method, sources=Sources.PREFIX, top_k_sources=count)
        for step, full in zip(engine.generate(PROMPT, GREEDY, settings), whole, strict=True):
            indexes = attribution(step).source_indexes
            assert indexes is not None
            assert torch.equal(row(step), row(full)[indexes])
            assert row(step).abs().tolist() == sorted(row(full).abs().tolist(), reverse=True)[:count]
    settings = AttributionSettings(method, sources=Sources.PREFIX, top_k_sources=10_000)
    for step, full in zip(engine.generate(PROMPT, GREEDY, settings), whole, strict=True):
        assert attribution(step).source_indexes is None
        assert torch.equal(row(step), row(full))


def test_normalising_over_the_user_s_text_leaves_the_rest_at_zero(engine: Engine) -> None:
    given = PromptInput(messages=(Message("system", "Be nice."), Message("user", "a fox")))
    settings = AttributionSettings(GradEllm(normalise_over=NormaliseOver.USER), sources=Sources.PREFIX)
    generation = engine.generate(given, GREEDY, settings)
    is_user = torch.tensor([t.role is Role.USER and not t.special for t in generation.started.prompt.tokens])
    assert is_user.sum() == 5
    for step in generation:
        assert not row(step)[: len(is_user)][~is_user].any()
        assert not row(step)[len(is_user) :].any()
        assert row(step)[: len(is_user)][is_user].any()


@pytest.mark.parametrize("when", [0, 1, 4])
@deliveries
def test_closing_early_ends_it(engine: Engine, when: int, chunk_size: int | None) -> None:
    pool = engine.model.runner.pool
    generation = engine.generate(PROMPT, GREEDY, delivered(PREFIX, chunk_size))
    for _ in range(when):
        generation.advance()
    generation.close()
    generation.close()
    assert generation.advance() == []
    assert list(generation) == []
    assert generation.finished is None
    assert pool.num_free_tokens == pool.num_tokens
    assert len(list(engine.generate(PROMPT, GREEDY, PREFIX))) == 12


def test_a_generation_that_nobody_holds_is_closed(engine: Engine) -> None:
    pool = engine.model.runner.pool
    generation = engine.generate(PROMPT, GREEDY, PREFIX)
    generation.advance()
    assert pool.num_free_tokens < pool.num_tokens
    del generation
    assert pool.num_free_tokens == pool.num_tokens
    assert engine.scheduler.running == []


def test_generations_beyond_the_places_are_busy_and_go_on_later(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")), max_running=2)
    first, second, third = (engine.generate(PROMPT, GREEDY, PREFIX) for _ in range(3))
    first.advance()
    second.advance()
    with pytest.raises(BusyError):
        third.advance()
    steps = list(first)
    assert said(list(third)) == said(steps)
    second.close()


def test_closing_within_a_loop_ends_the_loop(engine: Engine) -> None:
    generation = engine.generate(PROMPT, GREEDY)
    seen = []
    for step in generation:
        seen.append(step.index)
        if step.index == 2:
            generation.close()
    assert seen == [0, 1, 2]


def test_generations_do_not_influence_each_other(engine: Engine) -> None:
    def requests() -> list[GenerationIterator]:
        return [
            engine.generate(PROMPT, SAMPLED, PREFIX),
            engine.generate("Another, longer prompt.", GREEDY, AttributionSettings(GradEllm.preset("grad_eclip"))),
            engine.generate(PROMPT, GREEDY),
            engine.attribute("Yes", "no, but yes", AttributionSettings(GradEllm.preset("knockout"))),
            engine.generate("Third", SAMPLED, delivered(PREFIX, 3)),
        ]

    alone = [list(generation) for generation in requests()]
    together: list[list[Step]] = [[] for _ in alone]
    open_ones = requests()
    while any(generation.finished is None for generation in open_ones):
        for steps, generation in zip(together, open_ones, strict=True):
            steps += generation.advance()
    for a, b in zip(alone, together, strict=True):
        assert said(a) == said(b)
        assert [s.logprob for s in a] == [s.logprob for s in b]
        assert all(torch.equal(row(x), row(y)) for x, y in zip(a, b, strict=True) if x.attribution)


def test_the_length_of_prefill_pieces_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(engine.generate(PROMPT, GREEDY, AttributionSettings(GradEllm.preset("grad_eclip"))))
    for chunk in (1, 7):
        monkeypatch.setitem(MAX_PIECE_TOKENS, "cpu", chunk)
        forget_prefixes(engine)
        generation = engine.generate(PROMPT, GREEDY, AttributionSettings(GradEllm.preset("grad_eclip")))
        silent = 0
        while not (told := generation.advance()):
            silent += 1
        assert silent == math.ceil((len(generation.started.prompt.tokens) - 1) / chunk)
        steps = told + list(generation)
        assert said(steps) == said(whole)
        for a, b in zip(steps, whole, strict=True):
            assert relative_error(row(a), row(b).double()) <= 1e-5


@deliveries
def test_nothing_of_a_pass_s_graph_outlives_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, chunk_size: int | None
) -> None:
    """Without the garbage collector's help: a graph in a cycle would fill a GPU before it comes round."""
    made: list[weakref.ref[ExplainedPass]] = []
    explained_pass = ModelRunner.explained_pass

    def watched(self: ModelRunner, *args: Any) -> ExplainedPass:
        explained = explained_pass(self, *args)
        made.append(weakref.ref(explained))
        return explained

    monkeypatch.setattr(ModelRunner, "explained_pass", watched)
    settings = delivered(AttributionSettings(GradEllm.preset("grad_eclip")), chunk_size)
    generation = engine.generate(PROMPT, replace(GREEDY, max_new_tokens=4), settings)
    gc.collect()
    gc.disable()
    try:
        for step in generation:
            assert made[-1]() is None
            assert not row(step).requires_grad
            assert not any(type(o) is AttentionState for o in gc.get_objects())
    finally:
        gc.enable()
    assert made
    parameters = list(engine.model.runner.model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in parameters)


@pytest.mark.parametrize(
    ("call", "field", "limit"),
    [
        (lambda e: e.tokenize("x" * 256), "input", "255"),
        (lambda e: e.generate("x" * 256), "input", "255"),
        (lambda e: e.attribute("x" * 256, "y"), "input", "255"),
        (lambda e: e.generate("x" * 99, Sampling(max_new_tokens=157)), "max_new_tokens", "156"),
        (lambda e: e.attribute("x" * 99, "y" * 157), "completion", "156"),
        (lambda e: e.attribute("x" * 99, [1] * 157), "completion", "156"),
        (lambda e: e.generate("x", GREEDY, forced_ids=[1] * 13), "forced_ids", "12"),
        (lambda e: e.generate("x", GREEDY, forced_ids=[1, 261]), "forced_ids[1]", "260"),
        (lambda e: e.generate("x", GREEDY, forced_ids=[1], first_attribution=2), "first_attribution", "1"),
        (lambda e: e.generate("x", GREEDY, forced_ids=[1], first_attribution=-1), "first_attribution", "1"),
        (lambda e: e.attribute("x", [-1]), "completion_ids[0]", "260"),
        (lambda e: e.attribute("x", []), "completion", "at least one"),
        (lambda e: e.attribute("x", ""), "completion", "empty"),
        (lambda e: e.attribute("x", "\ud800"), "completion", "surrogate"),
        (lambda e: e.generate(PromptInput(prompt_ids=(261,))), "input.prompt_ids[0]", "260"),
        (
            lambda e: e.generate("x", GREEDY, AttributionSettings(target_token_id=261)),
            "attribution.target_token_id",
            "260",
        ),
        (
            lambda e: e.generate("x", GREEDY, AttributionSettings(contrast=Contrast(token_id=-1))),
            "attribution.contrast.token_id",
            "260",
        ),
        (
            lambda e: e.generate("x", GREEDY, AttributionSettings(contrast=Contrast(text="\ud800"))),
            "attribution.contrast.text",
            "surrogate",
        ),
        (lambda e: e.generate("x", GREEDY, AttributionSettings(GradEllm(layers=(3,)))), "attribution.layers", "0 to 2"),
        (lambda e: e.generate("x", GREEDY, AttributionSettings(GradEllm(layers=4))), "attribution.layers", "3"),
    ],
)
def test_impossible_requests_name_their_field_and_the_limit(
    engine: Engine, call: Callable[[Engine], object], field: str, limit: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        call(engine)
    assert caught.value.field == field
    assert limit in caught.value.description


def test_tokens_that_the_model_has_no_embedding_for(tmp_path: Path) -> None:
    """On a GPU, reading one would end the process's use of it."""
    path = save_random_model(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["fox"])
    tokenizer.save_pretrained(path)
    engine = Engine.load(str(path))
    contrast = AttributionSettings(contrast=Contrast(text="fox"))
    calls: dict[str, Callable[[], GenerationIterator]] = {
        "input": lambda: engine.generate("a fox"),
        "completion": lambda: engine.attribute("a", " fox"),
        "attribution.contrast.text": lambda: engine.generate("a", GREEDY, contrast),
    }
    for field, call in calls.items():
        with pytest.raises(InvalidRequestError, match=r"token 261.*ends at 260") as caught:
            call()
        assert caught.value.field == field


def test_a_full_context(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")), context_tokens=8)
    assert (engine.max_prompt_tokens, engine.max_new_tokens) == (7, 7)
    assert len(list(engine.generate("abcdef", attribution=PREFIX))) == 1
    assert len(list(engine.generate("a"))) == 6
    with pytest.raises(InvalidRequestError, match="at most 1 are possible"):
        engine.generate("abcdef", Sampling(max_new_tokens=2))
    with pytest.raises(InvalidRequestError, match="the limit is 7"):
        engine.generate("abcdefg")


def test_a_prompt_of_one_token(engine: Engine) -> None:
    (step, *_) = engine.generate(PromptInput(prompt_ids=(256,)), GREEDY, AttributionSettings())
    assert row(step).tolist() == [0.0]  # nothing to compare it with: maximum and minimum are one
    unloosened = AttributionSettings(GradEllm.preset("unloosened"))
    assert next(iter(engine.generate(PromptInput(prompt_ids=(256,)), GREEDY, unloosened))).attribution is not None


def test_unrotated_is_refused_where_a_family_has_layers_without_a_rotary_embedding(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("gpt2")))
    with pytest.raises(InvalidRequestError, match="gpt2") as caught:
        engine.generate("x", GREEDY, AttributionSettings(GradEllm.preset("grad_eclip")))
    assert caught.value.field == "attribution.rotary"


def test_numbers_that_break_while_running(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")))
    weight: Tensor = engine.model.runner.model.model.layers[1].mlp.down_proj.weight
    whole = weight.clone()
    expected = list(engine.generate(PROMPT, GREEDY, PREFIX))
    generation = engine.generate(PROMPT, GREEDY, PREFIX)
    steps = [next(iter(generation))]
    weight.data.fill_(math.nan)
    with pytest.raises(ComputationError, match="not finite at step 1"):
        steps += generation
    assert generation.advance() == []  # it is over, and not taken up half way
    assert list(generation) == []
    assert generation.finished is None
    for broken in (engine.generate(PROMPT, GREEDY), engine.attribute(PROMPT, "x")):
        with pytest.raises(ComputationError, match="step 0"):
            list(broken)
    weight.data.copy_(whole)
    again = list(engine.generate(PROMPT, GREEDY, PREFIX))
    assert said(again) == said(expected)
    assert all(torch.equal(row(a), row(b)) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_scores_that_are_not_finite(engine: Engine, monkeypatch: pytest.MonkeyPatch, chunk_size: int | None) -> None:
    monkeypatch.setattr(RaggedPass, "heat_maps", lambda self: [torch.tensor([[1.0, math.inf]])])
    with pytest.raises(ComputationError, match="attribution of token 0 is not finite"):
        list(engine.generate("a", GREEDY, delivered(AttributionSettings(), chunk_size)))


def test_half_precision_is_explained_like_single(model_path: ModelPath) -> None:
    path = str(model_path("demo"))
    single = Engine.load(path, dtype="float32")
    ids = [s.id for s in single.generate(PROMPT, Sampling(max_new_tokens=4))]
    expected = [row(s).double() for s in single.attribute(PROMPT, ids)]
    for dtype, tolerance in (("float64", 1e-4), ("bfloat16", 0.3)):
        other = Engine.load(path, dtype=dtype)
        for step, wanted in zip(other.attribute(PROMPT, ids), expected, strict=True):
            assert relative_error(row(step), wanted) <= tolerance
            assert row(step).dtype in (torch.float32, torch.float64)


def test_a_completion_must_read_as_it_was_given(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")))
    engine.model.tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert [step.text for step in engine.attribute("a", "bc")] == ["b", "c"]
    with pytest.raises(InvalidRequestError, match=r"completion: its tokens read 'bc', which is not what was given"):
        engine.attribute("a", "Bc")


# Contrasts and stop texts as words -----------------------------------------------------------------------------------


def test_a_contrast_is_the_token_that_could_stand_in_the_target_s_place(demo: Engine) -> None:
    """Words that begin with a space are set against one that does, others against one that does not."""
    plain, spaced = demo.model.tokenizer.convert_tokens_to_ids(["a", "Ġa"])
    assert None not in (plain, spaced)
    explained = AttributionSettings(contrast=Contrast(text="a"))
    found = set()
    for step in demo.attribute("The film is", " so good. It", explained):
        expected = spaced if step.text.startswith(" ") else plain
        assert attribution(step).contrast_token_id == expected
        found.add(expected)
    assert found == {plain, spaced}
    exactly = AttributionSettings(contrast=Contrast(text=" a"))
    assert {attribution(s).contrast_token_id for s in demo.attribute("The film is", " so good. It", exactly)} == {
        spaced
    }


def test_a_contrast_of_several_tokens_is_refused_with_what_they_are(demo: Engine) -> None:
    with pytest.raises(InvalidRequestError, match=r"is \d tokens \(\d+ '.*'.*\), and a contrast is one") as caught:
        demo.generate("The film is", GREEDY, AttributionSettings(contrast=Contrast(text="goodgood")))
    assert caught.value.field == "attribution.contrast.text"
    with pytest.raises(InvalidRequestError, match="the limit is 15"):
        demo.generate("The film is", GREEDY, AttributionSettings(contrast=Contrast(text="good" * 9)))


@pytest.mark.parametrize(
    ("forced", "stop", "text"),
    [([64, 259], "<|user|>", "a"), ([64, 65, 259, 66], "b<|user|>c", "a"), ([64, 258], "<|sys", "a")],
)
def test_a_stop_text_may_hold_special_tokens(engine: Engine, forced: list[int], stop: str, text: str) -> None:
    generation = engine.generate("x", Sampling(max_new_tokens=8, stop=(stop,)), forced_ids=forced)
    list(generation)
    finished = generation.finished
    assert finished is not None
    assert (finished.reason, finished.stop, finished.text) == (FinishReason.STOP_TEXT, stop, text)
