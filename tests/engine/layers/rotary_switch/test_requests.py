"""Requests with every type of rotary frequencies, past the length where some of them change, each as if it ran alone.

The reference is Transformers' own full pass without a cache, over one sequence of that length, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    PromptInput,
    Removal,
    Request,
    Sampling,
    Sources,
)
from gradellm_engine.core.scheduling import pass_timings
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.model.loader import wrap_model
from gradellm_engine.params import Rotary
from gradellm_engine.passes.base import SequenceChunk, Target
from support.faithfulness.reference import Reference, Rows
from support.fake_cuda_graphs import TapeCapturer
from support.oracle import FamilyOracle, Oracle, heat_map, relative_error
from support.rotary_models import CASES, LONGROPES, SWITCH, prompt_ids
from support.scheduler_harness import RequestOutput, finish, run, run_alone, scheduler_of
from support.tiny_models import byte_tokenizer

TOLERANCE = 1e-9

ORACLE_TOLERANCE = 1e-5  # whose eager attention takes its softmax in float32

METHOD_CASES = ["longrope", "longrope of some layers"]

# Prompt tokens: all of it short; up to the last token that is; just past it; all of it long.
LENGTHS = [SWITCH - 6, SWITCH, SWITCH + 1, SWITCH + 9]

SETTINGS = AttributionSettings(sources=Sources.PREFIX)

CHUNKED = replace(SETTINGS, delivery=Delivery.CHUNKED, chunk_size=5)


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill chunks end neither at the switch nor together."""
    for name in ("MAX_PREFILL_CHUNK_TOKENS", "MIN_PREFILL_CHUNK_TOKENS"):
        monkeypatch.setitem(getattr(pass_timings, name), "cpu", 7)


def prompt(length: int, seed: int = 0) -> PromptInput:
    return PromptInput(prompt_ids=prompt_ids(length, seed))


def new_request(
    engine: Engine, length: int, attribution: AttributionSettings | None = None, seed: int = 0, num_tokens: int = 12
) -> Request:
    num_tokens = min(num_tokens, engine.context_tokens - length)
    return engine.generation_request(
        prompt(length, seed), Sampling(max_new_tokens=num_tokens, temperature=1.0, seed=seed), attribution
    )


def lengths_of(engine: Engine) -> list[int]:
    return [length for length in LENGTHS if length < engine.context_tokens] or [SWITCH - 6]


def assert_own(output: RequestOutput, ids: Sequence[int], logits: Callable[[Sequence[int]], Tensor]) -> None:
    """Each token's logprob is that of Transformers' full pass over all tokens before it."""
    assert output.error is None
    assert output.steps
    sequence = list(ids)
    for step in output.steps:
        expected = logits(sequence).log_softmax(-1)
        assert step.logprob == pytest.approx(expected[step.id].item(), abs=TOLERANCE), (len(sequence), step.index)
        sequence.append(step.id)


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_full_passes(load_case: Any, own_logits: Any, name: str) -> None:
    """Prefilled in chunks and decoded across the switch: alone, in a batch, and after a cached prefix."""
    engine: Engine = load_case(name)
    lengths = lengths_of(engine)
    for length in lengths:
        output = run_alone(engine, new_request(engine, length))
        assert_own(output, prompt_ids(length), lambda ids: own_logits(name, ids))
    scheduler = scheduler_of(engine, max_running=8, num_tokens=2000)
    neighbours = [*((length, 0) for length in lengths), (3, 1), (SWITCH - 3, 2)]  # those of seed 0 begin alike
    for attempt in range(2):  # the second time all prompts are known
        outputs = run(scheduler, [new_request(engine, length, seed=seed) for length, seed in neighbours])
        for (length, seed), output in zip(neighbours, outputs, strict=True):
            assert_own(output, prompt_ids(length, seed), lambda ids: own_logits(name, ids))
            assert output.finished is not None
            if attempt and length > SWITCH - 6:
                assert output.finished.num_reused_tokens >= 16


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("attribution", [SETTINGS, CHUNKED], ids=["per token", "chunked"])
def test_attributions_are_those_of_full_passes(load_case: Any, checkpoint: Any, name: str, attribution: Any) -> None:
    """Batched with another request, across the switch: of generated and of given tokens."""
    engine: Engine = load_case(name)
    oracle = FamilyOracle(checkpoint(name))
    length = lengths_of(engine)[0]
    num_tokens = min(10, engine.context_tokens - length)
    scheduler = scheduler_of(engine, max_running=8, num_tokens=1000)
    generated, other = run(
        scheduler,
        [new_request(engine, length, attribution, num_tokens=num_tokens), new_request(engine, 5, attribution, seed=1)],
    )
    attributed = run(scheduler, [engine.attribution_request(prompt(length), generated.ids, attribution)])[0]
    for output, ids in ((generated, prompt_ids(length)), (attributed, prompt_ids(length)), (other, prompt_ids(5, 1))):
        assert output.error is None
        assert len(output.rows) == len(output.ids)
        for index, (token_id, row) in enumerate(zip(output.ids, output.rows, strict=True)):
            if output is other and index > 2:
                break
            prefix = [*ids, *output.ids[:index]]
            everywhere = torch.ones(len(prefix), dtype=torch.bool)
            expected = heat_map(oracle.layers(prefix, token_id), GradEllm(), everywhere, everywhere)
            assert expected.any()
            assert relative_error(row, expected) <= ORACLE_TOLERANCE, (index, len(prefix))


def test_the_rotary_embedding_is_undone_with_a_sequences_own_factors(load_case: Any, checkpoint: Any) -> None:
    engine: Engine = load_case("longrope")
    oracle, switches = Oracle(checkpoint("longrope")), GradEllm(rotary=Rotary.UNROTATED)
    for attribution in (replace(SETTINGS, method=switches), replace(CHUNKED, method=switches)):
        output = run_alone(engine, new_request(engine, SWITCH - 3, attribution, num_tokens=6))
        for index, (token_id, row) in enumerate(zip(output.ids, output.rows, strict=True)):
            prefix = [*prompt_ids(SWITCH - 3), *output.ids[:index]]
            everywhere = torch.ones(len(prefix), dtype=torch.bool)
            expected = heat_map(oracle.layers(prefix, token_id), switches, everywhere, everywhere)
            assert relative_error(row, expected) <= ORACLE_TOLERANCE


@pytest.mark.parametrize("name", LONGROPES)
def test_a_resumed_request_continues_identically(load_case: Any, name: str) -> None:
    """Taken up before, at and after the switch, with all or some of its tokens explained."""
    engine: Engine = load_case(name)
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=3)
    length = SWITCH - 5
    for attribution in (SETTINGS, CHUNKED):
        full = run_alone(engine, engine.generation_request(prompt(length), sampling, attribution))
        for num_forced, first in ((3, 3), (5, 5), (6, 6), (9, 9), (9, 2)):
            again = engine.generation_request(
                prompt(length), sampling, attribution, forced_ids=full.ids[:num_forced], first_attribution=first
            )
            output = run_alone(engine, again)
            assert output.ids == full.ids[first:]
            for index, row in output.attributions.items():
                assert relative_error(row.scores, full.attributions[index].scores.double()) <= 1e-7


@pytest.mark.parametrize("name", METHOD_CASES)
@pytest.mark.parametrize("method", sorted(name for name, row in METHODS.items() if row.explain is not None))
def test_post_hoc_methods_explain_each_step_as_the_last(load_case: Any, name: str, method: str) -> None:
    """A completion across the switch has the rows of completions that end with each of its tokens."""
    engine: Engine = load_case(name)
    names = METHODS[method].switch_names
    switches: Any = METHODS[method].switches(
        **{key: value for key, value in {"samples": 4, "steps": 3, "seed": 1}.items() if key in names}
    )
    attribution = replace(SETTINGS, method=switches)
    length = SWITCH - 2
    completion = prompt_ids(6, seed=9)
    output = run_alone(engine, engine.attribution_request(prompt(length), completion, attribution))
    assert output.error is None
    assert list(output.attributions) == list(range(6))
    for count in (2, 3, 5):  # T is below the switch, at it, and beyond
        shorter = run_alone(engine, engine.attribution_request(prompt(length), completion[:count], attribution))
        actual, expected = output.rows[count - 1], shorter.rows[-1]
        assert expected.any()
        assert relative_error(actual, expected.double()) <= 1e-6, count


@pytest.mark.parametrize("name", METHOD_CASES)
def test_saliency_is_that_of_full_passes(load_case: Any, checkpoint: Any, name: str) -> None:
    engine: Engine = load_case(name)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float64, attn_implementation="sdpa")
    completion = prompt_ids(6, seed=9)
    output = run_alone(
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
        assert relative_error(output.rows[index], gradient[0].norm(dim=-1)) <= 1e-6


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
def test_evaluations_are_those_of_full_passes(
    load_case: Any, checkpoint: Any, name: str, removal: Any, length: int
) -> None:
    """Texts on both sides of the switch, and long texts that become short when tokens are removed."""
    engine: Engine = load_case(name)
    prompt_input, completion = prompt(length), prompt_ids(5, seed=9)
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
            # From a separate explanation, whose correctness the other tests check.
            output = run_alone(
                engine,
                engine.attribution_request(
                    prompt_input, completion[: step + 1], replace(SETTINGS, method=judged.method)
                ),
            )
            rows[judged.name, step] = output.rows[-1].tolist()
    evaluated = Reference(checkpoint(name)).evaluate(engine.tokenize(prompt_input), completion, settings, rows)
    output = run_alone(engine, engine.evaluation_request(prompt_input, settings, completion))
    assert output.error is None
    items = [event for event in output.events if isinstance(event, EvaluationItem)]
    assert len(items) == len(evaluated.measured) == 3 * len(JUDGED) * 3
    for item in items:
        expected = evaluated.measured[item.step, item.name, item.metric]
        for point, samples in zip(item.points, expected.samples, strict=True):
            assert np.allclose(point.samples, samples, atol=1e-6), (item.step, item.name, item.metric)
        if item.metric.is_ranked:
            sure = [margin > 1e-7 for margin in expected.margins]
            assert all(
                not is_sure or flip == expected_flip
                for flip, expected_flip, is_sure in zip(item.flips, expected.flips, sure, strict=True)
            )


def test_after_an_evaluation_a_prefix_is_reused_with_its_own_factors(load_case: Any, own_logits: Any) -> None:
    """The slot was computed again for steps on the other side of the switch, and back again."""
    engine: Engine = load_case("longrope")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=1000)
    completion = prompt_ids(6, seed=9)
    settings = EvaluationSettings((EvaluatedMethod("within", GradEllm()),), (Metric.PI_SOFT_NS,), pis=(0.5,), samples=2)
    (output,) = run(scheduler, [engine.evaluation_request(prompt(SWITCH - 2), settings, completion)])
    assert output.error is None
    ids = (*prompt_ids(SWITCH - 2), *completion)
    (more,) = run(
        scheduler, [engine.generation_request(PromptInput(prompt_ids=ids), Sampling(max_new_tokens=3, seed=0))]
    )
    assert more.finished is not None
    assert more.finished.num_reused_tokens == len(ids) - 1
    assert_own(more, ids, lambda prefix: own_logits("longrope", prefix))


@pytest.mark.parametrize("name", LONGROPES)
def test_recorded_passes_use_the_factors_of_each_sequence(
    load_case: Any, own_logits: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By CPU traces and by CUDA graphs; one graph takes sequences with either factors in any of its rows."""
    runner = load_case(name).model.runner
    assert runner.cpu_traces is not None
    assert runner.cpu_traces.is_possible
    explain = runner.every_layer
    sequences = {False: prompt_ids(SWITCH - 4), True: prompt_ids(SWITCH + 8, 1)}
    target = Target(7)
    found: dict[tuple[bool, ...], list[Tensor]] = {}
    for recorder in (None, TapeCapturer()):
        runner.allocate_pool(500)
        if recorder is not None:
            runner.use_graphs(recorder)
        for kinds in ((False, True), (True, False), (True, True), (False, False)):
            slots = [runner.pool.allocate_probe(50, is_long=is_long) for is_long in kinds]
            for slot in slots:
                runner.prefill([SequenceChunk.new(slot, sequences[slot.is_long][:-2])])
            results: list[Tensor] = []
            for position in (-2, -1):
                run = runner.explained_pass(
                    [SequenceChunk.new(slot, [sequences[slot.is_long][position]], explain) for slot in slots]
                )
                results += [run.logits.clone(), *(heat_map.clone() for heat_map in run.heat_maps([target] * 2))]
            again = [SequenceChunk.replay(slot, slot.length - 2, slot.length, explain) for slot in slots]
            results += [heat_map.clone() for heat_map in runner.replay(again, [target] * 4)]
            for logits, is_long in zip(results[3], kinds, strict=True):
                assert torch.allclose(logits, own_logits(name, sequences[is_long]), rtol=0, atol=TOLERANCE)
            for result, first_result in zip(results, found.setdefault(kinds, results), strict=True):
                assert relative_error(result, first_result) <= TOLERANCE
            for slot in slots:
                slot.close()
    assert recorder is not None
    assert recorder.num_captured == 3  # a step forward and backward, and a chunk
    runner.allocate_pool(500)


@pytest.mark.parametrize("name", ["longrope", "longrope of phi3"])
def test_batch_invariant(load_case: Any, own_logits: Any, name: str) -> None:
    engine: Engine = load_case(name, batch_invariant=True)
    neighbours = [(SWITCH - 4, 0), (5, 1), (SWITCH + 4, 2), (SWITCH - 9, 3)]

    def new(index: int) -> Request:
        length, seed = neighbours[index]
        return new_request(engine, length, CHUNKED if index % 2 else SETTINGS, seed=seed)

    alone = [run_alone(engine, new(index)) for index in range(len(neighbours))]
    together = run(scheduler_of(engine, max_running=4, num_tokens=1000), [new(i) for i in range(len(neighbours))])
    for (length, seed), batched, other in zip(neighbours, together, alone, strict=True):
        assert_own(batched, prompt_ids(length, seed), lambda ids: own_logits(name, ids))
        assert [step.logprob for step in batched.steps] == [step.logprob for step in other.steps]
        assert all(map(torch.equal, batched.rows, other.rows))


def test_placed_by_accelerate(checkpoint: Any, own_logits: Any) -> None:
    """Accelerate's hooks move the arguments of a rotary embedding."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint("longrope"), dtype=torch.float64)
    modules = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    modules += [f"model.layers.{index}" for index in range(len(model.model.layers))]
    spread = dispatch_model(model, dict.fromkeys(modules, "cpu"), main_device="cpu", force_hooks=True)
    engine = Engine(wrap_model(spread, byte_tokenizer(), name="spread"))
    outputs = run(
        scheduler_of(engine, max_running=2, num_tokens=500),
        [new_request(engine, length, SETTINGS, seed=length) for length in (SWITCH - 3, 5)],
    )
    for length, output in zip((SWITCH - 3, 5), outputs, strict=True):
        assert_own(output, prompt_ids(length, length), lambda ids: own_logits("longrope", ids))


def test_other_requests_go_on_while_keys_are_computed_again(load_case: Any) -> None:
    """No pass reads more than a chunk of the sequence that becomes long."""
    engine: Engine = load_case("longrope")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=500)
    crossing, other = new_request(engine, SWITCH - 2, num_tokens=20), new_request(engine, 3, seed=1, num_tokens=40)
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


def test_a_sequence_that_becomes_long_reuses_a_long_prefix(load_case: Any, own_logits: Any) -> None:
    """Also where another has read all of it already."""
    engine: Engine = load_case("longrope")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=500)
    for _ in range(2):
        (output,) = run(scheduler, [new_request(engine, SWITCH - 2, num_tokens=20)])
        assert_own(output, prompt_ids(SWITCH - 2), lambda ids: own_logits("longrope", ids))
