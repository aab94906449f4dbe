"""A pickle, interpreted instead of loaded: no name in it is ever imported, no object of it ever called.

``pickle.Unpickler`` with a restricted ``find_class`` still hashes keys, fills memos and sets attributes as the file
says, and asks a process-wide registry for extensions. This machine knows only what a state dict needs: plain values,
tuples, lists and maps, and a short list of globals, each of which stands for something of ours that does nothing.
Keys that are neither plain nor such objects are dropped with their values; of an object's state only what a ``Record``
keeps is looked at.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from stockpot import errors

Call = Callable[[tuple[Any, ...]], Any]
FindGlobal = Callable[[str, str], Any]
PersistentLoad = Callable[[Any], Any]
_PLAIN = (str, bytes, int, float, bool, type(None))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = (
    *("INT", "BININT", "LONG", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BIN", "UNICODE", "BINUNICODE"),
    *("BINBYTES", "BYTEARRAY8"),
)
_SKIPPED = ("PROTO", "FRAME")
FIELDS_CAP = 32
"""Attributes of one object (one map of them can be named many times)."""


@dataclass(frozen=True, slots=True)
class Function:
    """A global that may be called: ``call`` is ours."""

    call: Call


class Record:
    """An object of which we keep the attributes (or whole ``state``) that the file states; equal to itself alone."""

    __slots__ = ("fields", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.fields: dict[str, Any] = {}


class Opaque:
    """Stands for an object that we do not need."""

    __slots__ = ()


OPAQUE = Opaque()
_MARK = object()


class PickleError(Exception):
    """The file is no pickle that this machine can follow."""


def run(file: BinaryIO, find_global: FindGlobal, persistent_load: PersistentLoad) -> Any:
    """The value of the next pickle in a file, which is left after its end; PickleError where it makes no sense."""
    machine = _Machine(find_global, persistent_load)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (PickleError, errors.StockpotError):
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, pickle.UnpicklingError) as error:
        raise PickleError(f"{type(error).__name__}: {error}"[:200]) from None
    raise PickleError("it ends early")


class _Machine:
    """A stack, a memo, and one method for each kind of opcode."""

    def __init__(self, find_global: FindGlobal, persistent_load: PersistentLoad) -> None:
        self.find_global = find_global
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("a mark where a value should be")
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise PickleError("a mark where a value should be")
        return self.stack[-1]

    def step(self, name: str, argument: Any) -> None:
        """Do one opcode."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _SKIPPED:
            pass
        elif (method := getattr(self, f"do_{name.lower()}", None)) is not None:
            method(argument)
        elif isinstance(argument, str | bytes | bytearray | int | float) and name.startswith(_VALUES):
            self.stack.append(argument)
        else:
            raise PickleError(f"an opcode that no state dict needs: {name}")

    def call(self, function: Any, arguments: Any) -> Any:
        """Our function on these arguments; an opaque one gives an opaque object."""
        if not isinstance(arguments, tuple):
            raise PickleError("arguments that are no tuple")
        if isinstance(function, Opaque):
            return OPAQUE
        if not isinstance(function, Function):
            raise PickleError(f"a call of {type(function).__name__}")
        return function.call(arguments)

    def put(self, mapping: Any, items: list[Any]) -> None:
        """Key, value, key, value, ... into a map; keys that are not plain are dropped."""
        if isinstance(mapping, Opaque):
            return
        if not isinstance(mapping, dict) or len(items) % 2:
            raise PickleError("items for what is no map")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, (*_PLAIN, Record)):
                mapping[key] = value

    def do_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def do_pop(self, _: Any) -> None:
        self.stack.pop()

    def do_pop_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def do_dup(self, _: Any) -> None:
        self.stack.append(self.top())

    def do_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def do_tuple3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_list(self, _: Any) -> None:
        self.stack.append(self.pop_to_mark())

    def do_append(self, _: Any) -> None:
        self.extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise PickleError("items for what is no list")

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def do_dict(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self.put(self.stack[-1], items)

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.put(self.top(), [key, value])

    def do_setitems(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.put(self.top(), items)

    def do_empty_set(self, _: Any) -> None:
        self.stack.append(OPAQUE)

    def do_frozenset(self, _: Any) -> None:
        self.pop_to_mark()
        self.stack.append(OPAQUE)

    def do_additems(self, _: Any) -> None:
        self.pop_to_mark()
        if not isinstance(self.top(), Opaque):
            raise PickleError("items for what is no set")

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.find_global(module, name))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a global without a name")
        self.stack.append(self.find_global(module, name))

    def do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        arguments = tuple(self.pop_to_mark())
        self.stack.append(self.call(self.find_global(module, name), arguments))

    def do_obj(self, _: Any) -> None:
        kind, *arguments = self.pop_to_mark()
        self.stack.append(self.call(kind, tuple(arguments)))

    def do_reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(self.call(function, arguments))

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        self.pop()
        self.do_reduce(None)

    def do_build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            stated = state if isinstance(state, dict) else {"state": state}
            if len(stated) > FIELDS_CAP:
                raise PickleError("an object of absurdly many attributes")
            target.fields.update({key: value for key, value in stated.items() if isinstance(key, str)})
        elif not isinstance(target, Opaque | dict):
            raise PickleError("a state for what has none")

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent_load(self.pop()))

    def do_put(self, argument: int) -> None:
        self.memo[int(argument)] = self.top()

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def do_get(self, argument: int) -> None:
        self.stack.append(self.memo[int(argument)])

    do_binget = do_long_binget = do_get
