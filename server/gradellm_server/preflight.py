"""What can be told of a server before torch is imported, within a second: what it hosts, and where it listens.

Each check is made once more where the thing is used: a port may be taken meanwhile, and a file may change.
"""

from __future__ import annotations

import errno
import importlib.util
import socket
from dataclasses import dataclass
from pathlib import Path

from gradellm_engine.errors import ModelLoadError
from gradellm_engine.model.checkpoint_check import check_checkpoint, check_context
from gradellm_server.addresses import resolve
from gradellm_server.auth.tls import TlsFiles
from gradellm_server.auth.tokens import read_clients
from gradellm_server.settings import ListenError, ServerSettings, split_address

_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}  # by how weights are kept


@dataclass(frozen=True)
class Hosted:
    """What is to be hosted, as far as it is looked at here.

    Attributes:
        model: a path or hub id; None for the demo model.
        context_tokens: a smaller limit than the model's own.
        device: auto, or one by name.
        device_map: accelerate's.
        quantization: how weights are kept.
        is_shared: whether ranks share it out.
    """

    model: str | None = None
    context_tokens: int | None = None
    device: str = "auto"
    device_map: str | None = None
    quantization: str = "none"
    is_shared: bool = False


def check(settings: ServerSettings, hosted: Hosted) -> None:
    """See that a server may start, as far as can be told now.

    Raises:
        ListenError: where an address is taken, or is none.
        SecurityFileError: where certificates or tokens cannot be used.
        ModelLoadError: where the path holds no model that can be hosted so.
    """
    if settings.tokens is not None:
        read_clients(settings.tokens)
    if settings.tls_cert is not None and settings.tls_key is not None:
        TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca).read()
    _check_free(settings.listen)
    if settings.metrics_listen is not None and settings.metrics_required:
        _check_free(settings.metrics_listen, " for metrics", "; say --metrics-listen HOST:PORT, or none")
    if settings.health_listen is not None:
        _check_free(settings.health_listen, " for health checks", "; say --health-port [HOST:]PORT")
    _check_hosted(hosted)


def _check_hosted(hosted: Hosted) -> None:
    if hosted.device_map is not None and hosted.device != "auto":
        raise ModelLoadError(f"give either a device ({hosted.device}) or a device map ({hosted.device_map}), not both")
    if hosted.is_shared and hosted.device_map is not None:
        raise ModelLoadError(f"ranks have a device each: give no device map ({hosted.device_map}) with tensor parallel")
    if hosted.is_shared and (hosted.device != "auto" or hosted.quantization != "none"):
        raise ModelLoadError("ranks have a GPU each, or none, and share full weights: give no device and no quantize")
    package = _PACKAGES.get(hosted.quantization)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ModelLoadError(f"weights in {hosted.quantization} need {package}: pip install 'gradellm[quant]'")
    if hosted.model is not None:
        check_checkpoint(hosted.model)
        if hosted.context_tokens is not None:
            check_context(hosted.model, hosted.context_tokens)


def _check_free(address: str, purpose: str = "", hint: str = "") -> None:
    """See that nobody listens on an address of this machine.

    Raises:
        ListenError: where somebody does, or the address is none of this machine's.
    """
    if address.startswith("unix:"):
        folder = Path(address.removeprefix("unix:")).absolute().parent
        if not folder.is_dir():
            raise ListenError(f"cannot listen on {address}: there is no such folder")
        return
    host, port = split_address(address)
    reason = ""
    try:
        places = resolve(host, port)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ListenError(f"cannot listen on {address}{purpose}: {why}{hint}") from error
    for family, kind, protocol, place in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: what has just ended is free
                probe.bind(place)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = reason or ("the port is taken" if taken else (error.strerror or str(error)).lower())
        else:
            return  # one is enough for gRPC: localhost may have an address that this machine has not
    raise ListenError(f"cannot listen on {address}{purpose}: {reason or 'there is no such address'}{hint}")
