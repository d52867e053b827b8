"""Every type of rotary frequencies, past the length where some of them change: each sequence as if it ran alone.

What is right is Transformers' own full pass, without a cache, over one sequence as long as it is, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from gradellm_engine import (
    AttributionSettings,
    Delivery,
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    GradEllm,
    Metric,
    ModelLoadError,
    PromptInput,
    Removal,
    Request,
    Sampling,
    Sources,
    UnsupportedModelError,
)
from gradellm_engine.core import scheduler as scheduling
from gradellm_engine.layers import rotary_switch
from gradellm_engine.layers.rotary_switch import coded, context_limit, switch_tokens
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.model.loader import assemble
from gradellm_engine.params import Rotary
from gradellm_engine.passes.ragged import SequenceChunk, Target
from support.faithfulness_reference import Reference, Rows
from support.fake_cuda_graphs import TapeRecorder
from support.oracle import FamilyOracle, Oracle, heat_map, relative_error
from support.scheduler_harness import RequestOutput, finish, run, run_alone, scheduler_of
from support.tiny_models import byte_tokenizer, save_random_model

SWITCH, CONTEXT = 24, 64
TOLERANCE = 1e-9
ORACLE_TOLERANCE = 1e-5  # whose eager attention takes its softmax in float32
ORIGINAL = {"original_max_position_embeddings": SWITCH}


def longrope(width: int, **more: Any) -> dict[str, Any]:
    """Factors of a rotary embedding of so many channels that differ everywhere."""
    short = [1.0 + 0.1 * i for i in range(width // 2)]
    return {"rope_type": "longrope", "short_factor": short, "long_factor": [3 * its + 1 for its in short], **more}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {"rope_type": "default"}),
    "linear": ("llama", {"rope_type": "linear", "factor": 3.0}),
    "dynamic": ("llama", {"rope_type": "dynamic", "factor": 3.0}),
    "yarn": ("llama", {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, **ORIGINAL}),
    "llama3": (
        "llama",
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    ),
    "proportional": ("llama", {"rope_type": "proportional", "partial_rotary_factor": 0.5}),
    "longrope": ("llama", longrope(16, attention_factor=1.3, **ORIGINAL)),
    "longrope of phi3": ("phi3", longrope(8)),
    "longrope of some layers": (
        "gemma3_text",
        {"full_attention": longrope(16, rope_theta=1e4, **ORIGINAL), "sliding_attention": {"rope_type": "default"}},
    ),
}
LONGROPES = [name for name in CASES if "longrope" in name]
METHOD_CASES = ["longrope", "longrope of some layers"]
# Prompt tokens: all of it short; up to the last token that is; just past it; all of it long.
LENGTHS = [SWITCH - 6, SWITCH, SWITCH + 1, SWITCH + 9]
SETTINGS = AttributionSettings(sources=Sources.PREFIX)
CHUNKED = replace(SETTINGS, delivery=Delivery.CHUNKED, chunk_size=5)


def save(folder: Path, name: str, **overrides: Any) -> Path:
    """Weights large enough that tokens differ; context beyond the switch, where a cache can be exact there."""
    family, rope_parameters = CASES[name]
    if "rope_type" in rope_parameters:
        rope_parameters = {"rope_theta": 10000.0, **rope_parameters}
    context = {"max_position_embeddings": SWITCH if name == "dynamic" else CONTEXT}
    own = ORIGINAL if family == "phi3" else {}
    return save_random_model(
        folder, family, seed=1, rope_parameters=rope_parameters, initializer_range=0.15, **context, **own, **overrides
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: save(tmp_path_factory.mktemp("model"), name))


@pytest.fixture(scope="module")
def load(path: Callable[[str], Path]) -> Callable[..., Engine]:
    return cache(lambda name, **options: Engine.load(str(path(name)), dtype="float64", **options))


@pytest.fixture(scope="module")
def own_logits(path: Callable[[str], Path]) -> Callable[[str, Sequence[int]], Tensor]:
    """Transformers' logits after a sequence, as it is."""

    @cache
    def reference(name: str) -> Any:
        # Eager attention takes its softmax in float32.
        model = AutoModelForCausalLM.from_pretrained(path(name), dtype=torch.float64, attn_implementation="sdpa")
        return model.eval()

    def logits(name: str, ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            result: Tensor = reference(name)(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
        return result

    return logits


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are read in pieces that end neither at the switch nor together."""
    for name in ("MAX_PREFILL_CHUNK_TOKENS", "MIN_PREFILL_CHUNK_TOKENS"):
        monkeypatch.setattr(scheduling, name, {"cpu": 7, "cuda": 7})


def prompt_ids(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(1, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def prompt(length: int, seed: int = 0) -> PromptInput:
    return PromptInput(prompt_ids=prompt_ids(length, seed))


def stream(
    engine: Engine, length: int, attribution: AttributionSettings | None = None, seed: int = 0, num_tokens: int = 12
) -> Request:
    num_tokens = min(num_tokens, engine.context_tokens - length)
    return engine.generation_request(
        prompt(length, seed), Sampling(max_new_tokens=num_tokens, temperature=1.0, seed=seed), attribution
    )


def lengths_of(engine: Engine) -> list[int]:
    return [length for length in LENGTHS if length < engine.context_tokens] or [SWITCH - 6]


def assert_own(told: RequestOutput, ids: Sequence[int], logits: Callable[[Sequence[int]], Tensor]) -> None:
    """Each token was chosen from what Transformers' full pass gives of all before it."""
    assert told.error is None
    assert told.steps
    sequence = list(ids)
    for step in told.steps:
        expected = logits(sequence).log_softmax(-1)
        assert step.logprob == pytest.approx(expected[step.id].item(), abs=TOLERANCE), (len(sequence), step.index)
        sequence.append(step.id)


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_full_passes(load: Any, own_logits: Any, name: str) -> None:
    """Read in pieces and decoded across the switch: alone, beside others, and on from what was read before."""
    engine: Engine = load(name)
    lengths = lengths_of(engine)
    for length in lengths:
        told = run_alone(engine, stream(engine, length))
        assert_own(told, prompt_ids(length), lambda ids: own_logits(name, ids))
    scheduler = scheduler_of(engine, max_running=8, num_tokens=2000)
    beside = [*((length, 0) for length in lengths), (3, 1), (SWITCH - 3, 2)]  # those of seed 0 begin alike
    for attempt in range(2):  # the second time all prompts are known
        told_of = run(scheduler, [stream(engine, length, seed=seed) for length, seed in beside])
        for (length, seed), told in zip(beside, told_of, strict=True):
            assert_own(told, prompt_ids(length, seed), lambda ids: own_logits(name, ids))
            assert told.finished is not None
            if attempt and length > SWITCH - 6:
                assert told.finished.num_reused_tokens >= 16


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("attribution", [SETTINGS, CHUNKED], ids=["per token", "chunked"])
def test_attributions_are_those_of_full_passes(load: Any, path: Any, name: str, attribution: Any) -> None:
    """Beside another, across the switch: of generated and of given tokens."""
    engine: Engine = load(name)
    oracle = FamilyOracle(path(name))
    length = lengths_of(engine)[0]
    num_tokens = min(10, engine.context_tokens - length)
    scheduler = scheduler_of(engine, max_running=8, num_tokens=1000)
    generated, other = run(
        scheduler, [stream(engine, length, attribution, num_tokens=num_tokens), stream(engine, 5, attribution, seed=1)]
    )
    given = run(scheduler, [engine.attribution_request(prompt(length), generated.ids, attribution)])[0]
    for told, ids in ((generated, prompt_ids(length)), (given, prompt_ids(length)), (other, prompt_ids(5, 1))):
        assert told.error is None
        assert len(told.rows) == len(told.ids)
        for index, (token_id, row) in enumerate(zip(told.ids, told.rows, strict=True)):
            if told is other and index > 2:
                break
            prefix = [*ids, *told.ids[:index]]
            everywhere = torch.ones(len(prefix), dtype=torch.bool)
            expected = heat_map(oracle.layers(prefix, token_id), GradEllm(), everywhere, everywhere)
            assert expected.any()
            assert relative_error(row, expected) <= ORACLE_TOLERANCE, (index, len(prefix))


def test_keys_are_turned_back_by_their_own_factors(load: Any, path: Any) -> None:
    engine: Engine = load("longrope")
    oracle, switches = Oracle(path("longrope")), GradEllm(rotary=Rotary.UNROTATED)
    for attribution in (replace(SETTINGS, method=switches), replace(CHUNKED, method=switches)):
        told = run_alone(engine, stream(engine, SWITCH - 3, attribution, num_tokens=6))
        for index, (token_id, row) in enumerate(zip(told.ids, told.rows, strict=True)):
            prefix = [*prompt_ids(SWITCH - 3), *told.ids[:index]]
            everywhere = torch.ones(len(prefix), dtype=torch.bool)
            expected = heat_map(oracle.layers(prefix, token_id), switches, everywhere, everywhere)
            assert relative_error(row, expected) <= ORACLE_TOLERANCE


@pytest.mark.parametrize("name", LONGROPES)
def test_a_resumed_stream_goes_on_as_it_would_have(load: Any, name: str) -> None:
    """Taken up before, at and after the switch, with all or some of its tokens explained."""
    engine: Engine = load(name)
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=3)
    length = SWITCH - 5
    for attribution in (SETTINGS, CHUNKED):
        whole = run_alone(engine, engine.generation_request(prompt(length), sampling, attribution))
        for num_forced, first in ((3, 3), (5, 5), (6, 6), (9, 9), (9, 2)):
            again = engine.generation_request(
                prompt(length), sampling, attribution, forced_ids=whole.ids[:num_forced], first_attribution=first
            )
            told = run_alone(engine, again)
            assert told.ids == whole.ids[first:]
            for index, row in told.attributions.items():
                assert relative_error(row.scores, whole.attributions[index].scores.double()) <= 1e-7


@pytest.mark.parametrize("name", METHOD_CASES)
@pytest.mark.parametrize("method", sorted(name for name, row in METHODS.items() if row.explain is not None))
def test_methods_after_the_fact_explain_each_step_as_the_last(load: Any, name: str, method: str) -> None:
    """A completion across the switch has the rows of completions that end with each of its tokens."""
    engine: Engine = load(name)
    names = METHODS[method].switch_names
    switches: Any = METHODS[method].switches(
        **{key: value for key, value in {"samples": 4, "steps": 3, "seed": 1}.items() if key in names}
    )
    attribution = replace(SETTINGS, method=switches)
    length = SWITCH - 2
    completion = prompt_ids(6, seed=9)
    told = run_alone(engine, engine.attribution_request(prompt(length), completion, attribution))
    assert told.error is None
    assert list(told.attributions) == list(range(6))
    for count in (2, 3, 5):  # T is below the switch, at it, and beyond
        shorter = run_alone(engine, engine.attribution_request(prompt(length), completion[:count], attribution))
        its, expected = told.rows[count - 1], shorter.rows[-1]
        assert expected.any()
        assert relative_error(its, expected.double()) <= 1e-6, count


@pytest.mark.parametrize("name", METHOD_CASES)
def test_saliency_is_that_of_full_passes(load: Any, path: Any, name: str) -> None:
    engine: Engine = load(name)
    model: Any = AutoModelForCausalLM.from_pretrained(path(name), dtype=torch.float64, attn_implementation="sdpa")
    completion = prompt_ids(6, seed=9)
    told = run_alone(
        engine,
        engine.attribution_request(prompt(SWITCH - 2), completion, replace(SETTINGS, method=Saliency())),
    )
    for index, token_id in enumerate(completion):
        ids = [*prompt_ids(SWITCH - 2), *completion[:index]]
        x = model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
        at = torch.arange(len(ids))[None]
        (gradient,) = torch.autograd.grad(
            model(inputs_embeds=x, position_ids=at, use_cache=False).logits[0, -1, token_id], x
        )
        assert relative_error(told.rows[index], gradient[0].norm(dim=-1)) <= 1e-6


JUDGED = (
    EvaluatedMethod("within", GradEllm()),
    EvaluatedMethod("after", Saliency()),
)


@pytest.mark.parametrize(
    ("name", "removal", "length"),
    [
        ("longrope", Removal.ZERO, SWITCH - 2),
        ("longrope", Removal.REMOVE, SWITCH + 3),
        ("longrope of some layers", Removal.REMOVE, SWITCH - 2),
    ],
)
def test_evaluations_are_those_of_full_passes(load: Any, path: Any, name: str, removal: Any, length: int) -> None:
    """Texts on both sides of the switch, and texts that come to be short by what is taken away from them."""
    engine: Engine = load(name)
    given, completion = prompt(length), prompt_ids(5, seed=9)
    settings = EvaluationSettings(
        JUDGED,
        (Metric.PI_SOFT_NS, Metric.DELETION, Metric.INSERTION),
        positions=tuple(range(3, 9)),
        removal=removal,
        pis=(0.3, 0.7),
        samples=2,
        stride=2,  # before, at and after the switch
    )
    rows: Rows = {}
    for judged in JUDGED:
        assert judged.method is not None
        for step in range(0, len(completion), 2):
            # In an explanation of its own, of which the other tests tell that it is right.
            told = run_alone(
                engine,
                engine.attribution_request(given, completion[: step + 1], replace(SETTINGS, method=judged.method)),
            )
            rows[judged.name, step] = told.rows[-1].tolist()
    evaluated = Reference(path(name)).evaluate(engine.tokenize(given), completion, settings, rows)
    told = run_alone(engine, engine.evaluation_request(given, settings, completion))
    assert told.error is None
    items = [event for event in told.events if isinstance(event, EvaluationItem)]
    assert len(items) == len(evaluated.measured) == 3 * len(JUDGED) * 3
    for item in items:
        expected = evaluated.measured[item.step, item.name, item.metric]
        for point, samples in zip(item.points, expected.samples, strict=True):
            assert np.allclose(point.samples, samples, atol=1e-6), (item.step, item.name, item.metric)
        if item.metric.is_ranked:
            sure = [margin > 1e-7 for margin in expected.margins]
            assert all(
                not is_sure or ours == its for ours, its, is_sure in zip(item.flips, expected.flips, sure, strict=True)
            )


def test_after_an_evaluation_a_prefix_is_reused_with_its_own_factors(load: Any, own_logits: Any) -> None:
    """The slot was read anew for steps on the other side of the switch, and back again."""
    engine: Engine = load("longrope")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=1000)
    completion = prompt_ids(6, seed=9)
    settings = EvaluationSettings((EvaluatedMethod("within", GradEllm()),), (Metric.PI_SOFT_NS,), pis=(0.5,), samples=2)
    (told,) = run(scheduler, [engine.evaluation_request(prompt(SWITCH - 2), settings, completion)])
    assert told.error is None
    ids = (*prompt_ids(SWITCH - 2), *completion)
    (more,) = run(
        scheduler, [engine.generation_request(PromptInput(prompt_ids=ids), Sampling(max_new_tokens=3, seed=0))]
    )
    assert more.finished is not None
    assert more.finished.num_reused_tokens == len(ids) - 1
    assert_own(more, ids, lambda its: own_logits("longrope", its))


@pytest.mark.parametrize("name", LONGROPES)
def test_steps_are_recorded_with_the_factors_of_each_sequence(
    load: Any, own_logits: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As straight lines, and as on a GPU; there one recording takes sequences of either kind in any of its rows."""
    runner = load(name).model.runner
    assert runner.cpu_traces is not None
    assert runner.cpu_traces.is_possible
    explain = runner.every_layer
    sequences = {False: prompt_ids(SWITCH - 4), True: prompt_ids(SWITCH + 8, 1)}
    target = Target(7)
    found: dict[tuple[bool, ...], list[Tensor]] = {}
    for recorder in (None, TapeRecorder()):
        runner.allocate_pool(500)
        if recorder is not None:
            runner.use_graphs(recorder)
        for kinds in ((False, True), (True, False), (True, True), (False, False)):
            slots = [runner.pool.allocate_first(50, is_long=is_long) for is_long in kinds]
            for slot in slots:
                runner.read([SequenceChunk.new(slot, sequences[slot.is_long][:-2])])
            results: list[Tensor] = []
            for place in (-2, -1):
                run = runner.explained_pass(
                    [SequenceChunk.new(slot, [sequences[slot.is_long][place]], explain) for slot in slots]
                )
                results += [run.logits.clone(), *(its.clone() for its in run.heat_maps([target] * 2))]
            again = [SequenceChunk.again(slot, slot.length - 2, slot.length, explain) for slot in slots]
            results += [its.clone() for its in runner.replay(again, [target] * 4)]
            for logits, is_long in zip(results[3], kinds, strict=True):
                assert torch.allclose(logits, own_logits(name, sequences[is_long]), rtol=0, atol=TOLERANCE)
            for ours, theirs in zip(results, found.setdefault(kinds, results), strict=True):
                assert relative_error(ours, theirs) <= TOLERANCE
            for slot in slots:
                slot.close()
    assert recorder is not None
    assert recorder.num_recorded == 3  # a step forward and backward, and a chunk
    runner.allocate_pool(500)


@pytest.mark.parametrize("name", ["longrope", "longrope of phi3"])
def test_batch_invariant(load: Any, own_logits: Any, name: str) -> None:
    engine: Engine = load(name, batch_invariant=True)
    beside = [(SWITCH - 4, 0), (5, 1), (SWITCH + 4, 2), (SWITCH - 9, 3)]

    def new(index: int) -> Request:
        length, seed = beside[index]
        return stream(engine, length, CHUNKED if index % 2 else SETTINGS, seed=seed)

    alone = [run_alone(engine, new(index)) for index in range(len(beside))]
    together = run(scheduler_of(engine, max_running=4, num_tokens=1000), [new(i) for i in range(len(beside))])
    for (length, seed), its, other in zip(beside, together, alone, strict=True):
        assert_own(its, prompt_ids(length, seed), lambda ids: own_logits(name, ids))
        assert [step.logprob for step in its.steps] == [step.logprob for step in other.steps]
        assert all(map(torch.equal, its.rows, other.rows))


def test_placed_by_accelerate(path: Any, own_logits: Any) -> None:
    """Its hooks move what a rotary embedding is given."""
    model: Any = AutoModelForCausalLM.from_pretrained(path("longrope"), dtype=torch.float64)
    parts = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    parts += [f"model.layers.{index}" for index in range(len(model.model.layers))]
    spread = dispatch_model(model, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
    engine = Engine(assemble(spread, byte_tokenizer(), name="spread"))
    told = run(
        scheduler_of(engine, max_running=2, num_tokens=500),
        [stream(engine, length, SETTINGS, seed=length) for length in (SWITCH - 3, 5)],
    )
    for length, its in zip((SWITCH - 3, 5), told, strict=True):
        assert_own(its, prompt_ids(length, length), lambda ids: own_logits("longrope", ids))


def test_other_streams_go_on_while_keys_are_made_anew(load: Any) -> None:
    """No pass reads more than a piece of the sequence that becomes long."""
    engine: Engine = load("longrope")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=500)
    crossing, other = stream(engine, SWITCH - 2, num_tokens=20), stream(engine, 3, seed=1, num_tokens=40)
    for each in (crossing, other):
        scheduler.submit(each)
    was_long, num_between = False, 0
    while not crossing.is_closed:
        before = other.num_tokens
        for _ in scheduler.step():
            pass
        if crossing.slot is not None and crossing.slot.is_long and crossing.num_prefill_left:
            was_long = True
            num_between += other.num_tokens > before
    assert was_long
    assert num_between >= 2
    finish(scheduler, [other])


def test_a_sequence_that_becomes_long_goes_on_from_a_long_one(load: Any, own_logits: Any) -> None:
    """Also where another has read all of it already."""
    engine: Engine = load("longrope")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=500)
    for _ in range(2):
        (told,) = run(scheduler, [stream(engine, SWITCH - 2, num_tokens=20)])
        assert_own(told, prompt_ids(SWITCH - 2), lambda ids: own_logits("longrope", ids))


def test_prefixes_are_found_by_their_factors(load: Any) -> None:
    engine: Engine = load("longrope")
    engine.model.runner.allocate_pool(200)
    pool = engine.model.runner.pool
    ids = list(range(30))
    for is_long in (False, True):
        slot = pool.allocate(40, is_long=is_long)
        assert slot is not None
        slot.ids += ids[:20]
        slot.keep()
    assert pool.num_kept_tokens == 40  # neither tells of the other
    for is_long in (False, True):
        slot = pool.allocate(40, ids, is_long=is_long)
        assert slot is not None
        assert (slot.is_long, slot.length) == (is_long, 20)
        slot.close()
    other = pool.allocate(40, [7, *ids], is_long=True)
    assert other is not None
    assert other.length == 0


def test_positions_are_coded_and_read() -> None:
    assert coded(range(3), is_long=False) == [0, 1, 2]
    assert coded(range(3), is_long=True) == [-1, -2, -3]


@pytest.mark.parametrize("name", LONGROPES)
def test_both_sets_are_transformers_own(path: Any, name: str) -> None:
    """At every position, in one call: cosines and sines, with their scale."""
    model: Any = AutoModelForCausalLM.from_pretrained(path(name))
    rotary = model.model.rotary_emb
    types = [{"layer_type": each} for each in rotary.rope_type] if isinstance(rotary.rope_type, dict) else [{}]
    x = torch.zeros(1, 1, 1, dtype=torch.float64)
    short, far = torch.arange(SWITCH)[None], torch.arange(CONTEXT)[None]
    expected = [(rotary(x, short, **each), rotary(x, far, **each)) for each in types]
    rotary_switch.use_rotary_sets(model, SWITCH)
    positions = torch.cat((short, ~far), 1)
    for each, its in zip(types, expected, strict=True):
        for ours, parts in zip(model.model.rotary_emb(x, positions, **each), zip(*its, strict=True), strict=True):
            assert torch.equal(ours, torch.cat(parts, 1))


@pytest.mark.parametrize("name", LONGROPES)
def test_the_check_at_load_sees_wrong_factors(path: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = rotary_switch.RotarySets._frequencies_for

    def one_set(self: Any, last: int) -> dict[str, Tensor]:
        return own(self, 0)

    def swapped(self: Any, last: int) -> dict[str, Tensor]:
        return own(self, 2 * SWITCH - 1 - last)

    for wrong in (one_set, swapped):
        monkeypatch.setattr(rotary_switch.RotarySets, "_frequencies_for", wrong)
        with pytest.raises(UnsupportedModelError, match="logits differ from Transformers' own"):
            Engine.load(str(path(name)), dtype="float64")


def test_passes_do_not_mix_factors_in_one_beginning(load: Any) -> None:
    runner = load("longrope").model.runner
    assert (runner.is_long(SWITCH), runner.is_long(SWITCH + 1)) == (False, True)
    runner.allocate_pool(100)
    slot = runner.pool.allocate_first(50)
    runner.read([SequenceChunk.new(slot, list(range(20)))])
    from gradellm_engine.passes.full_sequence import SharedPrefixAttention

    embeddings = runner.embed([[1] * 8])
    with pytest.raises(ValueError, match="different rotary factors"):
        runner.last_logits(embeddings, [8], SharedPrefixAttention(slot, 20))
    slot.close()


def test_a_context_ends_where_keys_cannot_be_kept(path: Any) -> None:
    stages: list[str] = []
    engine = Engine.load(str(path("dynamic")), progress=stages.append)
    assert engine.info.context_tokens == SWITCH
    assert f"limiting the context to {SWITCH} tokens: rope_type dynamic changes all rotary frequencies" in stages[0]
    with pytest.raises(ModelLoadError, match=f"takes 2 to {SWITCH}: rope_type dynamic changes all rotary frequencies"):
        Engine.load(str(path("dynamic")), context_tokens=SWITCH + 1)


def test_layers_that_change_at_several_lengths_end_the_context_at_the_first(tmp_path: Path) -> None:
    full, sliding = (longrope(16, rope_theta=1e4, original_max_position_embeddings=its) for its in (24, 30))
    folder = save_random_model(
        tmp_path, "gemma3_text", rope_parameters={"full_attention": full, "sliding_attention": sliding}
    )
    stages: list[str] = []
    engine = Engine.load(str(folder), progress=stages.append)
    assert engine.info.context_tokens == SWITCH
    assert engine.model.runner.switch_tokens is None
    assert (
        "limiting the context to 24 tokens: its layers change from short to long rotary factors at 24 and 30"
        in (stages[0])
    )
    with pytest.raises(ModelLoadError, match="takes 2 to 24: its layers change"):
        Engine.load(str(folder), context_tokens=25)


@pytest.mark.parametrize("name", CASES)
def test_contexts(path: Any, name: str, load: Any) -> None:
    config = load(name).model.runner._config
    assert context_limit(config).num_tokens == load(name).info.context_tokens
    assert load(name).info.context_tokens == (SWITCH if name == "dynamic" else CONTEXT)
    assert switch_tokens(config) == (SWITCH if name in LONGROPES else None)
