import numpy as np

from whylens.planted import ATTRIBUTES, contact_sheet, render
from whylens.planted.sheet import _attribute_row


def test_sheet_holds_the_scenes_that_it_labels():
    sheet = contact_sheet(0, size=32, random_rows=1)
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet, contact_sheet(0, size=32, random_rows=1))
    assert (sheet != contact_sheet(1, size=32, random_rows=1)).any()
    for i, attribute in enumerate(("shape", "colour")):
        for j, (label, scene) in enumerate(_attribute_row(attribute, 0)):
            assert scene.value(attribute) == label == ATTRIBUTES[attribute][j]
            top, left = 4 + i * 49, 4 + j * 36
            np.testing.assert_array_equal(sheet[top : top + 32, left : left + 32], render(scene, 32)[0])
