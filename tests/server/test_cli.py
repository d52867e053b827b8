"""The command line: options and the addresses that follow from them."""

from __future__ import annotations

import inspect

import pytest

from gradellm_engine import Engine
from gradellm_server.cli import METRICS_LISTEN, health_address, metrics_address, parser


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], METRICS_LISTEN),
        (["--listen", "unix:/tmp/x.sock"], None),
        (["--listen", "unix:/tmp/x.sock", "--metrics-listen", "localhost:1"], "localhost:1"),
        (["--metrics-listen", "none"], None),
        (["--metrics-listen", "0"], None),
        (["--metrics-listen", "0.0.0.0:9"], "0.0.0.0:9"),
    ],
)
def test_the_default_address_of_the_metrics(arguments: list[str], expected: str | None) -> None:
    assert metrics_address(parser().parse_args(arguments)) == expected


@pytest.mark.parametrize(
    ("port", "expected"), [(None, None), ("8080", "127.0.0.1:8080"), ("0.0.0.0:8080", "0.0.0.0:8080")]
)
def test_a_health_port_without_host_is_on_the_loopback(port: str | None, expected: str | None) -> None:
    assert health_address(port) == expected


def test_batch_invariance_is_a_flag() -> None:
    assert parser().parse_args(["--batch-invariant"]).batch_invariant
    assert not parser().parse_args([]).batch_invariant


# The command line does not import the engine for its help, so its defaults are numbers of their own.
SAME_DEFAULTS = {
    "max_new_tokens": "max_new_tokens",
    "max_running": "max_running",
    "max_gap": "max_gap",
    "memory": "memory_bytes",
    "kv_memory": "kv_bytes",
    "method_memory": "method_bytes",
    "dtype": "dtype",
    "device": "device",
    "threads": "threads",
    "batch_invariant": "batch_invariant",
}


@pytest.mark.parametrize(("option", "parameter"), SAME_DEFAULTS.items())
def test_defaults_are_the_engines(option: str, parameter: str) -> None:
    default = inspect.signature(Engine.load).parameters[parameter].default
    assert getattr(parser().parse_args([]), option) == default


def test_a_limit_of_memory() -> None:
    assert parser().parse_args(["--memory", "2GiB"]).memory == 2**31
