"""`gradellm attribute`: a given completion, explained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gradellm.cli import main
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


def test_attribute(fake: FakeServer, capsys: Out) -> None:
    assert main(["attribute", "Once", "--completion", " there", "--method", "saliency", "--target", fake.target]) == 0
    assert main(["attribute", "Once", "--completion-ids", "50", "--format", "json", "--target", fake.target]) == 0
    assert fake.requests[0] == pb.AttributeRequest(
        input=pb.Input(prompt="Once"), completion=" there", attribution=pb.AttributionOptions(method="saliency")
    )
    assert '"format":"gradellm.explanation"' in capsys.readouterr().out


def test_retention_is_drawn_instead_of_words(fake: FakeServer, capsys: Out) -> None:
    assert main(["attribute", "Once", "--completion", " there", "--retention", "0.5", "--target", fake.target]) == 0
    assert capsys.readouterr().out.startswith("π = 0.5")


METHOD_FLAGS = """
    --completion x --method integrated_gradients --objective log_prob --aggregation sum --steps 7 --samples 8
    --attribution-seed 9 --layer -1 --baseline-ids 1,2
"""


def test_every_flag_of_methods(fake: FakeServer) -> None:
    assert main(["attribute", "Once", *METHOD_FLAGS.split(), "--target", fake.target]) == 0
    assert fake.requests == [
        pb.AttributeRequest(
            input=pb.Input(prompt="Once"),
            completion="x",
            attribution=pb.AttributionOptions(
                method="integrated_gradients",
                objective=pb.OBJECTIVE_LOG_PROB,
                aggregation=pb.AGGREGATION_SUM,
                steps=7,
                samples=8,
                seed=9,
                layer=-1,
                baseline_ids=[1, 2],
            ),
        )
    ]
