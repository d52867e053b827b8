"""Programs that run an engine on one rank or on several, and a launcher of two ranks.

`python rank_programs.py MODEL DTYPE RESULTS PROGRAM...` runs one rank; rank 0 writes the programs' results to RESULTS.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gradellm_engine import (
    AttributionSettings,
    Delivery,
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    FollowSettings,
    GradEllm,
    Loosening,
    Magnitude,
    Metric,
    ProcessGroup,
    Rectify,
    Rotary,
    Sampling,
    Similarity,
    TokenSelection,
)
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.params import Switches
from support.scheduler_harness import RequestOutput, collect, finish, run

START_SECONDS = 240
PROMPTS = ("Once upon a time, there was a small red fox", "In a dark wood", "Far, far away. " * 10)
COMPLETION = " lived a"

Rows = list[tuple[list[int], list[Tensor]]]


def default_method(engine: Engine) -> list[Rows]:
    """Grad-ELLM with its default options."""
    return _of_methods(engine, [GradEllm()])


def sampling_settings(engine: Engine) -> Rows:
    """Tokens that penalties, biases and stop tokens choose."""
    settings = Sampling(
        max_new_tokens=8,
        temperature=0.9,
        seed=3,
        repetition_penalty=1.2,
        frequency_penalty=0.5,
        min_p=0.01,
        logit_bias=((70, 2.0),),
        min_new_tokens=4,
    )
    requests = [engine.generation_request(prompt, settings, AttributionSettings()) for prompt in PROMPTS]
    return _rows(run(engine.scheduler, requests))


def in_pass_methods(engine: Engine) -> list[Rows]:
    """In-pass methods, several requests at a time, per token and in chunks, greedy and sampled."""
    methods: list[Switches] = [
        GradEllm(),
        GradEllm(similarity=Similarity.COSINE, rectify=Rectify.TOTAL),
        GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE, magnitude=Magnitude.KNOCKOUT),
        *(METHODS[name].switches() for name in ("attention", "grad_sam")),
    ]
    if engine.model.family.rotary:
        methods.append(GradEllm(similarity=Similarity.COSINE, rotary=Rotary.UNROTATED))
    return _of_methods(engine, methods)


def _of_methods(engine: Engine, methods: Sequence[Switches]) -> list[Rows]:
    samplings = [Sampling(max_new_tokens=6, temperature=0.0), Sampling(max_new_tokens=6, temperature=0.9, seed=3)]
    results: list[Rows] = []
    for method in methods:
        for delivery in Delivery:
            settings = AttributionSettings(method=method, delivery=delivery, chunk_size=4)
            requests = [
                engine.generation_request(prompt, sampling, settings) for prompt in PROMPTS for sampling in samplings
            ]
            results.append(_rows(run(engine.scheduler, requests)))
    return results


def post_hoc_methods(engine: Engine) -> list[Rows]:
    """Post-hoc methods, of a given completion."""
    results: list[Rows] = []
    for method in METHODS.values():
        if method.explain is None or engine.refusal(method):
            continue
        settings = AttributionSettings(method=method.switches())
        results.append(_rows(run(engine.scheduler, [engine.attribution_request(PROMPTS[0], COMPLETION, settings)])))
    return results


def selected_tokens(engine: Engine) -> list[Rows]:
    """Some tokens of generated and given completions, in-pass and post hoc, in passes with other requests."""
    tokens = TokenSelection((1, 2, 4))
    results: list[Rows] = []
    for delivery in Delivery:
        every = AttributionSettings(delivery=delivery, chunk_size=2)
        requests = [
            engine.generation_request(prompt, Sampling(max_new_tokens=6), settings)
            for prompt in PROMPTS
            for settings in (every, replace(every, tokens=tokens))
        ]
        requests.append(engine.attribution_request(PROMPTS[0], COMPLETION, replace(every, tokens=tokens)))
        results.append(_rows(run(engine.scheduler, requests)))
    settings = AttributionSettings(METHODS["saliency"].switches(), tokens=tokens)
    results.append(_rows(run(engine.scheduler, [engine.attribution_request(PROMPTS[0], COMPLETION, settings)])))
    return results


def evaluation(engine: Engine) -> list[tuple[str, str, int, float]]:
    """The items of an evaluation."""
    settings = EvaluationSettings(
        methods=tuple(EvaluatedMethod(name, METHODS[name].switches()) for name in ("grad_ellm", "random")),
        metrics=(Metric.PI_SOFT_NC, Metric.PI_SOFT_NS),
        pis=(0.3, 0.7),
        samples=2,
        seed=1,
    )
    (output,) = run(engine.scheduler, [engine.evaluation_request(PROMPTS[0], settings, COMPLETION)])
    assert output.error is None
    items = [event for event in output.events if isinstance(event, EvaluationItem)]
    return [(item.name, str(item.metric), item.step, item.value) for item in items]


def cancellation(engine: Engine) -> list[Rows]:
    """Requests that are submitted and cancelled while others run; more than `max_running`."""
    settings = AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=3)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, seed=11)
    requests = [engine.generation_request(PROMPTS[i % 3], sampling, settings if i % 2 else None) for i in range(8)]
    scheduler, outputs = engine.scheduler, [RequestOutput() for _ in requests]
    for request in requests[:5]:
        scheduler.submit(request)
    for index, _ in enumerate(scheduler.step()):
        if index == 0:
            scheduler.cancel(requests[1])  # between two passes of a step
    scheduler.has_work()
    scheduler.cancel(requests[4])
    for request in requests[5:]:
        scheduler.submit(request)
    for _ in range(3):
        for _ in scheduler.step(lambda request: request is not requests[2]):
            pass
    left = [index for index in range(len(requests)) if index not in (1, 4)]
    return [_rows(finish(scheduler, [requests[index] for index in left], [outputs[index] for index in left]))]


def followed(engine: Engine) -> list[Rows]:
    """Completions whose tokens come piece by piece, beside requests that generate; a chunk, a flush and an end."""
    scheduler, attribution = engine.scheduler, AttributionSettings(chunk_size=4)
    requests = [engine.follow_request(prompt, attribution, FollowSettings()) for prompt in PROMPTS[:2]]
    own = engine.generation_request(PROMPTS[2], Sampling(max_new_tokens=12, seed=1, temperature=0.7), attribution)
    outputs = [RequestOutput() for _ in (*requests, own)]
    for request in (*requests, own):
        scheduler.submit(request)
    ids = engine.tokenize("in a wood by the sea, far away").ids[1:]
    for first in range(0, len(ids), 3):
        for request in requests:
            scheduler.append(request, ids[first : first + 3])
        if first == 6:
            scheduler.flush(requests[1])
        for _ in scheduler.step():
            collect([*requests, own], outputs)
    for request in requests:
        scheduler.finish(request)
    return [_rows(finish(scheduler, [*requests, own], outputs))]


def prefix_sharing(engine: Engine) -> list[Rows]:
    """Prompts with common prefixes, of which all ranks must reuse the same."""
    sampling = Sampling(max_new_tokens=2, temperature=0.0)
    results: list[Rows] = []
    for i in range(40):
        prompt = f"{PROMPTS[2][:30]}{'abc'[i % 3] * (5 * (i % 7))} and {i % 5}"
        results.append(_rows(run(engine.scheduler, [engine.generation_request(prompt, sampling)])))
    return results


def model_info(engine: Engine) -> list[int]:
    """Facts about the whole model, not about a rank's shard."""
    info = engine.info
    return [info.num_parameters, info.num_heads, info.num_key_value_heads, info.vocab_size, info.context_tokens]


def refused_request(engine: Engine) -> str:
    """A request that every rank refuses leaves the ranks in lockstep."""
    try:
        engine.generation_request("", Sampling(max_new_tokens=10**9))
    except ValueError as error:
        return str(error)
    return "not refused"


PROGRAMS: dict[str, Callable[[Engine], Any]] = {
    program.__name__: program
    for program in (
        default_method,
        sampling_settings,
        in_pass_methods,
        post_hoc_methods,
        selected_tokens,
        evaluation,
        cancellation,
        followed,
        prefix_sharing,
        model_info,
        refused_request,
    )
}


def load_engine(path: Path, dtype: str, ranks: ProcessGroup | None = None) -> Engine:
    """The same engine on one rank or several."""
    return Engine.load(
        str(path),
        device="auto" if ranks else "cpu",
        dtype=dtype,
        kv_bytes=2**22,
        method_bytes=2**30,
        max_running=6,
        threads=1,
        ranks=ranks,
    )


def on_ranks(path: Path, dtype: str, programs: Sequence[str], results: Path, size: int = 2) -> list[Any]:
    """Results of programs on several ranks of this machine."""
    started = start_ranks([__file__, str(path), dtype, str(results), *programs], size)
    try:
        logs = [process.communicate(timeout=START_SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, log in zip(started, logs, strict=True):
        assert process.returncode == 0, log
    values: list[Any] = pickle.loads(results.read_bytes())
    return values


def start_ranks(command: Sequence[str], size: int = 2) -> list[subprocess.Popen[str]]:
    """Start a Python program on `size` ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root, root / "client", root / "server", root / "tests")))
    common = {
        **os.environ,
        "PYTHONPATH": paths,
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def _rows(outputs: Sequence[RequestOutput]) -> Rows:
    for output in outputs:
        assert output.error is None, output.error
    return [(output.ids, output.rows) for output in outputs]


def _main() -> None:
    path, dtype, results, *names = sys.argv[1:]
    ranks = ProcessGroup.join()
    engine = load_engine(Path(path), dtype, ranks)
    if ranks is not None and not ranks.is_rank0:
        engine.run_follower()
    else:
        Path(results).write_bytes(pickle.dumps([PROGRAMS[name](engine) for name in names]))
        engine.stop_followers()
    ProcessGroup.destroy()


if __name__ == "__main__":
    _main()
