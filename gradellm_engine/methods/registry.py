"""The methods that the engine knows, as data: what they are called, what they compute, what they can be told.

A method to come adds a row here and its arithmetic in a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.settings import GradEllm


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: what a request calls it.
        description: what it computes, in a sentence.
        streams: whether it explains token by token while generating.
        switches: its own switches.
    """

    name: str
    description: str
    streams: bool
    switches: tuple[str, ...]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="grad_ellm",
            description=(
                "Grad-ELLM: in every layer the gradient of the token's logit by attention's output, weighted with how "
                "alike query and key are; one backward pass through one token"
            ),
            streams=True,
            switches=tuple(switch.name for switch in fields(GradEllm)),
        ),
    )
}


def method_named(name: str) -> Method:
    """The row of a method.

    Raises:
        InvalidRequestError: for a name that is not there.
    """
    if name not in METHODS:
        raise InvalidRequestError("attribution.method", f"{name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name]
