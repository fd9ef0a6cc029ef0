"""Arrays as bytes: their plain sha256 is the content hash that every record uses."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from whylens.canonical import content_hash
from whylens.records import RecordError
from whylens.records.arrays import array_bytes, read_array

DTYPES = st.sampled_from(["u1", "i1", "?", "<f2", "<f4", "<f8", "<i4", "<i8", "<u2"])


@settings(deadline=None)
@given(hnp.arrays(DTYPES, hnp.array_shapes(max_dims=4, max_side=5)))
def test_arrays_come_back_and_hash_alike(array):
    data = array_bytes(array)
    assert hashlib.sha256(data).hexdigest() == content_hash(array)
    back = read_array(data)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@settings(deadline=None)
@given(st.integers(0), st.integers(1, 255))
def test_every_change_of_a_byte_changes_the_hash_or_is_refused(position, change):
    data = bytearray(array_bytes(np.arange(6, dtype=np.float32).reshape(2, 3)))
    before = hashlib.sha256(data).hexdigest()
    data[position % len(data)] ^= change
    assert hashlib.sha256(data).hexdigest() != before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"array:<f4:(1,):4;",
        b"array:<f4:(1,):4;12345",
        b"array:<f4:(1,):8;12345678",
        b"array:<f4:(01,):4;1234",
        b"array:<f4:(1):4;1234",
        b"array:|O8:(1,):8;12345678",
        b"array:>f4:(1,):4;1234",
        b"array:<f4:(0,):0;",
        b"array:<f4:(9999999999, 9999999999):4;1234",
        b"array:<f4:(" + b"1, " * 50 + b"1):4;1234",
    ],
)
def test_what_is_no_array_is_refused(data):
    with pytest.raises(RecordError):
        read_array(data)


@pytest.mark.parametrize("array", [np.array(1.0), np.zeros((0, 3)), np.array(["a"]), np.array([None])])
def test_arrays_that_cannot_be_recorded(array):
    with pytest.raises(RecordError, match="cannot be recorded"):
        array_bytes(array)
