"""The gateway's command line: `gradellm gateway`, `python -m gradellm_gateway`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from gradellm.transport.credentials import is_local

EXIT_USAGE, EXIT_FAILED = 2, 3  # the latter is uvicorn's, which has logged the reason
EXAMPLES = """\
examples:
  gradellm serve --model PATH &
  gradellm gateway --target localhost:50051
  then open http://127.0.0.1:8080, or point an OpenAI client at http://127.0.0.1:8080/v1
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        parser.error(f"the gateway needs {' and '.join(missing)}: pip install 'gradellm[gateway]'")
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
    import uvicorn

    from gradellm import AsyncClient, GradellmError, Retry, Tls
    from gradellm_gateway.app import gateway
    from gradellm_gateway.connections import Limits, uvicorn_config

    hosts = ["*"] if not is_local(host) else ["localhost", host.strip("[]"), *(options.allow_host or ())]
    tls: Any = options.target_tls
    if options.target_tls_ca:
        tls = Tls(ca=options.target_tls_ca)
    try:
        # Few retries: callers have timeouts and get Retry-After. A broken stream is resumed here.
        client = AsyncClient(options.target, tls=tls, retry=Retry(attempts=2, longest_wait_seconds=2))
    except GradellmError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    config = uvicorn_config(
        gateway(client, allow_origins=options.allow_origin or (), allow_hosts=hosts),
        limits=Limits(connections=options.max_connections),
        host=host.strip("[]"),
        port=int(port),
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        log_level=options.log_level,
        timeout_graceful_shutdown=10,
    )
    try:
        config.load()
    except OSError as error:  # also OpenSSL's errors
        parser.error(f"--tls-cert {options.tls_cert} and --tls-key {options.tls_key} cannot be used: {error}")
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a graceful shutdown
        server.run()
    return 0 if server.started else EXIT_FAILED


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
    group = parser.add_argument_group("the explanation server")
    group.add_argument(
        "--target",
        default="localhost:50051",
        metavar="HOST:PORT[,...]",
        help="several are load-balanced; also dns:///name:port (default: %(default)s)",
    )
    group.add_argument("--target-tls", action="store_true", help="connect with TLS")
    group.add_argument("--target-tls-ca", metavar="FILE", help="CA of its certificate (PEM); implies --target-tls")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be at least 1, was {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
