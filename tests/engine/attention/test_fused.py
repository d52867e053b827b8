"""Which maps the kernels compute."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradellm_engine import GradEllm
from gradellm_engine.attention.fused import MapForm, MapKind, map_form
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.params import LayerSwitches, Loosening, Magnitude, Rectify, Rotary, Similarity, Sink

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
        (replace(UNLOOSENED, rectify=Rectify.PER_LAYER), MapKind.SIGNED_SUM),
        (replace(UNLOOSENED, rectify=Rectify.PER_HEAD), MapKind.HEAD_POSITIVE),
        (replace(UNLOOSENED, rectify=Rectify.PER_HEAD, magnitude=Magnitude.KNOCKOUT), MapKind.KNOCKOUT_POSITIVE),
        (GradSam(), None),
    ],
)
def test_maps_that_the_kernels_compute(switches: LayerSwitches | None, kind: MapKind | None) -> None:
    """None takes the plain operations instead."""
    assert map_form(switches) == (None if kind is None else MapForm(kind))
    if isinstance(switches, GradEllm) and kind is not None:
        is_in_maps = switches.loosening is Loosening.NONE  # else it is in the domain that scores are computed over
        assert map_form(replace(switches, sink=Sink.EXCLUDE)) == MapForm(kind, excludes_sink=is_in_maps)
