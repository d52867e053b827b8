"""Pictures as JSON: the prompt's chips and text once, then the numbers of each picture. Pages draw them as they are."""

from __future__ import annotations

import array
import base64
import sys
import zlib
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gradellm.explanation.words import characters, is_written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradellm.models import Started
    from gradellm.pictures.chips import Canvas, Chip
    from gradellm.pictures.picture import Picture

__all__ = ["PackedPictures", "canvas_document", "chip_document", "picture_document"]

_MAX_INT16 = 32767


def canvas_document(started: Started, drawn_on: Canvas) -> dict[str, Any]:
    """Return a prompt for JSON.

    `chips` are its words; `prompt` is its text in runs, one for each message and for each stretch of the chat template:
    the parts of a message are texts, and numbers that are indexes of `chips`. `sink` is the chip that is hatched.
    """
    return {
        "chips": [chip_document(chip) for chip in drawn_on.chips],
        "prompt": list(_runs(started, drawn_on)),
        "sink": drawn_on.sink,
        "templateTokens": drawn_on.num_template_tokens,
    }


def chip_document(chip: Chip) -> dict[str, Any]:
    """Return a chip for JSON."""
    return {"text": chip.text, "place": chip.place, "segment": chip.segment}


def _runs(started: Started, drawn_on: Canvas) -> Iterator[dict[str, Any]]:
    """Yield the prompt's text in runs; every character once."""
    end = 0
    chips = iter(enumerate(drawn_on.chips))
    waiting = next(chips, None)

    def key(part: Any) -> tuple[bool, int | None]:  # noqa: ANN401  (Characters)
        token = started.prompt_tokens[part.token_indexes[0]]
        return is_written(token), token.message if is_written(token) else None

    for (written, message), group in groupby(characters(started.prompt_text, started.prompt_tokens), key):
        parts = list(group)
        start, end = end, max(end, *(part.end for part in parts))
        if not written:
            text = started.prompt_text[start:end] or "".join(part.text for part in parts)
            yield {"template": True, "text": text}
            continue
        inside: list[str | int] = []
        while waiting is not None and waiting[1].start <= end and waiting[1].message == message:
            index, chip = waiting
            if chip.start > start:
                inside.append(started.prompt_text[start : chip.start])
            inside.append(index)
            start = max(start, chip.end)
            waiting = next(chips, None)
        if end > start:
            inside.append(started.prompt_text[start:end])
        role = started.prompt_tokens[parts[0].token_indexes[0]].role
        yield {"template": False, "message": message, "role": role or "", "parts": inside}


def picture_document(picture: Picture) -> dict[str, Any]:
    """Return the numbers of one picture for JSON. Chips are indexes: first the prompt's, then the completion's.

    `coloured` has [chip, level, share, value] for each chip that has a colour: its shade, -24 to 24, its share of all
    colour, 0 to 1, and its raw score. `top` are [chip, share] of the strongest; `segments` shares by name, "" for the
    rest; `folded` the share of the scores on the template and the sink.
    """
    coloured = [
        [chip, level, round(share, 4), float(f"{value:.4g}")]
        for chip, (level, share, value) in enumerate(zip(picture.levels, picture.shares, picture.values, strict=True))
        if level
    ]
    return {"coloured": coloured} | _sentences(picture)


def _sentences(picture: Picture) -> dict[str, Any]:
    return {
        "top": [[index, round(picture.shares[index], 4)] for index in picture.top()],
        "segments": [[name, round(share, 4)] for name, share in picture.segments()],
        "folded": round(picture.folded_share, 4),
    }


@dataclass
class PackedPictures:
    """Pictures of one scale for a file: strengths as 16-bit integers, compressed, so that many words fit.

    A strength n stands for n / 32767; a chip's share is its strength's magnitude times `peakShare`, with scale "raw"
    its score is its strength times `peakValue`.
    """

    num_chips: int
    strengths: array.array[int] = field(default_factory=lambda: array.array("h"))
    sentences: list[dict[str, Any]] = field(default_factory=list)

    def add(self, picture: Picture) -> None:
        """Add a picture; chips that it does not have are without colour."""
        strengths = [round(_MAX_INT16 * strength) for strength in picture.strengths]
        self.strengths.extend(strengths + [0] * (self.num_chips - len(strengths)))
        strongest = max(range(len(strengths)), key=lambda index: abs(strengths[index]), default=None)
        peaks = (0.0, 0.0) if strongest is None else (picture.shares[strongest], abs(picture.values[strongest]))
        self.sentences.append(_sentences(picture) | {"peakShare": peaks[0], "peakValue": peaks[1]})

    def document(self) -> dict[str, Any]:
        """Return the pictures for JSON, in the order in which they were added."""
        packed = array.array("h", self.strengths)
        if sys.byteorder == "big":
            packed.byteswap()  # typed arrays of browsers are little-endian
        strengths = base64.b64encode(zlib.compress(packed.tobytes(), 6)).decode()
        return {"strengths": strengths, "pictures": self.sentences}
