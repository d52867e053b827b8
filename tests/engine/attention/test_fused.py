"""Which maps the kernels compute."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradellm_engine import GradEllm
from gradellm_engine.attention.fused import MapKind, map_kind
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.params import LayerSwitches, Loosening, Magnitude, Rectify, Rotary, Similarity

UNLOOSENED = GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE)


@pytest.mark.parametrize(
    ("switches", "kind"),
    [
        (None, MapKind.NOTHING),
        (GradEllm(), MapKind.PRODUCTS),
        (GradEllm(similarity=Similarity.COSINE), None),
        (GradEllm(similarity=Similarity.COSINE, rotary=Rotary.UNROTATED), None),
        (UNLOOSENED, MapKind.SIGNED_SUM),
        (replace(UNLOOSENED, magnitude=Magnitude.HEAD_ABS), MapKind.HEAD_ABS),
        (replace(UNLOOSENED, magnitude=Magnitude.KNOCKOUT), MapKind.KNOCKOUT),
        (replace(UNLOOSENED, magnitude=Magnitude.CHANNEL_ABS), None),
        (GradSam(), None),
    ],
)
def test_maps_that_the_kernels_compute(switches: LayerSwitches | None, kind: MapKind | None) -> None:
    """None takes the plain operations instead."""
    assert map_kind(switches) is kind
