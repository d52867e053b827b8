"""`python -m gradellm_server`: load a model and serve it until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from gradellm._version import __version__
from gradellm_server.settings import ListenError, ServerSettings

EXIT_USAGE = 2
EXAMPLES = """\
examples:
  gradellm serve                                      the demo model, on localhost:50051
  gradellm serve --model ./my-model                   a folder with config.json, tokenizer.json and *.safetensors
  gradellm serve --model ORGANISATION/NAME            a model of the Hugging Face hub
  gradellm serve --model ./big --device-map auto      spread over all GPUs
  gradellm serve --listen unix:/tmp/gradellm.sock     on a Unix socket
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if options.exit_with_stdin:
        threading.Thread(target=_exit_at_end_of_stdin, name="stdin-watch", daemon=True).start()
    try:
        settings = ServerSettings(
            listen=options.listen,
            insecure=options.insecure,
            max_queued=options.max_queued,
            max_queued_tokens=options.max_queued_tokens,
            max_message_bytes=options.max_message_bytes,
        )
        return asyncio.run(_serve(options, settings))
    except ListenError as error:
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
        "--threads", type=_count, metavar="N", help="CPU threads (default: one for each core that it may use)"
    )
    model.add_argument("--no-cuda-graphs", action="store_true", help="on a GPU, run decode steps call by call")
    limits = made.add_argument_group("limits")
    limits.add_argument("--max-context-tokens", type=_count, metavar="N", help="less than the model's own context")
    limits.add_argument(
        "--max-new-tokens",
        type=_count,
        default=4096,
        metavar="N",
        help="tokens of a completion at most (default: 4096)",
    )
    limits.add_argument(
        "--max-running", type=_count, default=16, metavar="N", help="requests that run at the same time (default: 16)"
    )
    limits.add_argument(
        "--max-queued", type=int, default=64, metavar="N", help="requests that may wait; more are refused (default: 64)"
    )
    limits.add_argument(
        "--max-queued-tokens",
        type=_count,
        default=262144,
        metavar="N",
        help="tokens of all requests that wait, with their completions at their longest (default: 262144)",
    )
    limits.add_argument(
        "--kv-memory",
        type=_size,
        metavar="SIZE",
        help="memory for keys and values, such as 8GiB (default: half of what is free once the model is loaded)",
    )
    limits.add_argument(
        "--method-memory",
        type=_size,
        metavar="SIZE",
        help="memory for methods that look at whole completions (default: half of what is free beside the rest)",
    )
    limits.add_argument(
        "--max-message-bytes", type=_count, default=4 * 2**20, metavar="N", help="bytes of a request (default: 4 MiB)"
    )
    network = made.add_argument_group("network")
    network.add_argument(
        "--listen",
        default="localhost:50051",
        metavar="ADDRESS",
        help="HOST:PORT or unix:PATH (default: localhost:50051)",
    )
    network.add_argument("--insecure", action="store_true", help="allow plain text on an address that others can reach")
    network.add_argument(
        "--grace-seconds", type=float, default=10.0, metavar="S", help="for running calls when told to stop"
    )
    made.add_argument(
        "--exit-with-stdin", action="store_true", help="stop when standard input ends (for a parent process)"
    )
    made.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return made


def _count(text: str) -> int:
    """A number of at least one."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be at least 1, was {text}")
    return int(text)


def _size(text: str) -> int:
    """Bytes, from a number with or without a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512MiB or 8GB")
    number, unit = match[1], (match[2] or "B").upper()
    return int(float(number) * (1024 if "I" in unit else 1000) ** "BKMGT".index(unit[0]))


async def _serve(options: argparse.Namespace, settings: ServerSettings) -> int:
    began = time.monotonic()
    _say("starting Python's machine-learning libraries")
    # Importing torch takes seconds: only once the options are known to be good.
    from gradellm_engine import Engine, EngineError, Quantization
    from gradellm_server.server import Server

    server = Server(settings)  # before the model, so that a taken port is known at once
    try:
        engine = Engine.load(
            options.model,
            revision=options.revision,
            dtype=options.dtype,
            quantization=Quantization(options.quantize),
            device=options.device,
            device_map=options.device_map,
            context_tokens=options.max_context_tokens,
            max_new_tokens=options.max_new_tokens,
            max_running=options.max_running,
            kv_bytes=options.kv_memory,
            method_bytes=options.method_memory,
            threads=options.threads,
            record_steps=not options.no_cuda_graphs,
            progress=_say,
        )
    except EngineError as error:
        return _fail(str(error))
    gc.collect()
    gc.freeze()  # libraries' own objects: looking through them again and again would cost a part of every token
    await server.start(engine)
    info = engine.info
    _say(
        f"serving {info.name} ({info.family}, {info.num_parameters / 1e6:,.1f}M parameters, "
        f"{'' if info.quantization == 'none' else f'{info.quantization} weights, '}{info.dtype} on {info.device}) "
        f"on {server.address} after {time.monotonic() - began:.1f} s"
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, number, stopping)
    await stopping.wait()
    _say(f"stopping: running calls have {options.grace_seconds:g} s; a second signal ends at once")
    await server.stop(options.grace_seconds)
    return 0


def _on_signal(number: int, stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(128 + number)
    stopping.set()


def _exit_at_end_of_stdin() -> NoReturn:
    """A parent holds the other end of our standard input; however it ends, even by kill -9, the end is closed."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def _say(stage: str) -> None:
    print(f"gradellm: {stage}", file=sys.stderr, flush=True)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return EXIT_USAGE


def _leave(number: int, frame: object) -> NoReturn:
    """Until there is something to stop in order. An exception would wait for imports and reads to end."""
    os.write(2, b"gradellm: stopped before it was ready\n")  # print may be what was interrupted
    os._exit(128 + number)


if __name__ == "__main__":
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _leave)
    sys.exit(main())
