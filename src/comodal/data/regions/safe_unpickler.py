"""Reads untrusted pickles: only simple values and NumPy arrays are rebuilt; everything else is rejected by name.

A pickle is a program: `pickle.load` on a downloaded feature file runs what its author chose. This unpickler only offers
OrderedDict and its own functions, which rebuild arrays, so nothing else can be called.
"""

import io
import pickle
import pickletools
import re
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from comodal.data.numpy_files import read_npy
from comodal.errors import DataError
from comodal.files import open_regular_file

DAMAGED_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, ValueError, TypeError,
    MemoryError, OverflowError, RecursionError, SystemError,
)  # fmt: skip
MAX_PICKLED_NPY_HEADER_BYTES = 10_000  # of an .npy file
SIMPLE_TYPES = (str, bytes, int, float, bool, type(None), np.generic, np.ndarray)
DTYPE_CODE_PATTERN = re.compile(r"[biuf][1248]|[SU]\d{0,6}|O8?|b1")


class RefusedPickleError(DataError):
    """A pickle with a reference that could run code."""


def encode_latin1_text(text: str, encoding: str) -> bytes:
    """Bytes as old protocols store them: as Latin-1 text."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


def make_empty_bytes() -> bytes:
    """Empty bytes as old protocols store them: as a call of `bytes`, which would accept a length too."""
    return b""


class AllowedFunction:
    """A function that a pickle can call, but whose attributes it cannot change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, *values: Any) -> Any:
        return self.function(*values)

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickleError("refused: it changes a function")


class DtypeStandIn:
    """Stands for numpy.dtype: numbers, text and objects, with their byte order."""

    def __init__(self, code: str | bytes, *_flags: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        self.order = "="
        if not DTYPE_CODE_PATTERN.fullmatch(self.code):
            raise ValueError(f"an array of the type {self.code!r}")

    def __setstate__(self, state: tuple) -> None:
        self.order = str(state[1]) if str(state[1]) in "<>|=" else "="
        if any(part is not None for part in state[2:5]):
            raise ValueError("an array with fields")

    @property
    def dtype(self) -> np.dtype:
        """The dtype that it stands for."""
        return np.dtype(f"{self.order}{self.code}" if self.order in "<>" else self.code)


class ArrayStandIn:
    """Stands for an array until the whole pickle is read, so that no pickle accesses NumPy."""

    def __init__(self) -> None:
        self.state: tuple[tuple[int, ...], DtypeStandIn, bool, Any] | None = None

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, DtypeStandIn):
            raise ValueError("an array without a type")
        self.state = shape, dtype, bool(fortran), data

    def to_array(self, convert: Callable[[Any], Any]) -> np.ndarray:
        """The array that it stands for; `convert` converts the items of an object array."""
        if self.state is None:
            raise ValueError("an array without content")
        shape, dtype, fortran, data = self.state
        if dtype.code.startswith("O"):
            flat = np.empty(len(data), object)
            for index, item in enumerate(convert(data)):
                flat[index] = item
        else:
            flat = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.dtype)
        return flat.reshape(shape, order="F" if fortran else "C")


def reject_ndarray_call(*_values: Any) -> Any:
    """Stands for numpy.ndarray, which a pickle may refer to but may not call."""
    raise RefusedPickleError("refused: it calls numpy.ndarray")


def make_empty_array(_kind: Any, _shape: tuple[int, ...], _code: bytes | str) -> ArrayStandIn:
    """The array that the next instruction fills."""
    return ArrayStandIn()


def rebuild_array(data: bytes | bytearray, dtype: DtypeStandIn, shape: tuple[int, ...], order: str) -> np.ndarray:
    """The array encoding of protocol 5."""
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def rebuild_scalar(dtype: DtypeStandIn, data: bytes | str) -> Any:
    """A NumPy scalar."""
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.dtype, 1)[0]


ALLOWED_GLOBALS: dict[tuple[str, str], AllowedFunction] = {
    ("collections", "OrderedDict"): AllowedFunction(dict),
    ("_codecs", "encode"): AllowedFunction(encode_latin1_text),
    ("__builtin__", "bytes"): AllowedFunction(make_empty_bytes),
    ("numpy", "ndarray"): AllowedFunction(reject_ndarray_call),
    ("numpy", "dtype"): AllowedFunction(DtypeStandIn),
}
for _package in ("numpy.core", "numpy._core"):  # the name before numpy 2, and since
    ALLOWED_GLOBALS[f"{_package}.multiarray", "_reconstruct"] = AllowedFunction(make_empty_array)
    ALLOWED_GLOBALS[f"{_package}.multiarray", "scalar"] = AllowedFunction(rebuild_scalar)
    ALLOWED_GLOBALS[f"{_package}.numeric", "_frombuffer"] = AllowedFunction(rebuild_array)


class ArrayBuilder:
    """Converts stand-ins to arrays. A stand-in that is referenced twice is converted once, which bounds the work."""

    def __init__(self) -> None:
        self.built: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, SIMPLE_TYPES):
            return value
        if id(value) not in self.built:
            self.built[id(value)] = self._build(value)
        return self.built[id(value)]

    def _build(self, value: Any) -> Any:
        if isinstance(value, ArrayStandIn):
            return value.to_array(self)
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self(item) for item in value)
        if isinstance(value, DtypeStandIn):
            return value.dtype
        raise ValueError(f"a {type(value).__name__}, which no file of features holds")


class SafeUnpickler(pickle.Unpickler):
    """An unpickler that resolves only allowed names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise RefusedPickleError(f"refused: it references {module}.{name}, which could run code")
        return ALLOWED_GLOBALS[module, name]

    def persistent_load(self, _identity: Any) -> Any:
        raise RefusedPickleError("refused: it references an object outside the pickle")


def check_pickle_memo(data: bytes) -> None:
    """Check that no memo index exceeds the pickle's length: the memo table is as long as its largest index.

    Raises:
        ValueError: One does; nine bytes could use all memory.
    """
    for operation, memo_index, _ in pickletools.genops(data):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(memo_index or 0) > len(data):
            raise ValueError(f"memo index {memo_index} in a pickle of {len(data)} bytes")


def load_pickle(data: bytes) -> Any:
    """The value of a pickle of simple values and arrays.

    Raises:
        RefusedPickleError: It refers to something else; none of it was run.
        DataError: It is damaged.
    """
    try:
        check_pickle_memo(data)
        return ArrayBuilder()(SafeUnpickler(io.BytesIO(data), encoding="latin1").load())
    except DAMAGED_PICKLE_ERRORS as error:
        raise DataError(f"a damaged pickle ({type(error).__name__}: {error})") from error


def load_npy(path: Path) -> Any:
    """An .npy file; a dictionary saved with np.save is returned as one.

    Raises:
        RefusedPickleError: It holds objects that could run code.
        DataError: It is damaged or cannot be read.
    """
    try:
        with open_regular_file(path) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = read(file, max_header_size=MAX_PICKLED_NPY_HEADER_BYTES)
            if dtype.hasobject:
                value = load_pickle(file.read())
                return value.item() if isinstance(value, np.ndarray) and value.shape == () else value
            file.seek(0)
            return read_npy(file, path.stat().st_size)
    except RefusedPickleError as error:
        raise RefusedPickleError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (
        DataError,
        SyntaxError,
        tokenize.TokenError,
        *DAMAGED_PICKLE_ERRORS,
    ) as error:  # the first two of its header
        raise DataError(f"{path}: an incomplete or damaged .npy file ({error})") from error
