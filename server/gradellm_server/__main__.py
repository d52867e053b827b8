"""`python -m gradellm_server`: load a model and serve it until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gradellm._version import __version__
from gradellm_engine.errors import ModelLoadError
from gradellm_server import cli_types, fault_injection, native_stderr, preflight
from gradellm_server.auth.file_watcher import SecurityFileError
from gradellm_server.observability import debugging, logging_setup, tracing
from gradellm_server.observability.access_log import RequestLog
from gradellm_server.observability.call import CallObserver
from gradellm_server.observability.logging_setup import say
from gradellm_server.settings import ListenError, ServerSettings

if TYPE_CHECKING:  # to import them takes seconds
    from gradellm_engine import Engine
    from gradellm_server.server import Server

EXIT_LOST, EXIT_USAGE = 1, 2
LOOK_SECONDS = 0.25  # at whether the group still stands
LOST_SECONDS = 2.0  # that health tells of a lost rank before the process ends, for its group to be started again
METRICS_LISTEN = "127.0.0.1:9090"
EXAMPLES = """\
examples:
  gradellm serve                                      the demo model, on localhost:50051
  gradellm serve --model ./my-model                   a folder with config.json, tokenizer.json and *.safetensors
  gradellm serve --model ORGANISATION/NAME            a model of the Hugging Face hub
  gradellm serve --model ./big --device-map auto      spread over all GPUs
  torchrun --nproc-per-node 4 -m gradellm_server --tensor-parallel --model ./big
                                                      shared out over 4 GPUs that work at the same time
  gradellm serve --listen unix:/tmp/gradellm.sock     on a Unix socket
  gradellm serve --listen 0.0.0.0:50051 --tls-cert server.pem --tls-key server.key --tokens tokens.toml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = parser().parse_args(argv)
    logging_setup.configure(options.log_format, options.log_level)
    if options.log_format == "json":
        os.environ["TQDM_DISABLE"] = "1"  # libraries' progress bars are no JSON
    if options.debug:
        debugging.dump_stacks_on_signal()
    if options.exit_with_stdin:
        threading.Thread(target=_exit_at_end_of_stdin, name="stdin-watch", daemon=True).start()
    if options.tensor_parallel and os.environ.get("RANK", "0") != "0":
        return _follow(options)
    try:
        settings = ServerSettings(
            listen=options.listen,
            insecure=options.insecure,
            max_queued=options.max_queued,
            max_queued_tokens=options.max_queued_tokens,
            max_message_bytes=options.max_message_bytes,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            tls_client_ca=options.tls_client_ca,
            tokens=options.tokens,
            metrics_listen=_metrics_listen(options),
            metrics_required=options.metrics_listen is not None,
            debug=options.debug,
            health_listen=_health_listen(options.health_port),
            reader_timeout_seconds=options.reader_timeout,
            stall_seconds=options.stall_seconds,
        )
        fault_injection.arm_from(os.environ.get(fault_injection.VARIABLE), allowed=options.allow_faults)
        preflight.check(
            settings,
            preflight.Hosted(
                model=options.model,
                context_tokens=options.max_context_tokens,
                device=options.device,
                device_map=options.device_map,
                quantization=options.quantize,
                is_shared=options.tensor_parallel,
            ),
        )
        spans = tracing.exporting(options.otlp_endpoint, __version__) if options.otlp_endpoint else None
        return asyncio.run(_serve(options, settings, spans))
    except (ListenError, SecurityFileError, ModelLoadError, tracing.TracingError, fault_injection.FaultError) as error:
        return _fail(str(error))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="gradellm serve",
        description="Host a decoder-only language model and explain every token that it generates.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"gradellm {__version__}")
    model = made.add_argument_group("model")
    model.add_argument("--model", metavar="PATH_OR_HUB_ID", help="what to host (default: the demo model)")
    model.add_argument("--revision", help="branch, tag or commit on the hub")
    model.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16", "float64"],
        help="of the weights; auto is float32 on a CPU, else the checkpoint's own",
    )
    model.add_argument(
        "--quantize",
        default="none",
        choices=["none", "int8", "nf4"],
        help="keep weights in 8 or 4 bits; needs the extra [quant] (default: none)",
    )
    model.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ...; auto is a GPU where there is one"
    )
    model.add_argument("--device-map", metavar="MAP", help="spread over devices by accelerate: auto, balanced, ...")
    model.add_argument(
        "--tensor-parallel",
        action="store_true",
        help="share the model out over the ranks of a group, which torchrun starts; the first one serves",
    )
    model.add_argument(
        "--threads", type=cli_types.count, metavar="N", help="CPU threads (default: one for each core that it may use)"
    )
    model.add_argument(
        "--eager",
        action="store_true",
        help="run decode steps call by call: on a GPU not as CUDA graphs, on a CPU not as straight lines",
    )
    model.add_argument(
        "--batch-invariant",
        action="store_true",
        help="tokens and scores to the last bit the same, whatever other requests run and wherever a stream is taken "
        "up again; on a CPU in float32 or float64, slower",
    )
    limits = made.add_argument_group("limits")
    limits.add_argument(
        "--max-context-tokens", type=cli_types.count, metavar="N", help="less than the model's own context"
    )
    limits.add_argument(
        "--max-new-tokens",
        type=cli_types.count,
        default=4096,
        metavar="N",
        help="tokens of a completion at most (default: 4096)",
    )
    limits.add_argument(
        "--max-running",
        type=cli_types.count,
        default=16,
        metavar="N",
        help="requests that run at the same time (default: 16)",
    )
    limits.add_argument(
        "--max-queued", type=int, default=64, metavar="N", help="requests that may wait; more are refused (default: 64)"
    )
    limits.add_argument(
        "--max-queued-tokens",
        type=cli_types.count,
        default=262144,
        metavar="N",
        help="tokens of all requests that wait, with their completions at their longest (default: 262144)",
    )
    limits.add_argument(
        "--kv-memory",
        type=cli_types.size,
        metavar="SIZE",
        help="memory for keys and values, such as 8GiB (default: half of what is free once the model is loaded)",
    )
    limits.add_argument(
        "--method-memory",
        type=cli_types.size,
        metavar="SIZE",
        help="memory for methods that look at whole completions (default: half of what is free beside the rest)",
    )
    limits.add_argument(
        "--max-message-bytes",
        type=cli_types.count,
        default=4 * 2**20,
        metavar="N",
        help="bytes of a request (default: 4 MiB)",
    )
    network = made.add_argument_group("network")
    network.add_argument(
        "--listen",
        default="localhost:50051",
        metavar="ADDRESS",
        help="HOST:PORT or unix:PATH (default: localhost:50051)",
    )
    network.add_argument("--tls-cert", type=Path, metavar="FILE", help="speak TLS, with this certificate (PEM)")
    network.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's private key (PEM)")
    network.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="clients need a certificate that one of these has signed (PEM)",
    )
    network.add_argument(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="callers need a token of this file (TOML); `gradellm token NAME` makes one",
    )
    network.add_argument("--insecure", action="store_true", help="allow plain text on an address that others can reach")
    network.add_argument(
        "--grace-seconds",
        type=cli_types.seconds,
        default=10.0,
        metavar="S",
        help="when told to stop, finish running calls for so long, then exit (default: 10)",
    )
    network.add_argument(
        "--reader-timeout",
        type=cli_types.seconds,
        default=60.0,
        metavar="S",
        help="end a stream that its client has not read for so long (default: 60)",
    )
    network.add_argument(
        "--health-port",
        metavar="[HOST:]PORT",
        help="tell grpc.health.v1, and nothing else, here in plain text too; services: ready, live",
    )
    eyes = made.add_argument_group("watching it")
    eyes.add_argument(
        "--metrics-listen",
        metavar="ADDRESS",
        help=f"HOST:PORT that Prometheus scrapes, in plain text, or none (default: {METRICS_LISTEN}; none on a Unix "
        "socket)",
    )
    eyes.add_argument(
        "--otlp-endpoint", metavar="URL", help="send a span a call to this OpenTelemetry collector, by OTLP over gRPC"
    )
    eyes.add_argument(
        "--log-format", default="text", choices=logging_setup.FORMATS, help="of lines and records (default: text)"
    )
    eyes.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    eyes.add_argument(
        "--stall-seconds",
        type=cli_types.seconds,
        default=120.0,
        metavar="S",
        help="not live when one pass of the model takes longer; more than the longest that your machine needs for "
        "512 tokens, or 2048 on a GPU (default: 120)",
    )
    eyes.add_argument(
        "--debug",
        action="store_true",
        help="answer channelz (connections and calls), and write all threads' stacks on SIGUSR1",
    )
    made.add_argument(
        "--exit-with-stdin", action="store_true", help="stop when standard input ends (for a parent process)"
    )
    made.add_argument(
        "--allow-faults", action="store_true", help=argparse.SUPPRESS
    )  # see gradellm_server.fault_injection
    return made


def _metrics_listen(options: argparse.Namespace) -> str | None:
    """Where metrics are scraped, if anywhere; by default not of a child that serves its parent by a Unix socket."""
    if options.metrics_listen is None:
        return None if options.listen.startswith("unix:") else METRICS_LISTEN
    return None if options.metrics_listen in ("none", "0") else str(options.metrics_listen)


def _health_listen(text: str | None) -> str | None:
    """Where health alone is told: a port is one of this machine alone."""
    return f"127.0.0.1:{text}" if text is not None and ":" not in text else text


async def _serve(options: argparse.Namespace, settings: ServerSettings, spans: tracing.Tracing | None) -> int:
    began = time.monotonic()
    say("starting Python's machine-learning libraries")
    # Importing torch takes seconds: only once the options are known to be good.
    from gradellm_engine import EngineError, GroupLostError, OutOfMemoryError
    from gradellm_server.engine_thread import EngineFailedError
    from gradellm_server.server import Server

    watchers: list[CallObserver] = [RequestLog()]
    if spans is not None:
        watchers.insert(0, spans)  # a span may give a call the trace id that the log tells
    server = Server(settings, watchers)  # before the model, so that a taken port is known at once
    if health_address := await server.announce():
        say(f"telling health on {health_address}")
    try:
        engine = await asyncio.to_thread(_load, options, say)  # health is told meanwhile
    except EngineError as error:
        return _fail(str(error))
    gc.collect()
    gc.freeze()  # libraries' own objects: looking through them again and again would cost a part of every token
    info = engine.info
    if spans is not None:
        spans.serve(info.name)
    say("warming up")
    try:
        await server.start(engine)
    except OutOfMemoryError:
        return _fail(
            f"memory ran out in the warm-up: keys and values have {engine.kv_bytes / 2**30:,.1f} GiB; give them less "
            "with --kv-memory, so that passes of the model fit beside them"
        )
    except EngineError as error:
        return _fail(f"the model does not run: {error}")
    except EngineFailedError:  # the log has said why
        print("error: the engine failed in the warm-up", file=sys.stderr, flush=True)
        return EXIT_LOST
    metrics = f", metrics on {server.metrics_address}" if server.metrics_address else ""
    say(
        f"serving {info.name} ({info.family}, {info.num_parameters / 1e6:,.1f}M parameters, "
        f"{'' if info.quantization == 'none' else f'{info.quantization} weights, '}{info.dtype} on {info.device}) "
        f"on {server.address}{metrics} after {time.monotonic() - began:.1f} s"
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, number, stopping)
    is_lost = engine.scheduler.needs_heartbeat and await _lost(server, stopping)
    await stopping.wait()
    if is_lost:
        say("a rank is lost: the group has to be started again")
        await asyncio.sleep(LOST_SECONDS)
    else:
        say(f"stopping: running calls have {options.grace_seconds:g} s; a second signal ends at once")
    ended = await server.stop(0.0 if is_lost else options.grace_seconds)
    if spans is not None:
        await asyncio.to_thread(spans.close)
    if not ended or is_lost:  # a pass that goes on would hold up the interpreter's own end
        os._exit(EXIT_LOST if is_lost else 0)
    with contextlib.suppress(GroupLostError):
        engine.stop_followers()
    return 0


def _load(options: argparse.Namespace, progress: Callable[[str], None]) -> Engine:
    """The engine, of which several processes may each have a share."""
    from gradellm_engine import Engine, ProcessGroup, Quantization

    return Engine.load(
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
        kv_bytes=options.kv_memory,
        method_bytes=options.method_memory,
        threads=options.threads,
        use_graphs=not options.eager,
        batch_invariant=options.batch_invariant,
        progress=progress,
    )


def _follow(options: argparse.Namespace) -> int:
    """A rank that serves nobody: it runs what rank 0 runs, and ends with it."""
    from gradellm_engine import EngineError, GroupLostError

    try:
        engine = _load(options, lambda stage: None)
        gc.collect()
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGINT):  # a launcher sends them to all: rank 0 knows when it is over
            signal.signal(number, signal.SIG_IGN)
        engine.run_follower()
    except GroupLostError as error:
        logging.getLogger("gradellm").critical("%s", error)
        return EXIT_LOST
    except EngineError as error:
        return _fail(str(error))
    return 0


async def _lost(server: Server, stopping: asyncio.Event) -> bool:
    """Wait until it is to stop, or a rank is lost; whether that is so."""
    while not stopping.is_set():
        if not server.engine_thread.is_running:
            stopping.set()
            return True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
    return False


def _on_signal(number: int, stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(128 + number)
    stopping.set()


def _exit_at_end_of_stdin() -> NoReturn:
    """A parent holds the other end of our standard input; however it ends, even by kill -9, the end is closed."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return EXIT_USAGE


def _leave(number: int, frame: object) -> NoReturn:
    """Until there is something to stop in order. An exception would wait for imports and reads to end."""
    os.write(sys.stderr.fileno(), b"gradellm: stopped before it was ready\n")  # print may be what was interrupted
    os._exit(128 + number)


if __name__ == "__main__":
    native_stderr.leave_out_panics()
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _leave)
    _status = main()
    logging.shutdown()
    sys.stdout.flush()
    # Not by the interpreter's own end, at which compiled libraries complain of each other over many lines.
    os._exit(_status)
