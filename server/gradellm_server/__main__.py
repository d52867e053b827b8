"""`python -m gradellm_server`: load a model and serve it until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gradellm._version import __version__
from gradellm.transport.spans import TracingError
from gradellm_engine import ModelLoadError
from gradellm_server import fault_injection, native_stderr, preflight
from gradellm_server.auth.file_watcher import SecurityFileError
from gradellm_server.cli import health_address, metrics_address, parser
from gradellm_server.observability import debugging, logging_setup, tracing
from gradellm_server.observability.access_log import AccessLog
from gradellm_server.observability.call import CallObserver
from gradellm_server.observability.logging_setup import report_stage
from gradellm_server.process import (
    EXIT_FAILED,
    EXIT_USAGE,
    exit_at_end_of_stdin,
    exit_now,
    exit_on_signal_until_ready,
    ignore_stop_signals,
    stop_event_on_signal,
)
from gradellm_server.settings import ListenError, ServerSettings

if TYPE_CHECKING:  # these imports take seconds
    from gradellm_engine import Engine
    from gradellm_server.server import Server

RANK_CHECK_SECONDS = 0.25
RANK_LOST_SECONDS = 2.0  # for probes to see a lost rank, before the process ends and its group is started again


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    logging_setup.configure(options.log_format, options.log_level)
    if options.log_format == "json":
        os.environ["TQDM_DISABLE"] = "1"  # progress bars of libraries are not JSON
    if options.debug:
        debugging.dump_stacks_on_signal()
    if options.exit_with_stdin:
        exit_at_end_of_stdin()
    if options.tensor_parallel and os.environ.get("RANK", "0") != "0":
        return _run_follower(options)
    try:
        settings = _settings(options)
        fault_injection.arm_from_environment(os.environ.get(fault_injection.VARIABLE), is_allowed=options.allow_faults)
        preflight.check(settings, _model_options(options))
        spans = tracing.otlp_tracing(options.otlp_endpoint, __version__) if options.otlp_endpoint else None
        return asyncio.run(_serve(options, settings, spans))
    except (ListenError, SecurityFileError, ModelLoadError, TracingError, fault_injection.FaultError) as error:
        return _usage_error(str(error))


def _settings(options: argparse.Namespace) -> ServerSettings:
    return ServerSettings(
        listen=options.listen,
        insecure=options.insecure,
        max_queued=options.max_queued,
        max_queued_tokens=options.max_queued_tokens,
        max_message_bytes=options.max_message_bytes,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_client_ca=options.tls_client_ca,
        tokens=options.tokens,
        metrics_listen=metrics_address(options),
        metrics_required=options.metrics_listen is not None,
        debug=options.debug,
        default_attribution=options.default_attribution,
        health_listen=health_address(options.health_port),
        reader_timeout_seconds=options.reader_timeout,
        follow_idle_seconds=options.follow_idle_seconds,
        stall_seconds=options.stall_seconds,
    )


def _model_options(options: argparse.Namespace) -> preflight.ModelOptions:
    return preflight.ModelOptions(
        model=options.model,
        context_tokens=options.max_context_tokens,
        device=options.device,
        device_map=options.device_map,
        quantization=options.quantize,
        is_tensor_parallel=options.tensor_parallel,
    )


async def _serve(options: argparse.Namespace, settings: ServerSettings, spans: tracing.Tracing | None) -> int:
    """Load the model and serve it until a stop signal; returns the exit status."""
    began = time.monotonic()
    report_stage("starting; importing PyTorch and Transformers")
    # Imports that take seconds: only once the options are known to be good.
    from gradellm_engine import EngineError, GroupLostError
    from gradellm_server.server import Server

    observers: list[CallObserver] = [AccessLog()]
    if spans is not None:
        observers.insert(0, spans)  # before the access log, which has the trace id that the span may set
    server = Server(settings, observers)  # before the model, so that a used port fails at once
    if address := await server.serve_health():
        report_stage(f"health checks on {address}")
    try:
        # In a thread that ends: as long as a thread lives that has run parallel code, OpenMP counts its team among the
        # busy threads, and more threads than cores make those of the engine sleep at every barrier.
        with ThreadPoolExecutor(max_workers=1) as loading:
            engine = await asyncio.get_running_loop().run_in_executor(loading, _load_engine, options, report_stage)
    except EngineError as error:
        return _usage_error(str(error))
    gc.collect()
    gc.freeze()  # objects of libraries: scanning them again and again would slow down every token
    if spans is not None:
        spans.set_model(engine.info.name)
    if status := await _start(server, engine):
        return status
    report_stage(f"serving {_description(engine, server)} after {time.monotonic() - began:.1f} s")
    stopping = stop_event_on_signal()
    is_lost = engine.scheduler.needs_heartbeat and await _wait_for_lost_rank(server, stopping)
    await stopping.wait()
    if is_lost:
        report_stage("a rank of the tensor-parallel group is lost; stopping, so that the group can be started again")
        await asyncio.sleep(RANK_LOST_SECONDS)
    else:
        report_stage(
            f"stopping: running calls have {options.grace_seconds:g} s to finish; a second signal exits at once"
        )
    has_ended = await server.stop(0.0 if is_lost else options.grace_seconds)
    if spans is not None:
        await asyncio.to_thread(spans.close)
    if not has_ended or is_lost:  # the engine thread may still be in a pass
        exit_now(EXIT_FAILED if is_lost else 0)
    with contextlib.suppress(GroupLostError):
        engine.stop_followers()
    return 0


def _load_engine(options: argparse.Namespace, progress: Callable[[str], None]) -> Engine:
    """Load the engine, or this rank's shard of it."""
    from gradellm_engine import Engine, GenerationConfigSource, ProcessGroup, Quantization

    engine = Engine.load(
        options.model,
        revision=options.revision,
        dtype=options.dtype,
        quantization=Quantization(options.quantize),
        device=options.device,
        device_map=options.device_map,
        ranks=ProcessGroup.join() if options.tensor_parallel else None,
        context_tokens=options.max_context_tokens,
        max_new_tokens=options.max_new_tokens,
        max_running=options.max_running,
        max_followed=options.max_followed,
        max_gap=options.max_gap,
        memory_bytes=options.memory,
        kv_bytes=options.kv_memory,
        method_bytes=options.method_memory,
        threads=options.threads,
        use_graphs=not options.eager,
        batch_invariant=options.batch_invariant,
        generation_config=GenerationConfigSource(options.generation_config),
        progress=progress,
    )
    if defaults := str(engine.generation_defaults):
        progress(f"requests have the defaults of the model's generation_config.json: {defaults}")
    engine.measure_cost()  # here, and not when it is first needed: see the caller
    return engine


async def _start(server: Server, engine: Engine) -> int:
    """Warm the engine up and start serving; returns an exit status, 0 for success."""
    from gradellm_engine import EngineError, OutOfMemoryError
    from gradellm_server.engine_loop.errors import EngineFailedError
    from gradellm_server.warm_up import DefaultPresetError

    report_stage("warming up")
    try:
        await server.start(engine)
    except OutOfMemoryError:
        return _usage_error(
            f"out of memory in the warm-up: the KV cache has {engine.kv_bytes / 2**30:,.1f} GiB; give it less with "
            "--kv-memory, so that passes of the model fit, too"
        )
    except DefaultPresetError as error:
        return _usage_error(str(error))
    except EngineError as error:
        return _usage_error(f"the model does not run: {error}")
    except EngineFailedError:  # the engine thread has logged the cause
        print("error: the engine failed in the warm-up", file=sys.stderr, flush=True)
        return EXIT_FAILED
    return 0


def _description(engine: Engine, server: Server) -> str:
    """The served model and the addresses, for the operator."""
    info = engine.info
    weights = "" if info.quantization == "none" else f"{info.quantization} weights, "
    metrics = f", metrics on {server.metrics_address}" if server.metrics_address else ""
    return (
        f"{info.name} ({info.family}, {info.num_parameters / 1e6:,.1f}M parameters, {weights}{info.dtype} on "
        f"{info.device}) on {server.address}{metrics}"
    )


async def _wait_for_lost_rank(server: Server, stopping: asyncio.Event) -> bool:
    """Wait for a stop signal or the loss of a rank, which ends the engine thread; returns whether a rank is lost."""
    while not stopping.is_set():
        if not server.engine_thread.is_running:
            stopping.set()
            return True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), RANK_CHECK_SECONDS)
    return False


def _run_follower(options: argparse.Namespace) -> int:
    """Run a rank other than 0: it does not serve, repeats the passes of rank 0, and ends with it."""
    from gradellm_engine import EngineError, GroupLostError

    try:
        engine = _load_engine(options, lambda stage: None)
        gc.collect()
        gc.freeze()
        ignore_stop_signals()
        engine.run_follower()
    except GroupLostError as error:
        logging.getLogger("gradellm").critical("%s", error)
        return EXIT_FAILED
    except EngineError as error:
        return _usage_error(str(error))
    return 0


def _usage_error(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return EXIT_USAGE


if __name__ == "__main__":
    native_stderr.redact_panics()
    exit_on_signal_until_ready()
    _status = main()
    logging.shutdown()
    sys.stdout.flush()
    exit_now(_status)
