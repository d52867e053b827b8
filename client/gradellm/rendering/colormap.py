"""The colour scale of scores: from the background to orange, and to blue for negative scores.

Colours are interpolated in OKLab, in which equal steps look equal, so that half of the largest score looks half as
strong, and a score of 0 is the background.
"""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["Theme", "ramp", "readable_on"]

Theme = Literal["dark", "light"]

_Lab = tuple[float, float, float]

_POSITIVE_HUE, _NEGATIVE_HUE = 60.0, 250.0  # orange and blue, distinct in every kind of colour vision
_RAMPS: dict[Theme, tuple[tuple[float, float], tuple[float, float]]] = {
    "dark": ((0.20, 0.01), (0.77, 0.16)),  # (lightness, chroma) of scores near 0, and of the largest score
    "light": ((0.98, 0.01), (0.68, 0.17)),
}


def readable_on(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever has more contrast; at a luminance of 0.179 they have the same."""
    return (0, 0, 0) if _luminance(background) > 0.179 else (255, 255, 255)


def ramp(share: float, theme: Theme) -> tuple[int, int, int]:
    """Return the sRGB colour of a share of the largest score, -1 to 1."""
    (low_lightness, low_chroma), (high_lightness, high_chroma) = _RAMPS[theme]
    strength = abs(share)
    lightness = low_lightness + strength * (high_lightness - low_lightness)
    chroma = low_chroma + strength * (high_chroma - low_chroma)
    hue = math.radians(_POSITIVE_HUE if share >= 0 else _NEGATIVE_HUE)
    return _srgb((lightness, chroma * math.cos(hue), chroma * math.sin(hue)))


def _srgb(lab: _Lab) -> tuple[int, int, int]:
    """Convert OKLab to 8-bit sRGB (Ottosson 2020)."""
    lightness, a, b = lab
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short
    return _gamma(red), _gamma(green), _gamma(blue)


def _gamma(linear: float) -> int:
    linear = max(0.0, min(1.0, linear))
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


def _luminance(color: tuple[int, int, int]) -> float:
    """Return the relative luminance of WCAG."""
    parts = (value / 255 for value in color)
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
