"""Replacement of the code of other libraries' modules, one module of one model at a time.

A module keeps its parameters, buffers, hooks and name in the model; its class is exchanged for one that computes the
same in another way. Only instances are touched, never a library's classes, functions or module namespaces: another
model of the same family in the process runs as its library wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Patch:
    """One replacement in a loaded model.

    Attributes:
        module: qualified name of the module in its model.
        original: what ran there before, such as the name of a class.
        replacement: what runs there now.
        undo: puts the original back. Patches of one module are undone in reverse order.
    """

    module: str
    original: str
    replacement: str
    undo: Callable[[], None]


def replace_class(name: str, module: nn.Module, cls: type[nn.Module], **attributes: Any) -> Patch:  # noqa: ANN401
    """Make `module` an instance of `cls`, with these attributes, which were not there before.

    Args:
        name: the module's qualified name.
        module: the module.
        cls: its new class, with the same layout of instances.
        attributes: read as plain attributes: `nn.Module.__getattr__`, which is slower, is for parameters and buffers.
    """
    original = type(module)
    module.__class__ = cls
    for attribute, value in attributes.items():
        setattr(module, attribute, value)

    def undo() -> None:
        module.__class__ = original
        for attribute in attributes:
            delattr(module, attribute)

    return Patch(name, original.__name__, cls.__name__, undo)


def mix_in_class(name: str, module: nn.Module, mixin: type[nn.Module], prefix: str, **attributes: Any) -> Patch:  # noqa: ANN401
    """Make `module` an instance of a class whose bases are `mixin` and the class that it has.

    `super()` in the mixin is the original class. The new class's name is `prefix` and the original's, so that what
    looks at how the name ends finds the same.
    """
    cls: type[nn.Module] = _mixed_class(mixin, type(module), prefix)  # type: ignore[arg-type]
    return replace_class(name, module, cls, **attributes)


@cache
def _mixed_class(mixin: type[nn.Module], original: type[nn.Module], prefix: str) -> type[nn.Module]:
    return type(f"{prefix}{original.__name__}", (mixin, original), {"__module__": original.__module__})
