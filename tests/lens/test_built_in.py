"""The lens and the encoder that ship with the package."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import whylens
from whylens.banks import read_descriptors
from whylens.classifiers import load_classifier
from whylens.encoders import load_encoder
from whylens.errors import InputError
from whylens.lens import Lens, built_in_lenses
from whylens.lens.storage import BUILT_IN
from whylens.words import presence, reverse_directions

DESCRIPTORS = Path(whylens.__file__).parent / "banks/data/descriptors/tiny-imagenet.txt"


@pytest.fixture(scope="module")
def shipped() -> Lens:
    return Lens.load("tiny-imagenet")


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    data = pytest.importorskip("skimage.data")
    return [data.rocket(), data.coffee()]


def test_it_explains_photographs_without_an_encoder(
    shipped: Lens, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whylens.lens.lens.load_encoder", lambda source: pytest.fail("the encoder was loaded"))
    rocket, cup = (shipped.explain(picture) for picture in photographs)
    assert cup.target.name == "espresso"
    assert len(rocket.words) > 0
    assert rocket.words[0].text != cup.words[0].text


def test_a_class_ranks_its_own_descriptors_high(shipped: Lens) -> None:
    """The directions of phrases must mean something to the head: chance is 0.5, a map that explodes off the pictures 0.64."""
    index = {text: i for i, text in enumerate(shipped.bank.phrases)}
    head = shipped.classifier.affine_head
    assert head is not None
    influence = reverse_directions(shipped) @ (head.weight - head.weight.mean(0)).T
    own = read_descriptors(DESCRIPTORS)
    ranks = []
    for c, (_, phrases) in enumerate(own.values()):
        rows = [index[text] for text in phrases if text in index]
        ranks.append((influence[rows, c][:, None] > influence[:, c][None]).float().mean())
    assert float(torch.stack(ranks).mean()) > 0.85


def test_the_names_are_listed() -> None:
    assert built_in_lenses() == ["tiny-imagenet", "tiny-imagenet-bcos"]
    assert len(load_classifier("builtin:tiny-imagenet").class_names) == 100


def test_no_phrase_names_a_class(shipped: Lens) -> None:
    assert "green plant" not in shipped.classifier.class_names
    assert shipped.bank.without_class_names(shipped.classifier.class_names).phrases == shipped.bank.phrases
    assert len(shipped.bank) > 1500


def test_phrases_of_ones_own_can_be_added_offline(shipped: Lens, photographs: list[np.ndarray]) -> None:
    own = whylens.ConceptBank(
        phrases=("brown fur", "blue sky", "dark liquid", "steel rails"),
        groups=("own",) * 4,
        sources=("test",) * 4,
        name="own",
    )
    lens = shipped.with_bank(own)
    assert lens.explain(photographs[1]).words[0].text == "dark liquid"
    strange = whylens.ConceptBank(
        phrases=("brown fur", "zygomorphic corolla"), groups=("own",) * 2, sources=("test",) * 2, name="own"
    )
    with pytest.raises(InputError, match="zygomorphic"):
        shipped.with_bank(strange)


@pytest.mark.parametrize("colour", ["red", "green", "blue", "yellow"])
def test_the_encoder_knows_colours(colour: str) -> None:
    values = {"red": (200, 30, 30), "green": (40, 160, 50), "blue": (40, 70, 210), "yellow": (230, 220, 40)}
    encoder = load_encoder("builtin:tiny")
    noise = np.random.default_rng(0).normal(0, 12, (64, 64, 3))
    picture = (np.array(values[colour]) + noise).clip(0, 255).astype(np.uint8)
    with torch.no_grad():
        image = encoder.encode_images(encoder.preprocess(picture)[None])
        text = encoder.encode_phrases([f"mostly {name}" for name in values])
    assert list(values)[int((image @ text.T).argmax())] == colour


def test_the_measured_figures_are_those_of_the_shipped_weights(shared_data: Path, shipped: Lens) -> None:
    """The card's accuracy, measured again on every fifth validation picture (500 of 2,500)."""
    folder = shared_data / "tiny-imagenet-100"
    rows = [line.split(",") for line in (folder / "classes.csv").read_text().splitlines()[1:]]
    index = {row[1]: int(row[0]) for row in rows}
    pictures, labels = [], []
    with tarfile.open(folder / "val.tar") as tar:
        for number, member in enumerate(m for m in tar if m.isfile()):
            if number % 5 == 0:
                handle = tar.extractfile(member)
                assert handle is not None
                pictures.append(np.asarray(Image.open(io.BytesIO(handle.read())).convert("RGB")))
                labels.append(index[member.name.split("/")[0]])
    with torch.inference_mode():
        x = torch.stack([shipped.classifier.preprocess(picture) for picture in pictures])
        right = (shipped.classifier.logits(x).argmax(1) == torch.tensor(labels)).float().mean()
    stated = json.loads((BUILT_IN / "tiny-imagenet/figures.json").read_text())["val_top1"]
    assert float(right) == pytest.approx(stated, abs=0.06)


def test_presence_of_a_described_trait_is_higher_where_it_is(shipped: Lens, photographs: list[np.ndarray]) -> None:
    with torch.no_grad():
        x = torch.stack([shipped.classifier.preprocess(p) for p in photographs])
        values = presence(shipped, shipped.classifier.pooled(x))
    drink = shipped.bank.phrases.index("hot drink")
    assert values[1, drink] > values[0, drink]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("tiny-imagenet", "frozen_gate"), ("tiny-imagenet-bcos", "fact")])
def test_the_lenses_trace_with_their_dictionaries(photographs: list[np.ndarray], name: str, method: str) -> None:
    lens = Lens.load(name)
    assert lens.dictionary is not None
    fidelity = lens.dictionary.report["fidelity"]
    assert fidelity["accuracy"] - fidelity["accuracy_replaced"] <= 0.03
    why = lens.explain(photographs[1], methods=[method])
    parts = [*(c.value for c in why.trace.contributions), *why.trace.remainders.values()]
    assert sum(parts) == pytest.approx(why.trace.total, abs=1e-9)
    assert why.trace.total == pytest.approx(why.target.logit, abs=1e-3)
    assert "reconstruction error" in why.trace.remainders
    assert len(why.concept_maps[method]) == 6
