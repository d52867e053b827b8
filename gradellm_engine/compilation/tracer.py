"""Operations of a library call, written down while it runs, and made a Python function without branches.

    tracer = Tracer()
    x = tracer.new(tensor)
    with tracer:
        y = tracer.value(model(tensor))
    run = function([x], needed(tracer.operations, {y}), [y], tracer.constants)

What is written down are the operations below autograd, those of its backward passes among them. They are the same for
other numbers as long as nothing looks at the numbers to decide what comes next: where something does, `NotTraceable`.
A tensor that no operation made is a constant, such as a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradellm_engine.utils.torch_compat import TorchDispatchMode, changes_argument, direct_call

# These give the same numbers at the same place, the latter where the shape is the same.
_SAME = frozenset({torch.ops.aten.detach.default, torch.ops.aten.alias.default})
_SIZED = frozenset({torch.ops.aten.view.default, torch.ops.aten.expand.default})
_UNCERTAIN = {
    torch.Tag.data_dependent_output: "gives what depends on numbers",
    torch.Tag.dynamic_output_shape: "gives a shape that depends on numbers",
    torch.Tag.nondeterministic_seeded: "draws",
}


class NotTraceable(Exception):  # noqa: N818 (no error: it runs as it is)
    """What is done depends on numbers."""


@dataclass(frozen=True)
class Value:
    """A tensor, or another argument, by number."""

    number: int

    def __str__(self) -> str:
        return f"v{self.number}"


Constants = dict[Value, object]


@dataclass(frozen=True)
class Operation:
    """One call.

    Attributes:
        function: what is called.
        args: values, numbers, and tuples of them.
        kwargs: likewise.
        gives: what it makes: a single value, several, None for what is not used again.
        changes: whether it does more than make something.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gives: Value | tuple[Value | None, ...] | None
    changes: bool

    @property
    def made(self) -> set[Value]:
        """What it makes."""
        return set(_values(self.gives))

    @property
    def used(self) -> set[Value]:
        """What it takes."""
        return set(_values((self.args, tuple(self.kwargs.values()))))


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what the library does while it is entered.

    All tensors that it meets live until it is told to `forget` them, so that none is taken for another.

    Attributes:
        operations: in their order.
        constants: what they take that none of them makes.
        is_off: whether nothing is written down at the moment.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.constants: Constants = {}
        self.is_off = False
        self._values: dict[int, Value] = {}  # by id
        self._alive: list[Tensor] = []
        self._storages: set[int] = set()  # of what was made on the way
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 (torch's)
        """Carry an operation out, and write it down."""
        result = func(*args, **(kwargs or {}))
        if not self.is_off:
            self._note(func, args, kwargs or {}, result)
        return result

    @contextmanager
    def off(self) -> Iterator[None]:
        """Nothing is written down meanwhile."""
        before, self.is_off = self.is_off, True
        try:
            yield
        finally:
            self.is_off = before

    def new(self, tensor: Tensor) -> Value:
        """The value of a tensor that is another one each time."""
        self._storages.add(_storage(tensor))
        return self._know(tensor, self.free())

    def value(self, tensor: Tensor) -> Value:
        """The value of a tensor; one that nobody has seen is a constant.

        Raises:
            Unrecordable: for one that was made of others where nobody saw it.
        """
        if id(tensor) not in self._values:
            if tensor.numel() and _storage(tensor) in self._storages:
                raise NotTraceable("a tensor was made out of sight")
            self._constant(tensor)
        return self._values[id(tensor)]

    def forget(self) -> None:
        """Give up the tensors. Where their graph leads back here, nothing else would: it is no object of Python's."""
        self._alive.clear()
        self._values.clear()

    def call(
        self,
        function: Callable[..., Any],
        *given: Value | Tensor,
        gives: tuple[Tensor, ...] | Tensor | None,
        changes: bool = True,
    ) -> None:
        """Write down a call of something that is not the library's, which has just been carried out."""
        args = tuple(each if isinstance(each, Value) else self.value(each) for each in given)
        made = self.new(gives) if isinstance(gives, Tensor) else None if gives is None else tuple(map(self.new, gives))
        self.operations.append(Operation(function, args, {}, made, changes))

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:  # noqa: ANN401 (torch's)
        for tag, why in _UNCERTAIN.items():
            if tag in func.tags:
                raise NotTraceable(f"{func} {why}")
        made: list[Any] = list(result) if isinstance(result, (tuple, list)) else [result]
        if not all(each is None or isinstance(each, Tensor) for each in made):
            raise NotTraceable(f"{func} gives what is no tensor")
        given = [each for each in _leaves((args, tuple(kwargs.values()))) if isinstance(each, Tensor)]
        if func in _SAME or (func in _SIZED and result.shape == args[0].shape):
            self._know(result, self.value(args[0]))
            return
        are_constant = [self.value(each) in self.constants for each in given]
        changes = changes_argument(func)
        if changes and are_constant[0]:
            raise NotTraceable(f"{func} writes to a constant")
        if func.is_view and all(are_constant):
            for each in made:
                self._constant(each)  # seen in another way
            return
        referred, named = self._referred(args), {name: self._referred(each) for name, each in kwargs.items()}
        inputs = set(map(id, given))
        values = tuple(None if each is None or id(each) in inputs else self.new(each) for each in made)
        gives = values if isinstance(result, (tuple, list)) else values[0]
        self.operations.append(Operation(direct_call(func), referred, named, gives, changes))

    def _referred(self, given: Any) -> Any:  # noqa: ANN401 (whatever operations take)
        """Arguments with values instead of tensors, and of all else that cannot be written as a number."""
        if isinstance(given, Tensor):
            return self.value(given)
        if isinstance(given, (tuple, list)):
            return tuple(self._referred(each) for each in given)
        if given is None or isinstance(given, (bool, int, str)) or (isinstance(given, float) and math.isfinite(given)):
            return given
        value = self.free()
        self.constants[value] = given
        return value

    def _constant(self, tensor: Tensor) -> None:
        self.constants[self._know(tensor, self.free())] = tensor

    def _know(self, tensor: Tensor, value: Value) -> Value:
        self._alive.append(tensor)
        self._values[id(tensor)] = value
        return value

    def free(self) -> Value:
        """A value that nothing has yet: of a tensor to come, or of what is none and another one each time."""
        self._count += 1
        return Value(self._count)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _leaves(given: Any) -> Iterator[Any]:  # noqa: ANN401 (whatever operations take)
    if isinstance(given, (tuple, list)):
        for each in given:
            yield from _leaves(each)
    else:
        yield given


def _values(given: Any) -> Iterator[Value]:  # noqa: ANN401
    return (each for each in _leaves(given) if isinstance(each, Value))


def needed(operations: Sequence[Operation], wanted: Collection[Value]) -> list[Operation]:
    """Those without which something that is wanted, or that they change, would be missing."""
    missing, kept = set(wanted), []
    for operation in reversed(operations):
        if operation.changes or operation.made & missing:
            missing |= operation.used
            kept.append(operation)
    return kept[::-1]


def taken(operations: Sequence[Operation], wanted: Collection[Value] = ()) -> set[Value]:
    """What they, and who wants something of them, take and none of them makes; constants among it."""
    missing = set(wanted)
    for operation in reversed(operations):
        missing = (missing - operation.made) | operation.used
    return missing


def function(
    parameters: Sequence[Value], operations: Sequence[Operation], results: Sequence[Value], constants: Constants
) -> Callable[..., tuple[Any, ...]]:
    """Operations as a Python function, which gives up each tensor after its last use.

    Raises:
        Unrecordable: where they take something that is neither a parameter nor a constant.
    """
    if taken(operations, results) - set(parameters) - set(constants):
        raise NotTraceable("something was made elsewhere")
    space: dict[str, Any] = {}
    names: dict[Any, str] = {}
    lasts: dict[Value, int] = {}
    for i, operation in enumerate(operations):
        lasts |= dict.fromkeys(operation.used | operation.made, i)
    lines = [f"def run({', '.join(map(str, parameters))}):"]
    for i, operation in enumerate(operations):
        name = names.setdefault(operation.function, f"f{len(names)}")
        space[name] = operation.function
        named = [f"{key}={_written(value)}" for key, value in operation.kwargs.items()]
        call = f"{name}({', '.join([*map(_written, operation.args), *named])})"
        if isinstance(operation.gives, Value):
            call = f"{operation.gives} = {call}"
        elif operation.made:
            call = f"{_written(operation.gives).replace('None', '_')} = {call}"
        done = {value for value in operation.used | operation.made if lasts[value] == i}
        done -= {*constants, *results}
        lines.append(f"    {call}{'; del ' if done else ''}{', '.join(map(str, done))}")
    lines.append(f"    return {_written(tuple(results))}")
    space |= {str(value): constants[value] for value in {*lasts, *results} if value in constants}
    exec(compile("\n".join(lines), "<straight line>", "exec"), space)  # noqa: S102 (of what is written above alone)
    run: Callable[..., tuple[Any, ...]] = space["run"]
    return run


def _written(given: Any) -> str:  # noqa: ANN401 (whatever operations take)
    if isinstance(given, tuple):
        return f"({''.join(f'{_written(each)}, ' for each in given)})"
    return str(given) if isinstance(given, Value) else repr(given)
