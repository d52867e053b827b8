"""The bench on a tiny model: its backends do the same work, and its figures are correct."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

from gradellm_bench import models as models
from gradellm_bench.__main__ import main
from gradellm_bench.backends import BACKENDS, Backend, decode_in_turns
from gradellm_bench.bandwidth import read_bandwidth
from gradellm_bench.full_prefix_baseline import recompute_step
from gradellm_bench.latency import Latency, latencies
from gradellm_bench.models import BenchModel, checkpoint_bench_model, random_bench_model
from gradellm_bench.report import latency_table
from gradellm_bench.served.throughput import admission, memory, reuse, throughputs, tokens_per_second
from gradellm_bench.timeline import Stopwatch, Timeline
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.params import AttributionSettings, Sampling, Sources
from gradellm_engine.tokenization.prompt_input import PromptInput
from support.oracle import relative_error

TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
OWN_BACKENDS = [name for name, backend in BACKENDS.items() if backend.needs is None]


@pytest.fixture(scope="module")
def tiny() -> BenchModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.SHAPES, "tiny", TINY)
        return random_bench_model("tiny", dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def shape(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(models.SHAPES, "tiny", TINY)
    return "tiny"


@pytest.mark.parametrize("name", OWN_BACKENDS)
def test_backends_time_every_token_and_attribution_row(tiny: BenchModel, name: str) -> None:
    prompt = tiny.prompt(Random(0), 20)
    expected = BACKENDS["generate"].decode(tiny, prompt, 6).ids
    timeline = BACKENDS[name].decode(tiny, prompt, 6)
    assert timeline.ids == expected
    assert timeline.tokens == sorted(timeline.tokens)
    assert len(timeline.vectors) == (0 if name in ("plain", "generate") else 6)
    assert all(vector >= token for token, vector in zip(timeline.tokens, timeline.vectors, strict=False))
    assert 0 < timeline.per_token < timeline.end


def test_standard_error_stays_empty() -> None:
    """In a separate process: libraries print warnings about each other when the interpreter exits."""
    measure = ["--parts", "latency", "--prompts", "16", "--new-tokens", "2", "--rounds", "1", "--ways", "generate"]
    for arguments, status, message in (
        (["--model", str(CHECKPOINT), *measure], 0, ""),
        (["--model", "/nowhere", *measure], 2, "error: there is no folder '/nowhere'"),
    ):
        command = [sys.executable, "-m", "gradellm_bench", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == status
        assert run.stderr.startswith(message)
        assert run.stderr.count("\n") == bool(message)
        assert ("latency" in run.stdout.lower() or "token" in run.stdout) == (status == 0)


@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_recomputation_finds_the_engines_tokens_and_vectors(model_path: Callable[[str], Path], model: str) -> None:
    bench_model = checkpoint_bench_model(str(model_path(model)), dtype=torch.float32, device=torch.device("cpu"))
    prompt = bench_model.prompt(Random(1), 20)
    engine = bench_model.engine(max_running=1, num_tokens=30)
    steps = engine.generate(
        PromptInput(prompt_ids=prompt),
        Sampling(max_new_tokens=3, temperature=0.0),
        AttributionSettings(sources=Sources.PREFIX),
    )
    prefix = list(prompt)
    for step in steps:
        chosen, scores = recompute_step(bench_model.reference, prefix)
        assert chosen == step.id
        assert step.attribution is not None
        assert relative_error(step.attribution.scores, scores.double()) <= 1e-5
        prefix.append(chosen)


def test_a_way_that_cannot_run_a_family_is_left_out_or_refused(
    model_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(model_path("gemma2")), "--parts", "latency", "--prompts", "8", "--rounds", "1"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "| plain " in output
    assert "recompute" not in output
    with pytest.raises(SystemExit):
        main([*arguments, "--ways", "recompute"])
    assert "recompute cannot run a model of the family gemma2" in capsys.readouterr().err


def test_both_models_stand_on_the_same_tensors(tiny: BenchModel) -> None:
    parameters = dict(tiny.loaded.runner.model.named_parameters())
    reference_parameters = dict(tiny.reference.named_parameters())
    assert parameters.keys() == reference_parameters.keys()
    assert all(parameters[name].data_ptr() == reference_parameters[name].data_ptr() for name in parameters)
    assert tiny.reference.config._attn_implementation != "gradellm"
    # The embedding is read a row at a time, and stands apart from the head here.
    embedding = tiny.reference.get_input_embeddings().weight
    head = tiny.reference.get_output_embeddings().weight
    assert tiny.body_bytes + tiny.head_bytes + embedding.nbytes == sum(
        parameter.nbytes for parameter in parameters.values()
    )
    assert tiny.head_bytes == head.nbytes


def test_a_timelines_figures() -> None:
    explained = Timeline(ids=[1, 2, 3], read=1.0, tokens=[2.0, 3.0, 5.0], vectors=[2.5, 3.5, 7.0])
    assert (explained.first_token, explained.end, explained.per_token) == (2.0, 7.0, 2.0)
    assert explained.gaps == [1.0, 2.0]
    assert explained.to_vector == 0.5
    plain = Timeline(ids=[1, 2, 3], tokens=[2.0, 3.0, 5.0])  # no telling when the prompt was read
    assert (plain.per_token, plain.to_vector) == (1.5, None)


def test_a_stopwatch_that_stands_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr("gradellm_bench.timeline.time.perf_counter", lambda: next(now))
    watch = Stopwatch()
    watch.stop()
    assert watch() == 3.0
    watch.resume()
    assert watch() == 7.0  # 14 since it was made, of which it stood 7


def test_alternating_backends_decode_the_same_tokens(tiny: BenchModel) -> None:
    """Each by itself: nothing that one has read is used by another."""
    backends = [backend for backend in BACKENDS.values() if backend.mode is not None]
    prompt = tiny.prompt(Random(3), 40)
    together = decode_in_turns(tiny, backends, prompt, 32)
    for backend in backends:
        timeline, alone = together[backend.name], backend.decode(tiny, prompt, 32)
        assert timeline.ids == alone.ids
        assert len(timeline.tokens) == 32
        assert len(timeline.vectors) == (0 if backend.name == "plain" else 32)
        assert timeline.tokens == sorted(timeline.tokens)
        assert timeline.finished is not None
        assert timeline.finished.num_reused_tokens == 0
    assert tiny.loaded.runner.pool.reuses_prefixes


def test_ratios_are_taken_round_by_round() -> None:
    slow, fast = Latency("a", 1, 1, per_token=[20.0, 60.0, 21.0]), Latency("b", 1, 1, per_token=[10.0, 30.0, 7.0])
    assert slow.over(fast) == 2.0
    assert "2.00" in latency_table([Latency("plain", 1, 1, [1.0], [10.0]), Latency("a", 1, 1, [1.0], [20.0])])


def test_floors_are_reads_at_the_measured_bandwidth(tiny: BenchModel) -> None:
    backends = [BACKENDS["plain"], BACKENDS["per_token"], BACKENDS["chunked(16)"], BACKENDS["recompute"]]
    (row,) = latencies(
        tiny, backends, prompt_lengths=[16], new_tokens=16, rounds=1, bandwidth=1e6, progress=lambda stage: None
    )
    keys_and_values = 24 * 2 * 2 * (8 + 8) * 4  # in the middle: tokens x layers x groups x widths x bytes
    body, head = 1e3 * (tiny.body_bytes + keys_and_values) / 1e6, 1e3 * tiny.head_bytes / 1e6
    floors = [latency.floor for latency in row]
    assert floors == pytest.approx([body + head, 2 * body + head, 1.0625 * body + head, None])


def test_ways_that_decode_other_tokens_are_not_compared(tiny: BenchModel) -> None:
    def wrong(bench_model: BenchModel, ids: object, count: int) -> list[Timeline]:
        return [Timeline(ids=[0] * count, tokens=[1.0] * count)]

    backends = [BACKENDS["plain"], Backend("wrong", "", wrong, None)]
    measuring = latencies(
        tiny, backends, prompt_lengths=[16], new_tokens=4, rounds=1, bandwidth=1e9, progress=lambda stage: None
    )
    with pytest.raises(RuntimeError, match="wrong decoded other tokens"):
        list(measuring)


def test_a_long_prompt_is_admitted_during_decoding(tiny: BenchModel) -> None:
    result = admission(tiny, streams=2, new_tokens=64, rounds=1)
    assert result.median_gap > 0
    assert result.first_token >= result.largest_gap / 2 > 0  # it is read while they wait for tokens
    with pytest.raises(RuntimeError, match="end before"):
        admission(tiny, streams=2, new_tokens=17, rounds=1)


def test_throughput_is_that_of_streams_which_all_decode(tiny: BenchModel) -> None:
    backends = [BACKENDS[name] for name in ("plain", "chunked(16)", "generate", "recompute")]
    short, long = throughputs(
        tiny,
        backends,
        prompt_lengths=[20, 40],
        concurrency=[1, 4],
        new_tokens=32,
        rounds=1,
        bandwidth=1e9,
        progress=lambda stage: None,
    )
    expected = [(n, backend.name) for n in (1, 4) for backend in backends[:3]]  # the slow one is left out
    for results, length in ((short, 20), (long, 40)):
        assert [(result.streams, result.way) for result in results] == expected
        assert {result.prompt_tokens for result in results} == {length}
    assert short[0].floor > long[0].floor  # keys and values are read, too
    assert short[1].floor < short[0].floor == short[2].floor
    assert short[0].floor < short[3].floor < 4 * short[0].floor  # weights are read once for all


def test_tokens_per_second_count_from_the_last_prefill() -> None:
    first = Timeline(ids=[1, 2], read=1.0, tokens=[2.0, 4.0])
    second = Timeline(ids=[1, 2], read=2.0, tokens=[3.0, 4.0], vectors=[3.0, 6.0])
    assert tokens_per_second([first, second]) == 4 / (6 - 2)
    unknown_prefill = Timeline(ids=[1, 2, 3], tokens=[1.0, 2.0, 3.0])
    assert tokens_per_second([unknown_prefill]) == 2 / (3 - 1)


def test_memory_is_counted_from_pools_that_are_in_use(tiny: BenchModel) -> None:
    used = memory(tiny, prompt_tokens=64, new_tokens=32, requests=32, progress=lambda stage: None)
    pool = tiny.loaded.runner.pool
    assert used.idle > pool.num_tokens * tiny.loaded.runner.bytes_per_token
    assert all(peak >= 0.9 * used.idle for peak in used.peak.values())
    assert abs(used.after - used.before) < 2**26


def test_a_second_turn_prefills_only_new_tokens(tiny: BenchModel) -> None:
    turns = reuse(tiny, new_tokens=8, rounds=1)
    assert turns.reused_tokens == turns.first_tokens + 8 - 1  # the answer's last token was never read
    assert turns.second_tokens - turns.reused_tokens < 40


def test_bandwidth_is_that_of_memory() -> None:
    assert 1e8 < read_bandwidth(torch.device("cpu")) < 1e13


def test_all_parts_run_and_are_reported(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, plot_file = tmp_path / "figures.json", tmp_path / "figures.png"
    pytest.importorskip("matplotlib")
    arguments = ["--shape", shape, "--prompts", "16", "32", "--new-tokens", "32", "--rounds", "1", "--requests", "8"]
    arguments += ["--concurrency", "1", "2", "--ways", *OWN_BACKENDS]
    assert main([*arguments, "--json", str(json_file), "--plot", str(plot_file)]) == 0
    output = capsys.readouterr().out
    assert "prompt of 16 tokens" in output
    assert all(f"| {backend} " in output for backend in OWN_BACKENDS)
    for words in ("random tiny", "GB/s", "tokens a second", "1,500 tokens is admitted", "second turn", "Peak memory"):
        assert words in output
    figures = json.loads(json_file.read_text())
    assert {latency["way"] for latency in figures["latencies"]} == set(OWN_BACKENDS)
    assert figures["memory"]["requests"] == 8
    assert plot_file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "4090"], "the part latency needs 4154 tokens, the model's context is 4096"),
        (["--new-tokens", "40"], "40 are not whole chunks of chunked(16), chunked(32)"),
        (["--rounds", "0"], "at least 1"),
        (["--new-tokens", "1"], "at least 2"),
        (["--device", "abacus"], "abacus"),
        (["--ways", "magic"], "magic"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--plot", "figures.txt"], "must end in .png or .svg"),
        (["--json", "/no/such/folder/file.json"], "/no/such/folder"),
    ],
)
def test_an_invalid_setting_ends_with_one_line(
    shape: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    try:
        status = main(["--shape", shape, *arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last
    assert words in last
