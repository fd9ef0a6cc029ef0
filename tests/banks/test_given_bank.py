"""Banks with given embeddings: reading, refusing, and putting them on a lens that has no encoder at hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from whylens.banks import load_given_bank
from whylens.encoders import Encoder
from whylens.errors import InputError

PHRASES = ["red", "green plant", "blue sky", "yellow"]


def rows(count=4, width=6, seed=0):
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def write(folder, arrays, phrases, *, npz=False):
    folder.mkdir(parents=True, exist_ok=True)
    if npz:
        np.savez(folder / "embeddings.npz", **{name: array.numpy() for name, array in arrays.items()})
    else:
        save_file({name: array.contiguous() for name, array in arrays.items()}, folder / "embeddings.safetensors")
    (folder / "phrases.json").write_text(json.dumps(phrases))
    return folder


@pytest.mark.parametrize("npz", [False, True])
def test_one_list(tmp_path, npz):
    given = load_given_bank(write(tmp_path / "mine", {"x": rows()}, PHRASES, npz=npz))
    assert given.bank.phrases == tuple(PHRASES)
    assert given.bank.groups == ("x",) * 4
    assert given.bank.sources == ("mine",) * 4
    assert torch.allclose(given.embeddings, rows(), atol=1e-6)
    assert given.notes == ()


def test_several_lists_are_joined_and_repeats_left_out(tmp_path):
    arrays = {"a": rows(2), "b": rows(3, seed=1)}
    folder = write(tmp_path / "two", arrays, {"a": ["Red", "sky"], "b": ["leaf", "red", "sea"]})
    given = load_given_bank(folder)
    assert given.bank.phrases == ("Red", "sky", "leaf", "sea")
    assert given.bank.groups == ("a", "a", "b", "b")
    assert torch.allclose(given.embeddings[2:], rows(3, seed=1)[[0, 2]], atol=1e-6)
    assert load_given_bank(folder, parts=["b"]).bank.phrases == ("leaf", "red", "sea")
    with pytest.raises(InputError, match="part of the bank 'c'"):
        load_given_bank(folder, parts=["c"])


def test_saved_and_read_again(tmp_path):
    content = {"phrases": PHRASES, "groups": ["c", "s", "s", "c"], "encoder": {"name": "e", "fingerprint": "f" * 64}}
    given = load_given_bank(write(tmp_path / "a", {"embeddings": rows()}, content))
    again = load_given_bank(given.save(tmp_path / "b"))
    assert again.bank.phrases == given.bank.phrases
    assert again.bank.groups == ("c", "s", "s", "c")
    assert again.encoder == {"name": "e", "fingerprint": "f" * 64}
    assert torch.allclose(again.embeddings, given.embeddings, atol=1e-6)


def test_rows_of_other_lengths_are_scaled_and_said(tmp_path):
    folder = write(tmp_path / "a", {"x": rows() * torch.tensor([[1.0], [3.0], [1.0], [0.1]])}, PHRASES)
    with pytest.warns(UserWarning, match="2 of 4 embeddings"):
        given = load_given_bank(folder)
    assert torch.allclose(given.embeddings, rows(), atol=1e-6)
    assert "0.1 to 3" in given.notes[0]


def with_value(value):
    made = rows()
    made[1] = value
    return made


@pytest.mark.parametrize(
    ("arrays", "phrases", "message"),
    [
        ({"x": with_value(float("nan"))}, PHRASES, "1 rows of 'x' are not finite, the first of 'green plant'"),
        ({"x": with_value(0.0)}, PHRASES, "are zero, the first of 'green plant'"),
        ({"x": rows(3)}, PHRASES, r"4 rows of numbers.*\(3, 6\)"),
        ({"x": torch.ones(4, 6, dtype=torch.int64)}, PHRASES, "int64"),
        ({"x": rows()[0]}, PHRASES, "shape"),
        ({"a": rows(2), "b": rows(2, 5)}, {"a": ["r", "s"], "b": ["t", "u"]}, r"widths \[5, 6\]"),
        ({"a": rows(2), "b": rows(2)}, ["r", "s"], "one list of phrases for 2 arrays"),
        ({"a": rows(2)}, {"b": ["r", "s"]}, "one for each of the arrays a"),
        ({"a": rows(2)}, {"a": ["r", 5]}, "each a text"),
        ({"a": rows(2)}, {"phrases": ["r", "s"], "groups": ["g"]}, "one text a phrase"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, arrays, phrases, message):
    with pytest.raises(InputError, match=message):
        load_given_bank(write(tmp_path / "a", arrays, phrases))


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(InputError, match="no file or folder"):
        load_given_bank(tmp_path / "none")
    with pytest.raises(InputError, match="no bank of given embeddings"):
        load_given_bank(tmp_path)
    folder = write(tmp_path / "a", {"x": rows()}, PHRASES)
    (folder / "phrases.json").write_text("[")
    with pytest.raises(InputError, match="not JSON"):
        load_given_bank(folder)
    (folder / "phrases.json").unlink()
    with pytest.raises(InputError, match=r"no phrases\.json"):
        load_given_bank(folder)
    (folder / "embeddings.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be read"):
        load_given_bank(folder)
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        load_given_bank(tmp_path / "evil.npz")


def test_names_are_found_among_phrases(tmp_path):
    phrases = ["Goldfish", "traffic light", "crane", "bow (weapon)", "grey wolf"]
    given = load_given_bank(write(tmp_path / "a", {"x": rows(5)}, phrases))
    names = ["gold fish", "stoplight, traffic lights", "crane", "crane", "CD/DVD player", "bow", "gray wolf", "ant"]
    assert given.find(names) == {0: 0, 1: 1, 2: 2, 3: 2, 5: 3, 6: 4}


def test_a_lens_takes_them_without_its_encoder(lens, encoder, tmp_path, monkeypatch):
    phrases = ["red sky", "mostly green", "blue", "stripes", "cat stripes"]
    embeddings = encoder.encode_phrases(phrases)
    folder = write(tmp_path / "a", {"x": embeddings}, phrases)
    reference = lens.with_bank(load_given_bank(folder).subset([0, 1, 2, 3]).bank, encoder)
    monkeypatch.setattr(Encoder, "encode_phrases", lambda *a, **k: pytest.fail("the encoder was asked"))
    made = load_given_bank(folder).on(lens)
    # "cat" is a class.
    assert made.bank.phrases == ("red sky", "mostly green", "blue", "stripes")
    assert torch.allclose(made.embeddings, reference.embeddings, atol=1e-6)
    assert torch.allclose(made.statistics.carried, reference.statistics.carried, atol=1e-4)
    assert len(load_given_bank(folder).on(lens, hide_class_names=False).bank) == 5


def test_embeddings_of_another_encoder_are_refused(lens, encoder, tmp_path):
    width = lens.encoder.width
    with pytest.raises(InputError, match=rf"width 6; .*width is {width}"):
        load_given_bank(write(tmp_path / "a", {"x": rows()}, PHRASES)).on(lens)
    shared = ["red", "green", "blue", "yellow", "grey", "red sky"]
    true = encoder.encode_phrases(shared)
    with pytest.raises(InputError, match="6 phrases that both banks have"):
        load_given_bank(write(tmp_path / "b", {"x": -true}, shared)).on(lens)
    stated = {"phrases": shared, "encoder": {"name": "other", "fingerprint": "0" * 64}}
    given = load_given_bank(write(tmp_path / "c", {"x": true}, stated))
    with pytest.raises(InputError, match="of the encoder other"):
        given.on(lens)
    right = dataclasses.replace(given, encoder={"fingerprint": lens.encoder.fingerprint})
    assert len(right.on(lens).bank) == 6


def test_where_nothing_can_be_checked_it_is_said(lens, tmp_path):
    unknown = ["xylophone", "zither", "yurt"]
    given = load_given_bank(write(tmp_path / "a", {"x": rows(3, lens.encoder.width)}, unknown))
    with pytest.warns(UserWarning, match="Nothing but the width"):
        assert given.on(lens).bank.phrases == tuple(unknown)
    with pytest.raises(InputError, match="at least 2"), pytest.warns(UserWarning, match="Nothing"):
        load_given_bank(write(tmp_path / "b", {"x": rows(2, lens.encoder.width)}, ["an ant", "a bee"])).on(lens)


@pytest.mark.shared
def test_real_text_embeddings(shared_data):
    given = load_given_bank(shared_data / "clip-text-vit-b32")
    assert given.width == 512
    assert given.notes == ()
    assert len(given) + len(given.bank.audit) == 1203 + 365
    assert set(given.bank.groups) == {"lvis", "objects365"}
    norms = given.embeddings.norm(dim=1)
    assert float((norms - 1).abs().max()) < 1e-5
    at = given.find(["goldfish", "teddy, teddy bear", "zebra"])
    assert set(at) >= {1, 2}
