"""The objects for the names in a checkpoint: tensors, arrays, plain data, and records of known classes.

No name is imported. A name outside the table is an error.
"""

from __future__ import annotations

import datetime
import math
import re
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_fam._text import printable
from captum_fam.models.inert_values import BrokenError, Budget, Name, Record, RefusedError, as_key, in_words

# A view may repeat the elements of its storage up to here: a copy of a view with stride 0 could fill the memory.
_LARGEST_REPETITION = 2**20
_REPETITIONS_A_STEP = 64
_STEPS_OF_A_KEY = 8  # an entry of a dictionary takes more memory than an element of a list

_RECORDS = """
    lib.NCEAverage.NCEAverage lib.LinearAverage.LinearAverage lib.alias_multinomial.AliasMethod
    alias_multinomial.AliasMethod torch.nn.backends.thnn._get_thnn_function_backend
    argparse.Namespace types.SimpleNamespace builtins.slice builtins.range builtins.object
    decimal.Decimal fractions.Fraction uuid.UUID uuid.SafeUUID
    torch.serialization._get_layout torchvision.transforms.functional.InterpolationMode
    yacs.config.CfgNode fvcore.common.config.CfgNode easydict.EasyDict addict.addict.Dict
    ml_collections.config_dict.config_dict.ConfigDict mmengine.config.config.ConfigDict
    mmcv.utils.config.ConfigDict lightning.fabric.utilities.data.AttributeDict
    lightning_fabric.utilities.data.AttributeDict pytorch_lightning.utilities.parsing.AttributeDict
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata
    omegaconf.base.Metadata omegaconf.nodes.AnyNode omegaconf.nodes.StringNode omegaconf.nodes.IntegerNode
    omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode omegaconf.nodes.PathNode omegaconf.nodes.EnumNode
""".split()
# Names that are data: the factory of a defaultdict, the type of a field, the key of the state of a callback.
_DATA = """
    builtins.int builtins.float builtins.str builtins.bool builtins.tuple typing.Any torch.Tensor
    torch.nn.parameter.Parameter torch.nn.parameter.Buffer
    pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
    pytorch_lightning.callbacks.early_stopping.EarlyStopping
""".split()
_DTYPES = {f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "Untyped": torch.uint8,
}


class Storage:
    """The memory of tensors, as a pickle passes it to the functions that make tensors.

    Args:
        flat: all elements, one-dimensional.
    """

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat


class _DType:
    """A dtype of NumPy while a pickle describes it."""

    def __init__(self, code: str) -> None:
        self._code = code
        self._order = "="

    def set_state(self, state: Any) -> None:
        self._order = state[1] if state[1] in ("<", ">") else "="

    def get(self) -> np.dtype[Any]:
        return np.dtype(self._order + self._code)


class _Array(np.ndarray[Any, Any]):
    """An array that gets its content after its creation."""

    def set_state(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        array = _array(content, dtype, shape)  # checks the state, which __setstate__ does not check
        restore: Any = self.__setstate__
        restore((1, array.shape, array.dtype, bool(is_fortran), content))


class InertNames:
    """The table of names, for one file.

    Args:
        budget: the steps that the file may take.

    Example:
        >>> InertNames(Budget(100)).find("collections", "OrderedDict").call()
        OrderedDict()
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        calls: dict[str, Callable[..., Any]] = {
            "builtins.dict": self._dict,
            "builtins.list": self._list,
            "builtins.set": self._set,
            "builtins.frozenset": lambda *elements: frozenset(self._set(*elements)),
            "builtins.bytes": lambda: b"",
            "builtins.complex": lambda real, imaginary: float(real) + 1j * float(imaginary),
            "builtins.bytearray": self._bytes,
            "_codecs.encode": self._bytes,
            "collections.Counter": self._dict,
            "collections.OrderedDict": self._ordered_dict,
            "collections.defaultdict": lambda *factory: {},
            "collections.deque": lambda elements=(), length=None: deque(self._list(elements), length),
            "datetime.date": datetime.date,
            "datetime.datetime": datetime.datetime,
            "datetime.time": datetime.time,
            "datetime.timedelta": datetime.timedelta,
            "datetime.timezone": datetime.timezone,
            "numpy.dtype": _dtype,
            "torch.device": lambda kind, *index: torch.device(*_texts((kind,)), *_numbers(index)),
            "torch.Size": lambda sizes=(): torch.Size(_numbers(sizes)),
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._tensor._rebuild_from_type_v2": _rebuilt,
        }
        for module in ("pathlib", "pathlib._local"):
            for kind in ("PosixPath", "PurePosixPath"):
                calls[f"{module}.{kind}"] = lambda *parts: PurePosixPath(*_texts(parts))
            for kind in ("WindowsPath", "PureWindowsPath"):
                calls[f"{module}.{kind}"] = lambda *parts: PureWindowsPath(*_texts(parts))
        for module in ("numpy.core", "numpy._core"):
            calls[f"{module}.multiarray.scalar"] = _scalar
            calls[f"{module}.multiarray._reconstruct"] = lambda *_: np.empty(0, np.int8).view(_Array)
            calls[f"{module}.numeric._frombuffer"] = _array
        self._known: dict[str, Any] = {
            **{name: Name(name) for name in (*_DATA, "numpy.ndarray")},
            **{name: Name(name, _record_of(name)) for name in _RECORDS},
            **{name: Name(name, call) for name, call in calls.items()},
            **_DTYPES,
        }
        for kind, dtype in _STORAGES.items():
            for module in ("torch", "torch.cuda", "torch.storage"):
                self._known[f"{module}.{kind}Storage"] = dtype

    def find(self, module: str, name: str) -> Any:
        """The object for which a name stands.

        Args:
            module: name of the module; names of Python 2 are known too.
            name: name in the module.

        Returns:
            A :class:`~captum_fam.models.inert_values.Name`, or a ``torch.dtype``, which stands for a storage too.

        Raises:
            RefusedError: (a ``ValueError``) for a name outside the table.
        """
        known = self._known.get(f"{module}.{name}".replace("__builtin__.", "builtins.", 1))
        if known is None:
            raise RefusedError(
                f"refused: it names {printable(f'{module}.{name}')}, which is neither a tensor nor plain data; "
                "save model.state_dict() alone"
            )
        return known

    def _list(self, elements: Any = ()) -> list[Any]:
        self._budget.spend(len(elements))
        return list(elements)

    def _set(self, elements: Any = ()) -> set[Any]:
        self._budget.spend(_STEPS_OF_A_KEY * len(elements))
        return set(map(as_key, elements))

    def _dict(self, items: Any = ()) -> dict[Any, Any]:
        self._budget.spend(_STEPS_OF_A_KEY * len(items))
        return dict(items) if isinstance(items, dict) else {as_key(key): value for key, value in items}

    def _ordered_dict(self, items: Any = ()) -> OrderedDict[Any, Any]:
        return OrderedDict(self._dict(items))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
        if not isinstance(storage, Storage):
            raise BrokenError("a tensor has no storage")
        (offset,), size, stride = _numbers((offset,)), _numbers(size), _numbers(stride)
        flat = storage.flat
        n_repeated = math.prod(size) - len(flat)
        if min((offset, *size, *stride)) < 0 or n_repeated > _LARGEST_REPETITION:
            raise RefusedError(f"refused: a tensor of {in_words(size)} has a storage of {len(flat)} elements")
        self._budget.spend(max(n_repeated, 0) // _REPETITIONS_A_STEP)
        return flat.as_strided(size, stride, flat.storage_offset() + offset)

    def _tensor_v3(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: object
    ) -> Tensor:
        if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
            raise BrokenError("a tensor has no storage")
        return self._tensor(Storage(storage.flat.view(dtype)), offset, size, stride)

    def _bytes(self, text: Any = b"", encoding: Any = "latin1") -> bytes:
        self._budget.spend(len(text) // 16)
        if encoding not in ("latin1", "latin-1"):
            raise BrokenError(f"the pickle has bytes in the encoding {in_words(encoding)}")
        return text.encode("latin1") if isinstance(text, str) else bytes(memoryview(text))


def _record_of(name: str) -> Callable[..., Record]:
    return lambda *arguments: Record(name, *arguments)


def _numbers(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list, torch.Size) or not all(type(value) is int for value in values):
        raise BrokenError("a tensor has sizes that are no whole numbers")
    return tuple(values)


def _texts(parts: tuple[Any, ...]) -> tuple[str, ...]:
    if not all(isinstance(part, str) for part in parts):
        raise BrokenError("a path has parts that are no texts")
    return parts


def _rebuilt(function: Any, kind: Any, arguments: Any, *_: object) -> Any:
    """A tensor with attributes, or of a subclass: the tensor."""
    if not isinstance(function, Name) or function.call is None:
        raise BrokenError("a tensor is made by no function")
    return function.call(*arguments)


def _dtype(code: Any, *_: object) -> _DType:
    if not isinstance(code, str) or not re.fullmatch(r"[?biufcSU]\d{0,6}", code):
        raise RefusedError(f"refused: it holds an array of NumPy of dtype {in_words(code)}, expected numbers")
    return _DType(code)


def _array(content: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _DType) or not isinstance(content, bytes):
        raise BrokenError("an array has no dtype or no content")
    array: np.ndarray[Any, Any] = np.frombuffer(content, dtype.get())
    return array.reshape(_numbers(shape), order=order)


def _scalar(dtype: Any, content: Any = b"") -> Any:
    return _array(content, dtype, (1,))[0]
