"""The port of metrics: taken early, refused clearly, closed with the server."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from gradellm.v1 import explainer_pb2 as pb
from gradellm_server.__main__ import main
from gradellm_server.metrics_port import MetricsPort
from gradellm_server.settings import ListenError, ServerSettings
from server.conftest import Serving


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def test_a_taken_port_is_a_clear_error_before_the_model_is_loaded(
    taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ListenError, match=f"cannot listen on {taken} for metrics"):
        MetricsPort(taken, CollectorRegistry())
    assert main(["--listen", "127.0.0.1:0", "--metrics-listen", taken]) == 2
    told = capsys.readouterr().err
    assert told.strip().splitlines()[-1].startswith(f"error: cannot listen on {taken} for metrics")
    assert "weights" not in told


@pytest.mark.parametrize("wrong", ["9090", ":9090", "localhost", "localhost:http", "localhost:70000", "unix:/x"])
def test_an_address_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ListenError, match="is not HOST:PORT"):
        ServerSettings(metrics_listen=wrong)
    assert main(["--metrics-listen", wrong]) == 2
    assert "is not HOST:PORT" in capsys.readouterr().err


def test_a_closed_port_answers_no_more_and_can_be_taken_again() -> None:
    port = MetricsPort("localhost:0", CollectorRegistry())
    url = f"http://{port.address}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert answer.status == 200
    port.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)
    MetricsPort(port.address, CollectorRegistry()).close()


def test_a_default_port_that_is_taken_is_a_warning(
    taken: str, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(metrics_listen=taken, metrics_required=False) as server:
        assert server.server.metrics_address is None
        assert f"without metrics: cannot listen on {taken}" in caplog.text
        server.stub.Tokenize(pb.TokenizeRequest(input=pb.Input(prompt="a")))
