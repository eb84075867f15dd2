"""Runs the operations of a pickle within bounds, and calls only functions of a table that its caller gives."""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from captum_fam.models.inert_values import BrokenError, Budget, Name, Record, RefusedError, as_key

_LONGEST_NUMBER = 1024
_LONGEST_LINE = 2**24


@dataclass
class Machine:
    """Runs pickles, one after another, of a buffer.

    Attributes:
        data: the buffer: bytes, or a file in memory.
        find: function from the name of a module and a name in it to the object for which the name stands.
        refer: function from a reference in a pickle to data outside the pickle, to this data.
        budget: the steps that all pickles of the file may take.
        position: index of the next byte. Default: 0.

    Example:
        >>> import pickle
        >>> Machine(pickle.dumps({"epoch": 3}), find=print, refer=print, budget=Budget(100)).load()
        {'epoch': 3}
    """

    data: Any
    find: Callable[[str, str], Any]
    refer: Callable[[Any], Any]
    budget: Budget
    position: int = 0
    _stack: list[Any] = field(default_factory=list, init=False, repr=False)
    _below: list[list[Any]] = field(default_factory=list, init=False, repr=False)
    _memo: dict[int, Any] = field(default_factory=dict, init=False, repr=False)

    _OPERATIONS: ClassVar[dict[int, Callable[[Machine], None]]] = {}

    def load(self) -> Any:
        """Run one pickle.

        Returns:
            The object.

        Raises:
            BrokenError: (a ``ValueError``) if the pickle is broken or cut off.
            RefusedError: (a ``ValueError``) if it names what the table does not have, or takes too many steps.
        """
        self._stack, self._below, self._memo = [], [], {}
        operations, spend = self._OPERATIONS, self.budget.spend
        while True:
            code = self._read(1)[0]
            spend(1)
            if code == _STOP:
                return self._pop()
            operation = operations.get(code)
            if operation is None:
                raise BrokenError(f"the pickle has an unknown operation {code}")
            operation(self)

    # Bytes of the pickle

    def _read(self, count: int) -> bytes:
        end = self.position + count
        content: bytes = self.data[self.position : end]
        if len(content) < count:
            raise BrokenError("the file ends within a pickle: it is cut off")
        self.position = end
        return content

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._read(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + _LONGEST_LINE)
        if end < 0:
            raise BrokenError("the pickle has a line without an end")
        line = self._read(end + 1 - self.position)
        return line[:-1].decode("latin1")

    def _digits(self) -> str:
        line = self._line()
        if len(line) > _LONGEST_NUMBER:
            raise RefusedError(f"refused: it has a number of {len(line)} digits")
        return line

    def _long(self, count: int) -> int:
        if not 0 <= count <= _LONGEST_NUMBER:
            raise RefusedError(f"refused: it has a number of {count} bytes")
        return int.from_bytes(self._read(count), "little", signed=True)

    def _text(self, count: int) -> str:
        return self._read(count).decode("utf-8", "surrogatepass")

    def _old_text(self, count: int) -> str:
        # latin1 decodes every byte, so that each string of Python 2 can be read.
        return self._read(_counted(count)).decode("latin1")

    # Stack and memo

    def _pop(self) -> Any:
        if not self._stack:
            _fail()
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            _fail()
        return self._stack[-1]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        if not self._below:
            _fail()
        elements = self._stack
        self._stack = self._below.pop()
        return elements

    def _drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _remember(self, index: int) -> None:
        self._memo[index] = self._top()

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            _fail()
        self._push(self._memo[index])

    # Containers

    def _tuple_of(self, count: int) -> None:
        elements = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(elements)))

    def _append(self, elements: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.entries.update(enumerate(elements, len(target.entries)))
        elif isinstance(target, list | deque):
            target.extend(elements)
        else:
            _fail()

    def _add(self, elements: list[Any]) -> None:
        target = self._top()
        if type(target) is not set:
            _fail()
        target.update(map(as_key, elements))

    def _set_items(self, elements: list[Any]) -> None:
        target = self._top()
        items = target.entries if isinstance(target, Record) else target
        if not isinstance(items, dict):
            _fail()
        items.update(_pairs(elements))

    # Calls

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Name) or function.call is None or type(arguments) is not tuple:
            _fail()
        try:
            self._push(function.call(*arguments))
        except (BrokenError, RefusedError):
            raise
        except Exception as error:  # wrong arguments raise any exception
            raise BrokenError(f"the pickle calls {function.name} with arguments that it does not take") from error

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments)

    def _new_with_keywords(self) -> None:
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        if keywords:
            _fail()
        self._call(function, arguments)

    def _instance(self) -> None:
        function = self._find(self._line(), self._line())
        self._call(function, tuple(self._pop_mark()))

    def _object(self) -> None:
        elements = self._pop_mark()
        self._call(elements[0] if elements else None, tuple(elements[1:]))

    def _global(self) -> None:
        self._push(self._find(self._line(), self._line()))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._push(self._find(module, name))

    def _find(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            _fail()
        return self.find(module, name)

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            for part in state if type(state) is tuple else (state,):
                if isinstance(part, dict):
                    vars(target).update((key, value) for key, value in part.items() if isinstance(key, str))
        elif isinstance(target, OrderedDict):
            # A state dict has the versions of the modules as an attribute.
            versions = state.get("_metadata") if isinstance(state, Mapping) else None
            if isinstance(versions, Mapping):
                target._metadata = versions  # type: ignore[attr-defined]
        elif hasattr(target, "set_state"):
            target.set_state(state)
        else:
            _fail()


def _fail() -> NoReturn:
    raise BrokenError("the pickle has an operation that does not fit what came before it")


def _counted(count: int) -> int:
    if count < 0:
        _fail()
    return count


def _pairs(elements: list[Any]) -> dict[Any, Any]:
    if len(elements) % 2:
        _fail()
    return {as_key(elements[i]): elements[i + 1] for i in range(0, len(elements), 2)}


def _integer(machine: Machine) -> None:
    digits = machine._digits()
    machine._push({"00": False, "01": True}.get(digits) if digits in ("00", "01") else int(digits))


def _quoted(machine: Machine) -> None:
    line = machine._line()
    if len(line) < 2 or line[0] != line[-1] or line[0] not in "'\"":
        _fail()
    machine._push(line[1:-1].encode("latin1").decode("unicode_escape"))


_STOP = ord(".")
# The machine's methods are used here, beside it, so that each operation is one line.
Machine._OPERATIONS.update(
    {
        ord(code): operation
        for code, operation in {
            # numbers and constants
            "N": lambda m: m._push(None),
            "\x88": lambda m: m._push(True),
            "\x89": lambda m: m._push(False),
            "I": _integer,
            "J": lambda m: m._push(m._number("<i")),
            "K": lambda m: m._push(m._number("<B")),
            "M": lambda m: m._push(m._number("<H")),
            "L": lambda m: m._push(int(m._digits().removesuffix("L"))),
            "\x8a": lambda m: m._push(m._long(m._number("<B"))),
            "\x8b": lambda m: m._push(m._long(m._number("<i"))),
            "F": lambda m: m._push(float(m._digits())),
            "G": lambda m: m._push(m._number(">d")),
            # texts and bytes
            "S": _quoted,
            "U": lambda m: m._push(m._old_text(m._number("<B"))),
            "T": lambda m: m._push(m._old_text(m._number("<i"))),
            "V": lambda m: m._push(m._line().encode("latin1").decode("raw_unicode_escape")),
            "\x8c": lambda m: m._push(m._text(m._number("<B"))),
            "X": lambda m: m._push(m._text(m._number("<I"))),
            "\x8d": lambda m: m._push(m._text(m._number("<Q"))),
            "C": lambda m: m._push(m._read(m._number("<B"))),
            "B": lambda m: m._push(m._read(m._number("<I"))),
            "\x8e": lambda m: m._push(m._read(m._number("<Q"))),
            "\x96": lambda m: m._push(m._read(m._number("<Q"))),
            # containers
            "(": Machine._mark,
            "0": Machine._drop,
            "1": lambda m: m._pop_mark() and None,
            "2": lambda m: m._push(m._top()),
            ")": lambda m: m._push(()),
            "t": lambda m: m._push(tuple(m._pop_mark())),
            "\x85": lambda m: m._tuple_of(1),
            "\x86": lambda m: m._tuple_of(2),
            "\x87": lambda m: m._tuple_of(3),
            "]": lambda m: m._push([]),
            "l": lambda m: m._push(m._pop_mark()),
            "a": lambda m: m._append([m._pop()]),
            "e": lambda m: m._append(m._pop_mark()),
            "}": lambda m: m._push({}),
            "d": lambda m: m._push(_pairs(m._pop_mark())),
            "s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
            "u": lambda m: m._set_items(m._pop_mark()),
            "\x8f": lambda m: m._push(set()),
            "\x90": lambda m: m._add(m._pop_mark()),
            "\x91": lambda m: m._push(frozenset(map(as_key, m._pop_mark()))),
            # memo
            "p": lambda m: m._remember(int(m._digits())),
            "q": lambda m: m._remember(m._number("<B")),
            "r": lambda m: m._remember(m._number("<I")),
            "\x94": lambda m: m._remember(len(m._memo)),
            "g": lambda m: m._recall(int(m._digits())),
            "h": lambda m: m._recall(m._number("<B")),
            "j": lambda m: m._recall(m._number("<I")),
            # names, calls and data outside
            "c": Machine._global,
            "\x93": Machine._stack_global,
            "i": Machine._instance,
            "o": Machine._object,
            "R": Machine._reduce,
            "\x81": Machine._reduce,
            "\x92": Machine._new_with_keywords,
            "b": Machine._build,
            "P": lambda m: m._push(m.refer(m._line())),
            "Q": lambda m: m._push(m.refer(m._pop())),
            # framing
            "\x80": lambda m: m._read(1) and None,
            "\x95": lambda m: m._read(8) and None,
        }.items()
    }
)
