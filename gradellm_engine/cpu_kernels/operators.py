"""Kernels as operators of torch, so that dispatch modes and transforms see them; a CPU trace calls them directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

implementations: dict[Any, Callable[..., Any]] = {}
"""The Python function of each operator overload."""

_library = torch.library.Library("gradellm", "FRAGMENT")


def operator(schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function of CPU tensors as the operator of a schema, such as "add(Tensor x, Tensor y) -> Tensor"."""
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, function, "CPU")
    overload: Callable[..., Any] = getattr(torch.ops.gradellm, name).default
    implementations[overload] = function
    return overload
