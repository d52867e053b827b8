"""`gradellm info`: a server's model, methods and limits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gradellm import Client
from gradellm.cli import main
from gradellm.models import Estimate, MethodInfo

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


def test_info(fake: FakeServer, capsys: Out) -> None:
    assert main(["info", "--target", fake.target]) == 0
    out = capsys.readouterr().out
    assert "  parameters         260,000\n" in out
    assert "  grad_ellm *: Grad-ELLM.\n" in out
    assert main(["info", "--target", fake.target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"]["max_new_tokens"] == 64


EXPECTED_METHODS = """\
  saliency: Gradients.
      passes over prompt and completion: 1 forward, n^[[2J backward
      20 tokens after 1000: about 0.12 s, 3 MiB
      switches: layers, steps
      error: completeness
  attn *: Rows.
      passes over the completion: 1 forward, 0 backward
      20 tokens after 1000: about 1,234 s, 0 MiB
  old: From an older server.
  lrp: Rules.^[[2J
      not available: it has no gates
"""


def test_methods_have_their_cost_or_why_they_are_missing(
    fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(fake.target) as client:
        info = client.server_info()
    costly = MethodInfo(
        "saliency", "Gradients.", streams=False, switches=("layers", "steps"), forward_passes="1",
        backward_passes="n\x1b[2J", error="completeness", estimate=Estimate(1000, 20, 0.1234, 3 << 20),
    )  # fmt: skip
    alone = MethodInfo(
        "attn", "Rows.", streams=True, switches=(), forward_passes="1", backward_passes="0",
        reads_completion_alone=True, estimate=Estimate(1000, 20, 1234.4, 0),
    )  # fmt: skip
    old = MethodInfo("old", "From an older server.", streams=False, switches=())
    refused = MethodInfo("lrp", "Rules.\x1b[2J", streams=False, switches=("layers",), refusal="it has no gates")
    changed = replace(info, methods=(costly, alone, old, refused))
    monkeypatch.setattr(Client, "server_info", lambda self, **_: changed)
    assert main(["info", "--target", fake.target]) == 0
    methods = capsys.readouterr().out.split("(*: available in generate and explain)\n")[1].split("\nversions\n")[0]
    assert methods == EXPECTED_METHODS
