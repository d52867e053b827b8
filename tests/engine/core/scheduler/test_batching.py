"""Requests that share passes have the outputs that each has by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from engine.core.scheduler.conftest import BROKEN
from gradellm_engine import (
    AttributionSettings,
    ComputationError,
    Contrast,
    Delivery,
    Engine,
    GradEllm,
    Message,
    PromptInput,
    Request,
    Resolution,
    Sampling,
    Sources,
    TokenSelection,
)
from gradellm_engine.core.scheduling.pass_timings import MAX_PREFILL_CHUNK_TOKENS
from gradellm_engine.params import PRESETS
from support.oracle import SWITCHES, relative_error
from support.scheduler_harness import (
    PREFIX,
    PROMPT,
    SAMPLED,
    TOLERANCE,
    Comparison,
    Margins,
    RequestOutput,
    chunked,
    collect,
    prompt_ids,
    run,
    run_alone,
    scheduler_of,
)

MODELS = ["llama", "mistral", "gemma2"]
CHUNK_SIZES = [1, 3, 16]
MakeRequest = Callable[[], Request]


@dataclass(frozen=True)
class DrawnRequest:
    """A factory of equal requests."""

    make: MakeRequest
    seed: int


def drawn_requests(engine: Engine, rng: random.Random, count: int) -> list[DrawnRequest]:
    """Random requests of all kinds, many of which share a prefix."""
    beginnings = [PROMPT[:n] for n in (2, 20, 53)] + ["The long way home " * 7]
    methods = [*SWITCHES, *(GradEllm.preset(name) for name in PRESETS)]

    def settings() -> AttributionSettings:
        return AttributionSettings(
            rng.choice(methods),
            target_token_id=rng.choice([None, None, 7]),
            contrast=rng.choice([None, None, Contrast(token_id=9), Contrast(runner_up=True), Contrast(text="z")]),
            sources=rng.choice(list(Sources)),
            resolution=rng.choice(list(Resolution)),
            delivery=rng.choice(list(Delivery)),
            chunk_size=rng.choice([None, 1, 2, 3, 5, 16]),
        )

    def request(seed: int) -> DrawnRequest:
        prompt = PromptInput(prompt=rng.choice(beginnings) + rng.choice(["", "a", " and then"]))
        kind = rng.choice(
            ["plain", "explained", "explained", "explained", "completion", "resumed", "messages", "broken"]
        )
        sampling = Sampling(
            max_new_tokens=rng.randint(1, 12),
            temperature=rng.choice([0.0, 0.8, 1.3]),
            top_k=rng.choice([0, 40]),
            top_p=rng.choice([1.0, 0.9]),
            seed=seed,
            stop=rng.choice([(), (), ("e", "qu")]),
            num_alternatives=rng.choice([0, 2]),
        )
        attribution = settings()
        ids = [rng.randrange(256) for _ in range(rng.randint(1, 12))]
        if rng.random() < 0.4:
            length = {"completion": len(ids), "resumed": 12}.get(kind, sampling.max_new_tokens or 1)
            selected = rng.sample(range(length), rng.randint(1, length))
            attribution = replace(attribution, tokens=TokenSelection(tuple(selected)))
        if kind == "completion":
            return DrawnRequest(lambda: engine.attribution_request(prompt, ids, attribution), seed)
        if kind == "resumed":
            first = rng.randint(0, len(ids))
            longer = replace(sampling, max_new_tokens=12)
            return DrawnRequest(
                lambda: engine.generation_request(prompt, longer, attribution, forced_ids=ids, first_attribution=first),
                seed,
            )
        if kind == "messages":
            prompt = PromptInput(messages=(Message("user", prompt.prompt or "x"),))
        if kind == "broken":
            prompt = prompt_ids(256, *ids, BROKEN, *ids[:2])
        return DrawnRequest(
            lambda: engine.generation_request(prompt, sampling, None if kind == "plain" else attribution), seed
        )

    return [request(seed) for seed in range(count)]


@pytest.mark.parametrize(
    ("model", "dtype", "uses_graphs"),
    [
        *((model, "float32", False) for model in MODELS),
        ("mistral", "float64", False),
        ("llama", "float32", True),
        ("gemma3_text", "float32", True),  # with windows, and norms of heads
    ],
)
def test_batched_requests_equal_requests_run_alone(
    load: Callable[..., Engine],
    breaking: Callable[[Engine], None],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    dtype: str,
    *,
    uses_graphs: bool,
) -> None:
    """They join at any step, are cancelled at any pass, fail, wait for KV slots, and share prefixes."""
    engine = load(model, dtype)
    breaking(engine)
    monkeypatch.setitem(MAX_PREFILL_CHUNK_TOKENS, "cpu", 40)
    rng = random.Random(f"{model} {dtype}")
    drawn = drawn_requests(engine, rng, 26)
    margins = Margins(monkeypatch)
    alone = [run_alone(engine, drawn_request.make()) for drawn_request in drawn]
    assert any(isinstance(output.error, ComputationError) for output in alone)

    scheduler = scheduler_of(engine, max_running=6, num_tokens=600)
    if uses_graphs:
        engine.model.runner.use_graphs()
    requests, outputs = [drawn_request.make() for drawn_request in drawn], [RequestOutput() for _ in drawn]
    cut = set(rng.sample(range(len(drawn)), 4))
    last_steps = {index: rng.randint(0, 8) for index in cut}
    todo = list(range(len(drawn)))
    rng.shuffle(todo)
    most = 0  # running at a time
    for _ in range(3000):
        for index in todo[: rng.choice([0, 0, 1, 3])]:
            todo.remove(index)
            scheduler.submit(requests[index])
        for _ in scheduler.step():
            collect(requests, outputs)
            most = max(most, len(scheduler.running))
            for index in cut:
                if index not in todo and not requests[index].is_closed:
                    last_steps[index] -= 1
                    if last_steps[index] < 0:
                        scheduler.cancel(requests[index])
                        collect(requests, outputs)
        if not todo and all(request.is_closed for request in requests):
            break
    collect(requests, outputs)
    assert not todo
    assert not scheduler.waiting
    assert not scheduler.running
    assert most == 6
    if uses_graphs and engine.model.runner.launch_graphs is not None:
        assert len(engine.model.runner.launch_graphs) >= 3

    pool = engine.model.runner.pool
    assert pool.num_free_tokens == pool.num_tokens
    result = Comparison()
    for index, drawn_request in enumerate(drawn):
        is_cut = index in cut and outputs[index].finished is None
        result.add(alone[index], outputs[index], drawn_request.seed, margins, is_cut=is_cut)
    check(result, dtype)


def check(result: Comparison, dtype: str) -> None:
    """Whether outputs that shared passes are those of requests by themselves."""
    worst, above = max(result.errors), sum(error > TOLERANCE for error in result.errors)
    print(f"{dtype}: {result.num_vectors} vectors, worst {worst:.2g}, {result.num_near_ties} near ties")
    assert result.num_vectors > 60
    assert result.num_near_ties <= (1 if dtype == "float32" else 0)
    # As in test_oracle: sums that cancel have few digits left in float32. In float64 they agree.
    assert above <= max(2, result.num_vectors / 40)
    assert worst <= (3 * TOLERANCE if dtype == "float32" else 1e-9)


@pytest.mark.parametrize(("model", "num_tokens"), [("llama", 5), ("mistral", 7), ("gemma2", 5)])
def test_chunked_equals_per_token_for_every_switch(load: Callable[..., Engine], model: str, num_tokens: int) -> None:
    engine = load(model)
    sampling = replace(SAMPLED, max_new_tokens=num_tokens)

    def run_all(settings: AttributionSettings) -> list[RequestOutput]:
        scheduler = scheduler_of(engine, max_running=len(SWITCHES), num_tokens=4000)
        run(
            scheduler, [engine.generation_request(PROMPT, replace(SAMPLED, max_new_tokens=1))]
        )  # later requests reuse its prefix
        return run(
            scheduler, [engine.generation_request(PROMPT, sampling, replace(settings, method=m)) for m in SWITCHES]
        )

    at_once = run_all(PREFIX)
    errors = {}
    for size in CHUNK_SIZES:
        for method, expected, actual in zip(SWITCHES, at_once, run_all(chunked(size)), strict=True):
            assert actual.ids == expected.ids
            assert len(actual.ids) == num_tokens
            assert list(actual.attributions) == list(expected.attributions) == list(range(num_tokens))
            for index, (a, b) in enumerate(zip(actual.rows, expected.rows, strict=True)):
                errors[size, method, index] = relative_error(a, b.double())
    worst = max(errors, key=lambda key: errors[key])
    print(f"{model}: {len(errors)} vectors, the largest difference {errors[worst]:.2g} at {worst}")
    assert errors[worst] <= TOLERANCE, worst


@pytest.mark.parametrize("model", MODELS)
def test_long_chunks_equal_per_token(load: Callable[..., Engine], model: str) -> None:
    """Chunks longer than the sliding window, and longer than an explain pass, in float64."""
    engine = Engine(replace(load(model, "float64").model, end_ids=frozenset()))  # it does not end by chance
    sampling = Sampling(max_new_tokens=36, temperature=1.3, seed=11)
    methods = [GradEllm.preset(name) for name in PRESETS]

    def run_all(settings: AttributionSettings) -> list[RequestOutput]:
        scheduler = scheduler_of(engine, max_running=4, num_tokens=600)
        return run(
            scheduler, [engine.generation_request(PROMPT, sampling, replace(settings, method=m)) for m in methods]
        )

    at_once = run_all(PREFIX)
    for size in (16, 100):
        for expected, actual in zip(at_once, run_all(chunked(size)), strict=True):
            assert actual.ids == expected.ids
            assert len(actual.rows) == len(expected.rows) == 36
            assert max(relative_error(a, b) for a, b in zip(actual.rows, expected.rows, strict=True)) <= 1e-9


def test_equal_tokens_score_zero(load: Callable[..., Engine]) -> None:
    """Before the rotary embedding of the first layer their keys are equal, so that min-max normalisation gives 0."""
    engine = load("llama", "float64")
    settings = AttributionSettings(GradEllm.preset("grad_eclip", layers=(0,)))
    output = run_alone(engine, engine.generation_request(prompt_ids(*[70] * 10), Sampling(max_new_tokens=1), settings))
    assert not output.rows[0].any()
