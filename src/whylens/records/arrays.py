"""Arrays as self-describing bytes whose sha256 is the array's content hash."""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np

from whylens.records.errors import RecordError, shortened

# Little-endian or byte-wide numbers only: no objects, no text, no structures.
_DTYPES = frozenset({"|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"})
_HEAD = re.compile(rb"array:([|<][a-z]\d):\(((?:\d{1,10}, )*\d{1,10},?)\):(\d{1,19});")


def array_bytes(array: np.ndarray) -> bytes:
    """A header ``array:DTYPE:SHAPE:BYTES;`` and the values in C order; its sha256 is ``content_hash(array)``.

    Raises:
        RecordError: for a dtype that is no little-endian number, or an array without dimensions or values.
    """
    values = np.ascontiguousarray(array)
    if values.dtype.str not in _DTYPES or array.ndim == 0 or array.size == 0:
        raise RecordError(f"An array with dtype {values.dtype} and shape {array.shape} cannot be recorded.")
    return f"array:{values.dtype.str}:{values.shape}:{values.nbytes};".encode() + values.tobytes()


def read_array(data: bytes) -> np.ndarray:
    """The array that :func:`array_bytes` wrote, read-only.

    Raises:
        RecordError: for anything else.
    """
    match = _HEAD.match(data, 0, 400)
    if match is None:
        raise RecordError(f"This is no array: it starts with {shortened(data[:24].decode('latin-1'))}.")
    dtype = match[1].decode()
    shape = tuple(int(n) for n in match[2].rstrip(b",").split(b", "))
    if dtype not in _DTYPES or len(shape) > 32 or 0 in shape:
        raise RecordError(f"An array with dtype {dtype!r} and shape {shape} is not read.")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size == int(match[3]) == len(data) - match.end():
        raise RecordError(
            f"The array's header says {int(match[3])} bytes, its shape {shape} makes {size}, "
            f"and {len(data) - match.end()} follow."
        )
    array = np.frombuffer(data, dtype, offset=match.end()).reshape(shape)
    if array_bytes(array)[: match.end()] != match[0]:
        raise RecordError(f"The array's header {shortened(match[0].decode())} is not in the one form that is written.")
    return array


def blob_hash(data: bytes) -> str:
    """Plain sha256 in hex."""
    return hashlib.sha256(data).hexdigest()
