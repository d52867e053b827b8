"""The gateway's command line: `gradellm gateway`, `python -m gradellm_gateway`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradellm.parsers.registry import CALL_PARSERS, REASONING_PARSERS
from gradellm.transport.credentials import is_local

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from gradellm import AsyncClient
    from gradellm.transport.spans import Spans
    from gradellm_gateway.upstream.routes import UpstreamRoutes

EXIT_USAGE, EXIT_FAILED = 2, 3  # the latter is uvicorn's, which has logged the reason
EXAMPLES = """\
examples:
  gradellm serve --model PATH &
  gradellm gateway --target localhost:50051
  then open http://127.0.0.1:8080, or point an OpenAI client at http://127.0.0.1:8080/v1

  in front of another engine with the same model, whose answers are explained:
  vllm serve PATH --port 8000 &
  gradellm gateway --upstream http://localhost:8000/v1 --target localhost:50051
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check_installed(parser)
    host, port = _checked_address(parser, options)
    import uvicorn

    from gradellm import GradellmError
    from gradellm.transport.spans import TracingError
    from gradellm_gateway.app import gateway
    from gradellm_gateway.tools.forms import AnswerForms

    refusals: list[str] = []

    def refuse(message: str) -> None:
        refusals.append(message)
        server.should_exit = True

    try:
        api_keys = _api_keys(options)
        client = _client(options)
        upstream = _upstream_routes(options, client, refuse) if options.upstream else None
        spans = _spans(options.otlp_endpoint) if options.otlp_endpoint else None
    except (GradellmError, TracingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    app = gateway(
        client,
        upstream=upstream,
        served_names=[name for names in options.served_model_name or () for name in names],
        api_keys=api_keys,
        forms=AnswerForms(options.tool_call_parser, options.reasoning_parser),
        spans=spans,
        allow_origins=options.allow_origin or (),
        allow_hosts=["*"] if not is_local(host) else ["localhost", host, *(options.allow_host or ())],
    )
    config = _server_config(options, app, host, port)
    try:
        config.load()
    except OSError as error:  # also OpenSSL's errors
        parser.error(f"--tls-cert {options.tls_cert} and --tls-key {options.tls_key} cannot be used: {error}")
    server = uvicorn.Server(config)
    _log_requests(options.log_level)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a graceful shutdown
        server.run()
    for message in refusals:
        print(f"error: {message}", file=sys.stderr)
    return EXIT_USAGE if refusals else 0 if server.started else EXIT_FAILED


def _server_config(options: argparse.Namespace, app: Starlette, host: str, port: int) -> uvicorn.Config:
    from gradellm_gateway.connections import Limits, uvicorn_config

    return uvicorn_config(
        app,
        limits=Limits(connections=options.max_connections),
        host=host,
        port=port,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        log_level=options.log_level,
        access_log=False,  # the gateway's own lines have requests' ids
        timeout_graceful_shutdown=10,
    )


def _check_installed(parser: argparse.ArgumentParser) -> None:
    needed = ("httpx2", "prometheus_client", "starlette", "uvicorn")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        parser.error(f"the gateway needs {' and '.join(missing)}: pip install 'gradellm[gateway]'")


def _log_requests(level: str) -> None:
    """Write the gateway's own lines where uvicorn's are, in its format."""
    from uvicorn.logging import DefaultFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(DefaultFormatter("%(levelprefix)s %(message)s"))
    logger = logging.getLogger("gradellm_gateway")
    logger.setLevel(level.upper())
    logger.addHandler(handler)


def _checked_address(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, int]:
    """Return host and port to listen on; flags that contradict each other end the program."""
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 1 << 16:
        parser.error(f"--listen {options.listen} is not HOST:PORT, such as 127.0.0.1:8080")
    if (options.tls_cert is None) != (options.tls_key is None):
        parser.error("--tls-cert and --tls-key need each other")
    if not (options.tls_cert or options.insecure or is_local(host)):
        parser.error(
            f"--listen {options.listen} can be reached from other machines without encryption; give --tls-cert and "
            "--tls-key, listen on 127.0.0.1, or give --insecure if the network is trusted"
        )
    if options.served_model_name and options.upstream:
        parser.error("--served-model-name is the upstream's own; give it to the upstream")
    has_keys = options.api_key or options.api_key_file
    if has_keys and options.upstream:
        parser.error("--api-key and --upstream exclude each other: callers' keys go to the upstream, which checks them")
    if options.target_token_file and not (options.upstream or has_keys):
        parser.error(
            "--target-token-file needs --upstream or --api-key: else callers' own tokens go to the explanation server"
        )
    return host.strip("[]"), int(port)


def _client(options: argparse.Namespace) -> AsyncClient:
    """Return the client of the explanation server. Raises GradellmError for flags that it does not take."""
    from gradellm import AsyncClient, Retry, Tls

    tls: Any = Tls(ca=options.target_tls_ca) if options.target_tls_ca else options.target_tls
    # Few retries: callers have timeouts and get Retry-After. A broken stream is resumed here.
    retry = Retry(attempts=2, longest_wait_seconds=2)
    return AsyncClient(options.target, tls=tls, token=_token("--target-token-file", options), retry=retry)


def _spans(endpoint: str) -> Spans:
    """Return what makes the gateway's spans. Raises TracingError for an endpoint that is none, or without the extra."""
    from gradellm._version import __version__
    from gradellm.transport.spans import otlp_spans

    return otlp_spans(endpoint, service="gradellm-gateway", scope="gradellm_gateway", version=__version__)


def _upstream_routes(
    options: argparse.Namespace, client: AsyncClient, refuse: Callable[[str], object]
) -> UpstreamRoutes:
    """Return the routes in front of an upstream. Raises GradellmError for flags that cannot be."""
    from gradellm_gateway.upstream.connection import Timeouts, Upstream
    from gradellm_gateway.upstream.followed_answer import FollowSettings
    from gradellm_gateway.upstream.routes import UpstreamRoutes

    upstream = Upstream(
        options.upstream,
        timeouts=Timeouts(options.upstream_connect_timeout, options.upstream_timeout),
        token=_token("--upstream-token-file", options),
    )
    settings = FollowSettings(options.upstream_dtype, options.explain_wait)
    return UpstreamRoutes(upstream, client, settings, refuse)


def _token(flag: str, options: argparse.Namespace) -> str | None:
    """Return the token in a flag's file. Raises InvalidRequestError for a file without one."""
    from gradellm import InvalidRequestError

    path = getattr(options, flag.removeprefix("--").replace("-", "_"))
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"{flag} {path} cannot be read: {error}") from error
    if not re.fullmatch(r"[!-~]+", token):  # not quoted: errors end up in logs
        raise InvalidRequestError(f"{flag} {path} must have one token: printable ASCII characters without spaces")
    return token


def _api_keys(options: argparse.Namespace) -> list[str]:
    """Return the keys of the flags and of their files. Raises InvalidRequestError for one that is none."""
    from gradellm import InvalidRequestError

    keys = [key for keys in options.api_key or () for key in keys]
    for path in options.api_key_file or ():
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InvalidRequestError(f"--api-key-file {path} cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise InvalidRequestError(f"--api-key-file {path} has no key; write one a line")
        keys += found
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):  # not quoted: errors end up in logs
        raise InvalidRequestError("an API key must be printable ASCII characters without spaces")
    return keys


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradellm gateway",
        description="An HTTP gateway to gradellm servers: OpenAI's chat completions API, and a chat page.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key (PEM)")
    parser.add_argument("--insecure", action="store_true", help="serve other machines without TLS")
    parser.add_argument(
        "--allow-origin",
        action="append",
        metavar="ORIGIN",
        help="allow pages of this origin to call (CORS), such as https://chat.example.org; repeatable; * for all",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="on a loopback address, also accept this Host header, such as a proxy's; repeatable; * for all",
    )
    parser.add_argument(
        "--max-connections",
        type=_count,
        default=512,
        metavar="N",
        help="open connections; at the limit, those without a complete request are closed (default: 512)",
    )
    _add_caller_flags(parser)
    group = parser.add_argument_group("the explanation server")
    group.add_argument(
        "--target",
        default="localhost:50051",
        metavar="HOST:PORT[,...]",
        help="several are load-balanced; also dns:///name:port (default: %(default)s)",
    )
    group.add_argument("--target-tls", action="store_true", help="connect with TLS")
    group.add_argument("--target-tls-ca", metavar="FILE", help="CA of its certificate (PEM); implies --target-tls")
    _add_parser_flags(parser)
    _add_upstream_flags(parser)
    parser.add_argument(
        "--otlp-endpoint",
        metavar="URL",
        help="export a span for each request to this OpenTelemetry collector (OTLP/gRPC)",
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


def _add_caller_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--served-model-name",
        type=_model_name,
        action="append",
        nargs="+",
        metavar="NAME",
        help="names of the model in requests; answers have the first. By default its hub id, or its folder's name",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        nargs="+",
        metavar="KEY",
        help="callers below /v1 must send one of these keys; repeatable. Other users of the machine can read flags",
    )
    parser.add_argument(
        "--api-key-file", action="append", metavar="FILE", help="the same, with a key in each line; repeatable"
    )


def _add_parser_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers of the explanation server")
    group.add_argument(
        "--tool-call-parser",
        choices=tuple(CALL_PARSERS),
        help="the form in which the model calls tools; by default by the look of its chat template",
    )
    group.add_argument(
        "--reasoning-parser",
        choices=REASONING_PARSERS,
        default="qwen3",
        help="qwen3: an answer that begins with <think>, or whose prompt ends with it; deepseek_r1: every answer up to "
        "</think>; none: reasoning is content (default: %(default)s)",
    )


def _add_upstream_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("another engine that generates, in place of the explanation server")
    group.add_argument(
        "--upstream",
        metavar="URL",
        help="the base of its OpenAI API, such as http://localhost:8000/v1: requests are passed on to it",
    )
    group.add_argument(
        "--upstream-dtype",
        choices=("float32", "bfloat16", "float16", "fp8", "int8", "int4"),
        default="bfloat16",
        help="the numbers that it computes with: how much its log-probabilities may differ (default: %(default)s)",
    )
    group.add_argument(
        "--upstream-timeout",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long it may send nothing (default: 600)",
    )
    group.add_argument(
        "--upstream-connect-timeout", type=_seconds, default=5.0, metavar="SECONDS", help="to connect (default: 5)"
    )
    group.add_argument(
        "--upstream-token-file",
        metavar="FILE",
        help="a key for the gateway's own requests to it, at the start; callers' requests have their own",
    )
    group.add_argument(
        "--target-token-file",
        metavar="FILE",
        help="the gateway's own access token for the explanation server, with --upstream or --api-key",
    )
    group.add_argument(
        "--explain-wait",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long the end of an answer waits for its last attributions (default: 30)",
    )


def _model_name(text: str) -> str:
    if not text.strip() or text.startswith(("/", ".", "~")) or len(text) > 256:
        raise argparse.ArgumentTypeError(
            f"must be a name of at most 256 characters that is no path, was {text[:256]!r}"
        )
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, was {text}")
    return seconds


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be at least 1, was {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
