import hashlib

import numpy as np
import pytest

from whylens.canonical import content_hash


def test_it_is_the_sha256_of_framed_parts():
    assert content_hash(b"ab", "ü") == hashlib.sha256(b"bytes:2;abtext:2;\xc3\xbc").hexdigest()
    array = np.array([[1, 2]], "<i4")
    framed = b"array:<i4:(1, 2):8;" + bytes([1, 0, 0, 0, 2, 0, 0, 0])
    assert content_hash(array) == hashlib.sha256(framed).hexdigest()


def test_frames_keep_parts_apart():
    different = [("ab", "c"), ("a", "bc"), ("abc",), (b"abc",), ("abc", ""), ("", "abc"), ()]
    assert len({content_hash(*parts) for parts in different}) == len(different)


def test_arrays_of_other_shape_or_type_differ():
    shapes = [(), 1, (1, 1), (0, 3), (3, 0)]
    zeros = [*(np.zeros(shape, np.float32) for shape in shapes), np.zeros(1, np.int32), np.zeros(4, np.uint8)]
    assert len({content_hash(array) for array in zeros}) == len(zeros)


def test_layout_and_byte_order_in_memory_do_not_matter():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for same in (np.asfortranarray(array), array.astype(">f4"), array[::-1].copy()[::-1]):
        assert content_hash(same) == content_hash(array)
    assert content_hash(array.transpose(0, 2, 1)) != content_hash(array)


def test_names_of_files_that_are_not_utf8():
    name = b"k\xe4tzchen.png".decode("utf-8", "surrogateescape")
    assert content_hash(name) != content_hash("kätzchen.png")


def test_arrays_of_objects_are_refused():
    with pytest.raises(TypeError, match="objects"):
        content_hash(np.array([None]))
