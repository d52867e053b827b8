"""The command line of `gradellm serve`. Imports nothing heavy: options are checked before torch is imported."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from gradellm._version import __version__
from gradellm.models.server import Preset
from gradellm_server import cli_types
from gradellm_server.observability import logging_setup

METRICS_LISTEN = "127.0.0.1:9090"
EXAMPLES = """\
examples:
  gradellm serve                                      the demo model, on localhost:50051
  gradellm serve --model ./my-model                   a folder with config.json, tokenizer.json and *.safetensors
  gradellm serve --model ORGANISATION/NAME            a model of the Hugging Face hub
  gradellm serve --model ./big --device-map auto      layers spread over all GPUs
  torchrun --nproc-per-node 4 -m gradellm_server --tensor-parallel --model ./big
                                                      tensor parallel on 4 GPUs
  gradellm serve --listen unix:/tmp/gradellm.sock     on a Unix socket
  gradellm serve --listen 0.0.0.0:50051 --tls-cert server.pem --tls-key server.key --tokens tokens.toml
"""


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    parser = argparse.ArgumentParser(
        prog="gradellm serve",
        description="Serve a decoder-only language model and attribute every token that it generates.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gradellm {__version__}")
    _add_model_options(parser)
    _add_limit_options(parser)
    _add_network_options(parser)
    _add_observability_options(parser)
    parser.add_argument(
        "--exit-with-stdin", action="store_true", help="stop at the end of standard input (for a parent process)"
    )
    # For tests; see gradellm_server.fault_injection.
    parser.add_argument("--allow-faults", action="store_true", help=argparse.SUPPRESS)
    return parser


def metrics_address(options: argparse.Namespace) -> str | None:
    """HOST:PORT of the metrics server; None without one. A server on a Unix socket has none by default."""
    if options.metrics_listen is None:
        return None if options.listen.startswith("unix:") else METRICS_LISTEN
    return None if options.metrics_listen in ("none", "0") else str(options.metrics_listen)


def health_address(port: str | None) -> str | None:
    """HOST:PORT of the health port; a port without host is on the loopback interface."""
    return f"127.0.0.1:{port}" if port is not None and ":" not in port else port


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="PATH_OR_HUB_ID", help="the model to serve (default: the demo model)")
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16", "float64"],
        help="dtype of the weights; auto is float32 on a CPU, else the checkpoint's own",
    )
    group.add_argument(
        "--quantize",
        default="none",
        choices=["none", "int8", "nf4"],
        help="quantize the weights to 8 or 4 bits; needs the extra [quant] (default: none)",
    )
    group.add_argument(
        "--generation-config",
        default="auto",
        choices=["auto", "none"],
        help="auto: requests have the sampling defaults of the model's generation_config.json; none: the server's own, "
        "which are greedy decoding (default: auto)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...; auto is a GPU if there is one")
    group.add_argument(
        "--device-map", metavar="MAP", help="spread the layers over devices with accelerate: auto, balanced, ..."
    )
    group.add_argument(
        "--tensor-parallel",
        action="store_true",
        help="shard the model over the ranks that torchrun starts; rank 0 serves",
    )
    group.add_argument(
        "--threads", type=cli_types.count, metavar="N", help="CPU threads (default: one for each available core)"
    )
    group.add_argument(
        "--eager",
        action="store_true",
        help="run decode steps eagerly, without CUDA graphs (GPU) or traces (CPU)",
    )
    group.add_argument(
        "--batch-invariant",
        action="store_true",
        help="bitwise the same tokens and scores, whatever the batch holds and wherever a stream is resumed; slower; "
        "CPU with float32 or float64 only",
    )


def _add_limit_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--max-context-tokens", type=cli_types.count, metavar="N", help="context length, if less than the model's own"
    )
    group.add_argument(
        "--max-new-tokens",
        type=cli_types.count,
        default=4096,
        metavar="N",
        help="maximum length of a completion (default: 4096)",
    )
    _add_scheduling_options(group)
    group.add_argument(
        "--default-attribution",
        choices=get_args(Preset),
        default="recommended",
        help="the preset of requests that want an attribution and name neither a preset nor a method nor a switch "
        "(default: recommended)",
    )
    group.add_argument(
        "--memory",
        type=cli_types.size,
        metavar="SIZE",
        help="memory of the server, on a GPU of its device, which weights, their packed copies, the KV cache and "
        "methods keep to, such as 16GiB (default: what there is)",
    )
    group.add_argument(
        "--kv-memory",
        type=cli_types.size,
        metavar="SIZE",
        help="memory for the KV cache, such as 8GiB (default: half of what is free once the model is loaded)",
    )
    group.add_argument(
        "--method-memory",
        type=cli_types.size,
        metavar="SIZE",
        help="memory for post-hoc attribution methods (default: half of what is still free after that)",
    )
    group.add_argument(
        "--max-message-bytes",
        type=cli_types.count,
        default=4 * 2**20,
        metavar="N",
        help="maximum size of a request in bytes (default: 4 MiB)",
    )


def _add_scheduling_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-running",
        type=cli_types.count,
        default=16,
        metavar="N",
        help="maximum number of running requests (default: 16)",
    )
    group.add_argument(
        "--max-followed",
        type=cli_types.count,
        default=64,
        metavar="N",
        help="maximum number of completions of other engines that are followed at a time (default: 64)",
    )
    group.add_argument(
        "--max-gap-ms",
        type=cli_types.milliseconds,
        default=1.0,
        dest="max_gap",
        metavar="MS",
        help="how long prompts may delay the next token of running requests; less makes streams smoother, more makes "
        "prompts and the whole server faster (default: 1000)",
    )
    group.add_argument(
        "--max-queued",
        type=int,
        default=64,
        metavar="N",
        help="maximum number of queued requests; more are rejected (default: 64)",
    )
    group.add_argument(
        "--max-queued-tokens",
        type=cli_types.count,
        default=262144,
        metavar="N",
        help="maximum tokens of all queued requests, prompts and longest completions (default: 262144)",
    )


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--listen",
        default="localhost:50051",
        metavar="ADDRESS",
        help="HOST:PORT or unix:PATH (default: localhost:50051)",
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="serve TLS with this certificate (PEM)")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's private key (PEM)")
    group.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="require client certificates signed by one of these authorities (PEM)",
    )
    group.add_argument(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="require a token of this file (TOML); `gradellm token NAME` makes one",
    )
    group.add_argument(
        "--insecure", action="store_true", help="allow plain text on an address that other machines can reach"
    )
    group.add_argument(
        "--grace-seconds",
        type=cli_types.seconds,
        default=10.0,
        metavar="S",
        help="time for running calls to finish after SIGTERM (default: 10)",
    )
    group.add_argument(
        "--reader-timeout",
        type=cli_types.seconds,
        default=60.0,
        metavar="S",
        help="abort a stream that its client has not read for this long (default: 60)",
    )
    group.add_argument(
        "--follow-idle-seconds",
        type=cli_types.seconds,
        default=300.0,
        metavar="S",
        help="end a Follow stream to which nothing was sent for this long (default: 300)",
    )
    group.add_argument(
        "--health-port",
        metavar="[HOST:]PORT",
        help="serve grpc.health.v1, and nothing else, in plain text on this port too; services: ready, live",
    )


def _add_observability_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("observability")
    group.add_argument(
        "--metrics-listen",
        metavar="ADDRESS",
        help=f"HOST:PORT of the Prometheus metrics, in plain text, or none (default: {METRICS_LISTEN}; none with a "
        "Unix socket)",
    )
    group.add_argument(
        "--otlp-endpoint", metavar="URL", help="export a span for each call to this OpenTelemetry collector (OTLP/gRPC)"
    )
    group.add_argument(
        "--log-format", default="text", choices=logging_setup.FORMATS, help="format of log records (default: text)"
    )
    group.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    group.add_argument(
        "--stall-seconds",
        type=cli_types.seconds,
        default=120.0,
        metavar="S",
        help="report the server as not live when one pass of the model takes longer. Set it above the duration of your "
        "slowest prefill chunk: 512 tokens, 2048 on a GPU (default: 120)",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        help="serve channelz (connections and calls), and dump the stacks of all threads on SIGUSR1",
    )
