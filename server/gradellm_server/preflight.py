"""Checks before torch is imported, within a second: model, options, files and addresses.

Each check is repeated at use: a port may be bound meanwhile, and a file may change.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from gradellm_engine import ModelLoadError, check_checkpoint, check_context
from gradellm_server.addresses import check_free
from gradellm_server.auth.tls import TlsFiles
from gradellm_server.auth.tokens import read_clients
from gradellm_server.settings import ServerSettings

_QUANTIZATION_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


@dataclass(frozen=True)
class ModelOptions:
    """The options of the model that are checked.

    Attributes:
        model: a path or hub id; None for the demo model.
        context_tokens: context length, if less than the model's own.
        device: auto, or a device's name.
        device_map: for accelerate.
        quantization: of the weights.
        is_tensor_parallel: whether the model is sharded over ranks.
    """

    model: str | None = None
    context_tokens: int | None = None
    device: str = "auto"
    device_map: str | None = None
    quantization: str = "none"
    is_tensor_parallel: bool = False


def check(settings: ServerSettings, options: ModelOptions) -> None:
    """Check that a server can start.

    Raises:
        ListenError: if an address is in use, or does not exist.
        SecurityFileError: if certificates or tokens cannot be used.
        ModelLoadError: if the path holds no model that can be served with these options.
    """
    if settings.tokens is not None:
        read_clients(settings.tokens)
    if settings.tls_cert is not None and settings.tls_key is not None:
        TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca).read()
    check_free(settings.listen)
    if settings.metrics_listen is not None and settings.metrics_required:
        check_free(settings.metrics_listen, " for metrics", "; say --metrics-listen HOST:PORT, or none")
    if settings.health_listen is not None:
        check_free(settings.health_listen, " for health checks", "; say --health-port [HOST:]PORT")
    _check_model(options)


def _check_model(options: ModelOptions) -> None:
    if options.device_map is not None and options.device != "auto":
        raise ModelLoadError(
            f"give either a device ({options.device}) or a device map ({options.device_map}), not both"
        )
    if options.is_tensor_parallel:  # as `gradellm_engine.model.load_options.check_placement`, which imports torch
        if options.device_map is not None:
            raise ModelLoadError(
                f"every tensor-parallel rank has one device: give no device map ({options.device_map})"
            )
        if options.device != "auto":
            raise ModelLoadError(
                f"tensor-parallel ranks have a GPU each, or none: leave device at auto, not {options.device!r}"
            )
        if options.quantization != "none":
            raise ModelLoadError(
                f"tensor parallelism does not shard weights in {options.quantization}: give no quantize, or a single "
                "rank"
            )
    package = _QUANTIZATION_PACKAGES.get(options.quantization)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ModelLoadError(f"weights in {options.quantization} need {package}: pip install 'gradellm[quant]'")
    if options.model is not None:
        check_checkpoint(options.model)
        if options.context_tokens is not None:
            check_context(options.model, options.context_tokens)
