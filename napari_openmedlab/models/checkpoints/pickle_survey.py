"""Look through the pickle of a checkpoint without running or importing anything it names.

A pickle is a small program: it can name any Python function and have it called. Two walls
stand before that. First this survey: the pickle is executed with *every* name replaced by an
inert stand-in, so that all names are known, and the places of all tensors are checked against
the file. Then :func:`torch.load` reads the same bytes with ``weights_only=True``, where names
that only describe training (optimizers, arguments, NumPy numbers) are again inert stand-ins.
A name on neither list refuses the file. Nobody can switch that off.

Needs no torch.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, cast

__all__ = [
    "DAMAGED",
    "DICT_LIKE",
    "HARMLESS",
    "Storage",
    "Survey",
    "inert_class",
    "require_sane_memo",
    "survey_pickle",
]

# What a damaged or hostile pickle makes the unpickler raise.
DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)

_BUILTINS = ("dict", "float", "frozenset", "int", "list")
_PATHS = ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")

# Lies beside the weights in published files. Each becomes an inert stand-in: the class or
# function of that name is never imported, called or given a state.
HARMLESS: frozenset[str] = frozenset(
    (
        "argparse.Namespace",
        "numpy.dtype",
        "numpy.ndarray",
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ),
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
        *(f"{module}.{name}" for module in ("__builtin__", "builtins") for name in _BUILTINS),
        "torch.optim.adam.Adam",
        "torch.optim.adamw.AdamW",
        "torch.optim.sgd.SGD",
        "torch.optim.lr_scheduler.StepLR",
        "torch.optim.lr_scheduler.MultiStepLR",
    )
)
# Filled item by item, which torch allows for plain dictionaries only.
DICT_LIKE = "collections.defaultdict"

# Part of what torch itself reads; in the survey they only note what they are given.
_STRUCTURE: frozenset[str] = frozenset(
    (
        "_codecs.encode",
        "__builtin__.set",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch._utils._rebuild_parameter",
        *(f"torch.{name}" for name in ("float16", "float32", "float64", "bfloat16", "int64")),
    )
)
_NUMBERING = ("PUT", "BINPUT", "LONG_BINPUT")
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_ITEM_BYTES = {
    "torch.BFloat16Storage": 2,
    "torch.BoolStorage": 1,
    "torch.ByteStorage": 1,
    "torch.CharStorage": 1,
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.IntStorage": 4,
    "torch.LongStorage": 8,
    "torch.ShortStorage": 2,
}


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file: its key, the bytes of one number, how many numbers."""

    key: str
    item_bytes: int
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.item_bytes * self.count


@dataclass
class Survey:
    """What a pickle names and describes.

    Attributes
    ----------
    refused : list of str
        Full names on no list, in order of appearance.
    storages : dict
        By key.
    protocol : int
        Of the pickle.
    """

    refused: list[str] = field(default_factory=list)
    storages: dict[str, Storage] = field(default_factory=dict)
    protocol: int = 0


def inert_class(on_call: Callable[..., Any] | None = None) -> type:
    """Return a new class that takes anything and does nothing with it.

    It is made anew for each file, so that nothing a file does to it outlives the file.
    ``on_call`` sees the arguments of each construction.
    """

    class Inert:
        def __new__(cls, *args: Any, **_named: Any) -> Any:
            if on_call is not None:
                on_call(*args)
            return object.__new__(cls)

        def __init__(self, *_args: Any, **_named: Any) -> None:
            pass

        def __setstate__(self, _state: Any) -> None:
            pass

        def __setitem__(self, _key: Any, _value: Any) -> None:
            pass

        def append(self, _item: Any) -> None:
            pass

        def add(self, _item: Any) -> None:
            pass

        def extend(self, _items: Any) -> None:
            pass

    return Inert


class _Surveyor(pickle.Unpickler):
    """Executes a pickle with stand-ins only."""

    def __init__(self, file: io.BufferedIOBase | io.BytesIO, survey: Survey) -> None:
        super().__init__(file, encoding="utf-8")
        self._survey = survey
        self._inert = inert_class()
        self._tensor = inert_class(self._note_tensor)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _TENSORS:
            return self._tensor
        if full in _ITEM_BYTES:
            return full
        allowed = full in HARMLESS or full in _STRUCTURE or full == DICT_LIKE
        if not allowed and full not in self._survey.refused:
            self._survey.refused.append(full)
        return self._inert

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage_type, key, _location, count = pid[:5]
        if kind != "storage" or storage_type not in _ITEM_BYTES:
            raise pickle.UnpicklingError("a reference to something other than a storage")
        storage = Storage(str(key), _ITEM_BYTES[storage_type], int(count))
        known = self._survey.storages.setdefault(storage.key, storage)
        if storage.count < 0 or known.size != storage.size:
            raise pickle.UnpicklingError("storages that contradict each other")
        return storage

    def _note_tensor(self, *args: Any) -> None:
        storage, offset, size, stride = args[:4]
        if not isinstance(storage, Storage) or len(size) != len(stride):
            raise pickle.UnpicklingError("a tensor without a storage")
        if offset < 0 or min((*size, *stride), default=0) < 0:
            raise pickle.UnpicklingError("a tensor with a negative size or place")
        reach = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and offset + reach >= storage.count:
            raise pickle.UnpicklingError("a tensor that reaches beyond its storage")


def require_sane_memo(file: io.BufferedIOBase | io.BytesIO) -> None:
    """Raise one of :data:`DAMAGED` if the next pickle would fill the memory by a single byte.

    A pickle numbers its objects for later use, and Python makes room up to the largest number.
    An honest pickle counts up, so no number exceeds the bytes before it. The file is left where
    it was.
    """
    start = file.tell()
    for opcode, argument, place in pickletools.genops(cast("IO[bytes]", file)):
        if opcode.name in _NUMBERING and int(str(argument)) > (place or 0) - start:
            raise pickle.UnpicklingError("a damaged list of objects")
    file.seek(start)


def survey_pickle(file: io.BufferedIOBase | io.BytesIO, survey: Survey | None = None) -> Survey:
    """Return what the next pickle in ``file`` names, leaving the file right behind it.

    Parameters
    ----------
    file : binary file
        At the first byte of a pickle.
    survey : Survey, optional
        To go on with, for files of several pickles.

    Raises
    ------
    Exception
        One of :data:`DAMAGED` if the pickle is damaged or describes tensors that can't be,
        unless it also names what is refused: then the survey tells.
    """
    survey = Survey() if survey is None else survey
    start = file.tell()
    opening = file.read(2)
    file.seek(start)
    if len(opening) == 2 and opening[0] == 0x80:
        survey.protocol = max(survey.protocol, opening[1])
    require_sane_memo(file)
    try:
        _Surveyor(file, survey).load()
    except DAMAGED:
        if not survey.refused:
            raise
    return survey
