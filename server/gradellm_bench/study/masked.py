"""Pictures without their words: can the sentence that an answer was drawn from be named by colour alone?

Each picture is that of the answer to a generated retrieval chat, as the SDK makes it. Every word of the prompt is a bar
of the word's length, grey with the word's colour, and the sentences that may be the source are lettered. The letters of
the right ones are written to a file of their own.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradellm import Client, Explanation
from gradellm.pictures.chips import Chip
from gradellm.pictures.picture import Picture
from gradellm.rendering.colormap import ramp
from gradellm_bench.study.citations import METHODS
from gradellm_bench.study.retrieval import RetrievalChat, Span, retrieval_chat, right_answer

NUM_FACTS = 4
CHATS_PER_PICTURE = 50  # at most: a model that answers fewer rightly gets fewer pictures
MAX_ANSWER_TOKENS = 16
LINE_LENGTH = 72  # characters
LINE_HEIGHT, CHARACTER_WIDTH = 0.42, 0.1  # inches
GREY = (0.82, 0.82, 0.82)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("masked", help="draw pictures of answers, without the words")
    parser.add_argument("--model", required=True, metavar="PATH", help="checkpoint folder")
    parser.add_argument("--dtype", default="float32", metavar="D", help="of computation (default: %(default)s)")
    parser.add_argument("--method", choices=METHODS, metavar="METHOD", help="default: the server's")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures and of key.json")
    parser.set_defaults(run=draw)


def draw(options: argparse.Namespace) -> int:
    """Draw the pictures of the first chats that the model answers rightly."""
    options.out.mkdir(parents=True, exist_ok=True)
    keywords: dict[str, Any] = {} if options.method is None else dict(METHODS[options.method])
    key: dict[str, dict[str, str]] = {}
    with Client.local(model=options.model, dtype=options.dtype) as client:
        seed = options.first_seed
        while len(key) < options.count and seed < options.first_seed + CHATS_PER_PICTURE * options.count:
            chat = retrieval_chat("boxes", seed, num_facts=NUM_FACTS)
            explanation = client.explain(messages=[("user", chat.text)], max_new_tokens=MAX_ANSWER_TOKENS, **keywords)
            if (word := right_answer(explanation.text, chat.answer, chat.candidates)) is not None:
                name = f"{len(key) + 1:02}.png"
                picture = explanation.picture(explanation.text[slice(*word)])
                key[name] = {
                    "right": string.ascii_uppercase[chat.source or 0],
                    "most_colour": string.ascii_uppercase[most_colour(picture, chat, user_start(explanation))],
                }
                save(picture, chat, user_start(explanation), options.out / name)
                (options.out / "key.json").write_text(json.dumps(key, indent=1) + "\n")
            seed += 1
    agree = sum(letters["right"] == letters["most_colour"] for letters in key.values())
    print(
        f"{agree} of {len(key)}: the right sentence has the most colour; {seed - options.first_seed} chats were asked"
    )
    return 0


def user_start(explanation: Explanation) -> int:
    """Where the user's text begins in the prompt's."""
    return next(token.start for token in explanation.prompt_tokens if token.role == "user" and not token.special)


def most_colour(picture: Picture, chat: RetrievalChat, offset: int) -> int:
    """The index of the fact with the largest share of the colour."""
    shares = [0.0] * len(chat.sentences)
    for chip, share in zip(picture.chips, picture.shares, strict=True):
        if (index := sentence_of(chip, chat.sentences, offset)) is not None:
            shares[index] += share
    return max(range(len(shares)), key=shares.__getitem__)


def sentence_of(chip: Chip, sentences: Sequence[Span], offset: int) -> int | None:
    """The index of the sentence that a chip of the prompt belongs to; None for none."""
    if chip.role != "user":
        return None
    return next((i for i, (start, end) in enumerate(sentences) if start <= chip.start - offset < end), None)


@dataclass(frozen=True)
class Bar:
    """A masked word: its place in characters and lines, and how strongly it is coloured."""

    x: int
    line: int
    length: int
    strength: float
    letter: str  # of the sentence that it begins; else empty


def bars(picture: Picture, chat: RetrievalChat, offset: int) -> Iterator[Bar]:
    """The words of the user's text, in lines."""
    x = line = 0
    lettered: set[int] = set()
    for chip, strength in zip(picture.chips, picture.strengths, strict=True):
        if chip.role != "user":
            continue
        length = len(chip.text)
        if x and x + length > LINE_LENGTH:
            x, line = 0, line + 1
        index = sentence_of(chip, chat.sentences, offset)
        letter = "" if index is None or index in lettered else string.ascii_uppercase[index]
        if index is not None:
            lettered.add(index)
        yield Bar(x, line, length, strength, letter)
        x += length + 1


def save(picture: Picture, chat: RetrievalChat, offset: int, path: Path) -> None:
    """Draw a masked picture; its file holds no text of the prompt."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    masked = list(bars(picture, chat, offset))
    lines = 1 + max(bar.line for bar in masked)
    figure = Figure(figsize=(CHARACTER_WIDTH * LINE_LENGTH + 0.4, LINE_HEIGHT * lines + 0.3))
    axes = figure.add_axes((0.02, 0, 0.96, 1))
    axes.set_xlim(0, LINE_LENGTH)
    axes.set_ylim(lines, -0.3)
    axes.axis("off")
    for bar in masked:
        shade = tuple(part / 255 for part in ramp(bar.strength, "light")) if bar.strength else GREY
        axes.add_patch(Rectangle((bar.x, bar.line + 0.3), bar.length, 0.5, facecolor=shade, edgecolor=GREY))
        axes.text(bar.x, bar.line + 0.22, bar.letter, fontsize=10, weight="bold")
    figure.savefig(path, dpi=120)
