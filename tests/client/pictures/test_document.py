"""Pictures as JSON: every character once, and packed numbers that unpack to the picture's."""

from __future__ import annotations

import array
import base64
import json
import zlib

import pytest

from client.explanation.conftest import explanation, shared
from gradellm import Explanation
from gradellm.pictures.chips import canvas
from gradellm.pictures.document import PackedPictures, canvas_document, picture_document


@pytest.mark.parametrize("loaded", [explanation(), shared(), shared(of_ids=True)])
def test_every_character_is_in_one_run(loaded: Explanation) -> None:
    document = canvas_document(loaded.started, canvas(loaded.started))
    text = ""
    for run in document["prompt"]:
        parts = [run["text"]] if run["template"] else run["parts"]
        text += "".join(part if isinstance(part, str) else document["chips"][part]["text"] for part in parts)
    assert text == loaded.prompt_text
    numbers = [part for run in document["prompt"] for part in run.get("parts", ()) if isinstance(part, int)]
    assert numbers == list(range(len(document["chips"])))


def test_a_picture_is_json() -> None:
    picture = explanation().picture("It")
    document = picture_document(picture)
    assert json.loads(json.dumps(document)) == document
    assert [(chip, level) for chip, level, _, _ in document["coloured"]] == [(0, 8), (2, 24)]
    assert [share for _, _, share, _ in document["coloured"]] == [0.25, 0.75]
    assert [value for *_, value in document["coloured"]] == pytest.approx(
        [picture.values[0], picture.values[2]], rel=1e-3
    )
    assert document["top"] == [[2, 0.75], [0, 0.25]]
    assert document["segments"] == [["doc", 0.75], ["", 0.25]]


def test_packed_strengths_are_the_pictures() -> None:
    packed = PackedPictures(6)
    pictures = [explanation().picture(word) for word in ("It", "purrs")]
    for picture in pictures:
        packed.add(picture)
    document = packed.document()
    numbers = array.array("h", zlib.decompress(base64.b64decode(document["strengths"])))
    for i, picture in enumerate(pictures):
        found = [number / 32767 for number in numbers[6 * i : 6 * i + 6]]
        assert found == pytest.approx([*picture.strengths, 0, 0], abs=1e-4)
        shares = [abs(strength) * document["pictures"][i]["peakShare"] for strength in found]
        assert shares[:4] == pytest.approx(picture.shares, abs=1e-4)
