import pickle

import pytest

from whylens import errors
from whylens.errors import InputError, WhylensError, missing_extra, unknown_name


def test_short_lists_are_shown_whole():
    error = unknown_name("layer", "layr4", ["layer3", "layer4", "fc"], hint="See model.named_modules().")
    assert isinstance(error, InputError)
    assert str(error) == (
        "Unknown layer 'layr4'. Did you mean 'layer4' or 'layer3'? Accepted: layer3, layer4, fc. "
        "See model.named_modules()."
    )


def test_long_lists_show_the_nearest_or_a_few():
    names = [f"resnet{n}" for n in range(50)]
    assert "There are" not in str(unknown_name("model", "resnet18x", names))
    assert "'resnet18'" in str(unknown_name("model", "resnet18x", names))
    assert "There are 50, for example resnet0, resnet1" in str(unknown_name("model", "zzz", names))


def test_case_does_not_matter_and_repeats_are_shown_once():
    assert "Did you mean 'FEI'? Accepted: FEI, IG." in str(unknown_name("method", "fei", ["FEI", "IG", "FEI"]))


def test_empty_list_and_values_of_other_types():
    assert str(unknown_name("bank", "x", [])) == "Unknown bank 'x'. There is no bank to choose from."
    assert "Unknown class '7'" in str(unknown_name("class", 7, ["cat"]))


def test_missing_extra_names_the_command():
    error = missing_extra("timm", "timm", "Loading timm: models")
    assert isinstance(error, ImportError)
    assert "pip install 'whylens[timm]'" in str(error)


@pytest.mark.parametrize("name", [n for n in dir(errors) if n.endswith("Error")])
def test_one_family_that_survives_pickling(name):
    kind = getattr(errors, name)
    assert issubclass(kind, WhylensError)
    again = pickle.loads(pickle.dumps(kind("what was wrong")))
    assert type(again) is kind
    assert str(again) == "what was wrong"
