"""Requests that try to be expensive for a server: built from a model's special tokens, chat template separators, bytes
that are not characters, deep repetitions and huge counts.

A request is a pure function of a number and a size, so that its cost can be compared with that of twice the size.
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
    """A hostile request.

    Attributes:
        kind: key of `KINDS`.
        call: name of its RPC.
        request: its message.
    """

    kind: str
    call: str
    request: Message


@dataclass(frozen=True)
class Material:
    """Parts of a model's requests.

    Attributes:
        pieces: texts that its tokenizer or chat template treats specially.
        unfinished_ids: tokens that are part of a multi-byte character.
        vocab_size: upper bound of token ids.
        max_new_tokens: limit of a completion.
        is_chat: whether the model has a chat template.
    """

    pieces: tuple[str, ...]
    unfinished_ids: tuple[int, ...]
    vocab_size: int
    max_new_tokens: int
    is_chat: bool

    @classmethod
    def of(cls, engine: Engine) -> Material:
        """The material of an engine's model."""
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
    """Request `number`, of about `size` characters, tokens or parts."""
    rng = random.Random(number)
    kind = rng.choice(sorted(KINDS))
    call, request = KINDS[kind](material, rng, size)
    return Hostile(kind, call, request)


def text(material: Material, rng: random.Random, size: int) -> str:
    """One to four pieces, joined and repeated up to `size` characters."""
    pieces = rng.choices(material.pieces, k=rng.randint(1, 4))
    unit = "".join(pieces)
    return (unit * (size // len(unit) + 1))[:size]


def _input(material: Material, rng: random.Random, size: int) -> pb.Input:
    if material.is_chat and rng.random() < 0.5:
        count = max(1, rng.choice([1, 4, size // 200, size // 8]))
        roles = rng.choices(["user", "assistant", "system", "gradellm1content", "tool", text(material, rng, 9)], k=3)
        contents = [text(material, rng, max(1, size // count)) for _ in range(3)]
        return pb.Input(
            messages=[pb.Message(role=roles[i % 3], content=contents[i % 3]) for i in range(min(count, 200_000))]
        )
    return pb.Input(prompt=text(material, rng, size))


def _tokenize(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    return "Tokenize", pb.TokenizeRequest(input=_input(material, rng, size))


def _ids(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    unit_ids = rng.choices(material.unfinished_ids, k=rng.randint(1, 3))
    if rng.random() < 0.3:
        unit_ids = [rng.randrange(material.vocab_size) for _ in range(50)]
    return "Tokenize", pb.TokenizeRequest(input=pb.Input(prompt_ids=(unit_ids * (size // len(unit_ids) + 1))[:size]))


def _segments(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    prompt_input = _input(material, rng, size)
    content = prompt_input.prompt or prompt_input.messages[0].content
    width = rng.choice([1, 2, 10])
    for index in range(min(size, len(content) // width)):
        segment = prompt_input.segments.add(name=str(index), start=index * width, end=(index + 1) * width)
        if prompt_input.messages:
            segment.message = 0
    return "Tokenize", pb.TokenizeRequest(input=prompt_input)


def _forced(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    unit_ids = rng.choices(material.unfinished_ids, k=2)
    ids = (unit_ids * (size // 2 + 1))[:size]
    return "Generate", pb.GenerateRequest(input=pb.Input(prompt="a"), forced_ids=ids, max_new_tokens=len(ids) + 1)


def _stops(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    count = rng.choice([1, 16, max(1, size // 4)])
    stop = [text(material, rng, max(1, size // count)) for _ in range(min(count, 200_000))]
    return "Generate", pb.GenerateRequest(input=_input(material, rng, 40), stop=stop, max_new_tokens=1)


def _contrast(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    options = pb.AttributionOptions(contrast=pb.Contrast(text=text(material, rng, size)))
    return "Generate", pb.GenerateRequest(input=_input(material, rng, 200), attribution=options, max_new_tokens=1)


def _generate(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    options = pb.AttributionOptions(
        resolution=rng.choice([pb.RESOLUTION_TOKEN, pb.RESOLUTION_WORD, pb.RESOLUTION_SEGMENT]),
        normalise_over=rng.choice([pb.NORMALISE_OVER_UNSPECIFIED, pb.NORMALISE_OVER_USER]),
    )
    return "Generate", pb.GenerateRequest(input=_input(material, rng, size), attribution=options, max_new_tokens=1)


def _completion(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    prompt_input = _input(material, rng, rng.choice([20, size]))
    if rng.random() < 0.5:
        return "Attribute", pb.AttributeRequest(input=prompt_input, completion=text(material, rng, size))
    ids = rng.choices(material.unfinished_ids, k=2)
    return "Attribute", pb.AttributeRequest(input=prompt_input, completion_ids=(ids * (size // 2 + 1))[:size])


def _evaluation(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    options = pb.EvaluationOptions(
        methods=[pb.EvaluatedMethod(name=str(i)) for i in range(rng.choice([1, 3, max(1, size // 4)]))][:200_000],
        pis=[(i + 1) / 100 for i in range(99)],
        samples=rng.choice([3, 200, 900]),
    )
    request = pb.EvaluateRequest(input=_input(material, rng, min(size, 2000)), evaluation=options)
    match rng.randrange(4):
        case 0:
            request.labels.extend(text(material, rng, 9) + str(i) for i in range(min(size, 200_000)))
        case 1:
            request.completion = text(material, rng, size)
        case 2:
            del options.methods[:]
            rows = [pb.ScoreRow(step=i, scores=[0.5] * min(size, 50)) for i in range(min(size // 8, 50_000))]
            request.evaluation.scores.append(pb.GivenScores(name="own", rows=rows))
        case _:
            request.evaluation.perturb_positions.extend(range(min(size, 500_000)))
    return "Evaluate", request


def _masks(material: Material, rng: random.Random, size: int) -> tuple[str, Message]:
    """A valid evaluation with as many masks as the limits allow."""
    options = pb.EvaluationOptions(
        methods=[pb.EvaluatedMethod()], pis=[(i + 1) / 100 for i in range(99)], samples=rng.choice([200, 450, 900])
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
