"""Requests that are meant to cost a server much: built from a model's own special tokens, the separators of its chat
template, bytes that are no characters, deep repeats and huge counts.

A request is a pure function of a number and a size, so that what one costs can be held against one of twice the size.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import Message

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine

UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Hostile:
    """A request.

    Attributes:
        kind: what it is made of.
        call: which RPC it is for.
        request: its message.
    """

    kind: str
    call: str
    request: Message


@dataclass(frozen=True)
class Material:
    """What a model's requests are made of.

    Attributes:
        pieces: texts that its tokenizer and its chat template treat in their own ways.
        unfinished_ids: tokens that are a part of a character.
        vocab_size: ids are below this.
        max_new_tokens: of a completion.
        is_chat: whether it has a chat template.
    """

    pieces: tuple[str, ...]
    unfinished_ids: tuple[int, ...]
    vocab_size: int
    max_new_tokens: int
    is_chat: bool

    @classmethod
    def of(cls, engine: Engine) -> Material:
        """A model's."""
        encoder = engine.model.encoder
        special = [encoder.decode_alone(token_id) for token_id in sorted(encoder.special_ids)][:24]
        separators = [
            "\n",
            " ",
            "\n\n",
            "user\n",
            "assistant\n",
            "system",
            "<think>",
            "</think>",
            "gradellm0content",
            "~",
        ]
        texts = ["a", "the film", "😀", "日本", "\u0301", "\u200d", "\x00", "0", "{{ m }}", "(a+)+$", "Ġ", "▁"]
        sample = range(min(engine.info.vocab_size, len(encoder.tokenizer)))
        unfinished = [token_id for token_id in sample if encoder.decode_alone(token_id) == UNFINISHED]
        return cls(
            (*special, *separators, *texts),
            tuple(unfinished[:64]) or (0,),
            engine.info.vocab_size,
            engine.max_new_tokens,
            engine.info.has_chat_template,
        )


def hostile(material: Material, number: int, size: int) -> Hostile:
    """The request with this number, of about `size` characters, tokens or parts."""
    draw = random.Random(number)
    kind = draw.choice(sorted(KINDS))
    call, request = KINDS[kind](material, draw, size)
    return Hostile(kind, call, request)


def text(material: Material, draw: random.Random, size: int) -> str:
    """Some pieces, repeated: each alone many times over, or all of them in turn."""
    pieces = draw.choices(material.pieces, k=draw.randint(1, 4))
    unit = "".join(pieces)
    return (unit * (size // len(unit) + 1))[:size]


def _input(material: Material, draw: random.Random, size: int) -> pb.Input:
    if material.is_chat and draw.random() < 0.5:
        count = max(1, draw.choice([1, 4, size // 200, size // 8]))
        roles = draw.choices(["user", "assistant", "system", "gradellm1content", "tool", text(material, draw, 9)], k=3)
        contents = [text(material, draw, max(1, size // count)) for _ in range(3)]
        return pb.Input(
            messages=[pb.Message(role=roles[i % 3], content=contents[i % 3]) for i in range(min(count, 200_000))]
        )
    return pb.Input(prompt=text(material, draw, size))


def _tokenize(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    return "Tokenize", pb.TokenizeRequest(input=_input(material, draw, size))


def _ids(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    some = draw.choices(material.unfinished_ids, k=draw.randint(1, 3))
    if draw.random() < 0.3:
        some = [draw.randrange(material.vocab_size) for _ in range(50)]
    return "Tokenize", pb.TokenizeRequest(input=pb.Input(prompt_ids=(some * (size // len(some) + 1))[:size]))


def _segments(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    given = _input(material, draw, size)
    content = given.prompt or given.messages[0].content
    width = draw.choice([1, 2, 10])
    for index in range(min(size, len(content) // width)):
        segment = given.segments.add(name=str(index), start=index * width, end=(index + 1) * width)
        if given.messages:
            segment.message = 0
    return "Tokenize", pb.TokenizeRequest(input=given)


def _forced(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    some = draw.choices(material.unfinished_ids, k=2)
    ids = (some * (size // 2 + 1))[:size]
    return "Generate", pb.GenerateRequest(input=pb.Input(prompt="a"), forced_ids=ids, max_new_tokens=len(ids) + 1)


def _stops(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    count = draw.choice([1, 16, max(1, size // 4)])
    stop = [text(material, draw, max(1, size // count)) for _ in range(min(count, 200_000))]
    return "Generate", pb.GenerateRequest(input=_input(material, draw, 40), stop=stop, max_new_tokens=1)


def _contrast(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    options = pb.AttributionOptions(contrast=pb.Contrast(text=text(material, draw, size)))
    return "Generate", pb.GenerateRequest(input=_input(material, draw, 200), attribution=options, max_new_tokens=1)


def _generate(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    options = pb.AttributionOptions(
        resolution=draw.choice([pb.RESOLUTION_TOKEN, pb.RESOLUTION_WORD, pb.RESOLUTION_SEGMENT]),
        normalise_over=draw.choice([pb.NORMALISE_OVER_UNSPECIFIED, pb.NORMALISE_OVER_USER]),
    )
    return "Generate", pb.GenerateRequest(input=_input(material, draw, size), attribution=options, max_new_tokens=1)


def _completion(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    given = _input(material, draw, draw.choice([20, size]))
    if draw.random() < 0.5:
        return "Attribute", pb.AttributeRequest(input=given, completion=text(material, draw, size))
    ids = draw.choices(material.unfinished_ids, k=2)
    return "Attribute", pb.AttributeRequest(input=given, completion_ids=(ids * (size // 2 + 1))[:size])


def _evaluation(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    options = pb.EvaluationOptions(
        methods=[pb.EvaluatedMethod(name=str(i)) for i in range(draw.choice([1, 3, max(1, size // 4)]))][:200_000],
        pis=[(i + 1) / 100 for i in range(99)],
        samples=draw.choice([3, 200, 900]),
    )
    request = pb.EvaluateRequest(input=_input(material, draw, min(size, 2000)), evaluation=options)
    match draw.randrange(4):
        case 0:
            request.labels.extend(text(material, draw, 9) + str(i) for i in range(min(size, 200_000)))
        case 1:
            request.completion = text(material, draw, size)
        case 2:
            del options.methods[:]
            rows = [pb.ScoreRow(step=i, scores=[0.5] * min(size, 50)) for i in range(min(size // 8, 50_000))]
            request.evaluation.scores.append(pb.GivenScores(name="own", rows=rows))
        case _:
            request.evaluation.perturb_positions.extend(range(min(size, 500_000)))
    return "Evaluate", request


def _masks(material: Material, draw: random.Random, size: int) -> tuple[str, Message]:
    """An evaluation that is taken, of as many masks as may be asked for."""
    options = pb.EvaluationOptions(
        methods=[pb.EvaluatedMethod()], pis=[(i + 1) / 100 for i in range(99)], samples=draw.choice([200, 450, 900])
    )
    return "Evaluate", pb.EvaluateRequest(
        input=pb.Input(prompt="a film " * min(size, 90)),
        generation=pb.GenerationOptions(max_new_tokens=1),
        evaluation=options,
    )


KINDS: dict[str, Callable[[Material, random.Random, int], tuple[str, Message]]] = {
    "text": _tokenize,
    "ids": _ids,
    "segments": _segments,
    "forced ids": _forced,
    "stop texts": _stops,
    "contrast": _contrast,
    "generate": _generate,
    "completion": _completion,
    "evaluation": _evaluation,
    "masks": _masks,
}
