"""Explanations as a run on two real photographs would give them, with every part that a page can show."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import skimage.data
from PIL import Image

from whylens.types import (
    ClassScore,
    Contribution,
    Explanation,
    HeatMap,
    Phrase,
    Prediction,
    Provenance,
    Trace,
    Words,
)

CAT_LOGITS = {
    281: ("tabby cat", 12.41),
    285: ("Egyptian cat", 11.02),
    282: ("tiger cat", 10.87),
    287: ("lynx", 7.93),
    904: ("window screen", 6.1),
}
CUP_LOGITS = {
    967: ("espresso", 13.9),
    504: ("coffee mug", 12.1),
    968: ("cup", 11.7),
    925: ("consommé", 8.2),
    532: ("dining table", 6.9),
}


def phrase(text, group, score, presence_z, influence, p, *, supported, carried=0.6, contribution=None, presence=None):
    """One phrase; the distance to random heads follows p as it would for a normal distribution."""
    control_z = None if p is None else round(-math.log10(p) * 1.1 - 0.9, 3)
    cosine = presence_z * 0.07 if presence is None else presence
    return Phrase(text, group, score, cosine, presence_z, influence, contribution, carried, control_z, p, supported)


def picture_of(name, height=224):
    """A photograph of scikit-image at a classifier's size, cut to a square."""
    array = getattr(skimage.data, name)()
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    cut = Image.fromarray(array[top : top + side, left : left + side])
    return np.asarray(cut.resize((height, height), Image.Resampling.BICUBIC))


def prediction_of(logits):
    values = np.array([v for _, v in logits.values()])
    # The other 995 classes of the softmax share a little mass.
    shares = np.exp(values - values.max())
    shares = shares / (shares.sum() + 0.04)
    top = tuple(ClassScore(i, n, v, float(s)) for (i, (n, v)), s in zip(logits.items(), shares, strict=True))
    return Prediction(top, "softmax", 1000)


def provenance_of(name, **changes):
    def digest(text):
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()

    base = Provenance(
        classifier="torchvision:resnet50",
        classifier_fingerprint=digest("classifier"),
        lens="resnet50-everyday",
        lens_fingerprint=digest("lens"),
        image_name=name,
        image_hash=digest(name),
        pixels_hash=digest(name + "pixels"),
        seed=0,
        device="cpu",
        precision="float32",
        versions={"whylens": "0.1.0", "python": "3.11.9", "torch": "2.4.0", "numpy": "1.26.4"},
        seconds=0.412,
        passes=1.0,
        peak_memory_mb=812.4,
    )
    return dataclasses.replace(base, **changes)


def make_cat(*, picture=None):
    """Two words methods (one with a contrast to the runner-up and one additive), a map and a trace."""
    supporting = (
        phrase("striped fur", "animal coats", 1.842, 3.1, 1.91, 0.001, supported=True, carried=0.81),
        phrase("long whiskers", "animal parts", 1.377, 2.6, 1.42, 0.003, supported=True, carried=0.74),
        phrase("pointed ears", "animal parts", 1.113, 2.2, 1.21, 0.012, supported=True, carried=0.69),
        phrase("a pink nose", "animal parts", 0.986, 1.9, 1.05, 0.021, supported=True, carried=0.52),
        phrase("orange and brown", "colours", 0.871, 1.4, 0.93, 0.044, supported=True, carried=0.77),
        phrase("a soft blanket", "furniture and rooms", 0.640, 1.1, 0.71, 0.182, supported=False, carried=0.41),
        phrase("vertical lines", "patterns", 0.551, -0.8, 1.32, 0.031, supported=False, carried=0.63),
        phrase("warm indoor light", "lighting", 0.402, 0.9, 0.44, 0.577, supported=False, carried=0.33),
        phrase("shallow depth of field", "photo qualities", 0.288, 0.4, 0.30, 0.871, supported=False, carried=0.28),
        phrase("green glass", "materials", 0.120, 0.2, 0.12, 0.998, supported=False, carried=0.22),
        phrase("a wooden bench", "furniture and rooms", 0.071, -0.1, 0.08, 1.0, supported=False, carried=0.45),
        phrase("dry grass", "plants", 0.033, -0.4, 0.04, 1.0, supported=False, carried=0.58),
    )
    suppressing = (
        phrase("a slender neck", "animal parts", -0.914, 1.7, -1.02, 0.018, supported=True, carried=0.61),
        phrase("spotted coat", "animal coats", -0.733, -0.9, 0.81, 0.064, supported=False, carried=0.79),
        phrase("snow", "sky and weather", -0.310, -1.2, 0.29, 0.790, supported=False, carried=0.83),
    )
    contrastive = (
        phrase("striped fur", "animal coats", 0.944, 3.1, 0.98, 0.002, supported=True, carried=0.81),
        phrase("a round face", "animal parts", 0.612, 1.8, 0.66, 0.027, supported=True, carried=0.55),
        phrase("thick fur", "animal coats", 0.401, 1.3, 0.44, 0.093, supported=False, carried=0.71),
    )
    against_contrast = (
        phrase("large ears", "animal parts", -0.588, 1.5, -0.63, 0.034, supported=True, carried=0.66),
        phrase("a bronze sheen", "materials", -0.204, 0.2, -0.23, 0.652, supported=False, carried=0.37),
    )
    additive = (
        phrase(
            "striped fur", "animal coats", 2.210, 3.1, 1.91, 0.001, supported=True, carried=0.81, contribution=2.210
        ),
        phrase(
            "a cat-like face", "animal parts", 1.420, 2.4, 1.77, 0.002, supported=True, carried=0.72, contribution=1.420
        ),
        phrase("window light", "lighting", 0.310, 0.7, 0.40, 0.411, supported=False, carried=0.35, contribution=0.310),
    )
    additive_against = (
        phrase(
            "floppy ears",
            "animal parts",
            -0.480,
            -0.6,
            -0.52,
            0.210,
            supported=False,
            carried=0.64,
            contribution=-0.480,
        ),
    )
    settings = {"direction": "reverse-map", "score": "raw", "heads": 1000, "level": 0.05, "diversity": 0.7}
    height, width = np.mgrid[0:224, 0:224] / 224
    heat = np.exp(-(((height - 0.4) / 0.2) ** 2) - ((width - 0.55) / 0.25) ** 2).astype(np.float32)
    contributions = (
        Contribution(112, 3.21, "striped fur, close up", 0.31),
        Contribution(87, 2.74, "whiskers", 0.26),
        Contribution(401, 1.02, "latent 401 (no name)", 0.10),
        Contribution(19, -0.88, "smooth metal", 0.08),
    )
    prediction = prediction_of(CAT_LOGITS)
    return Explanation(
        prediction=prediction,
        target=prediction.top[0],
        contrast=None,
        results={
            "faithtrace": Words(
                "faithtrace",
                "words/faithtrace/reverse-map/raw/logit/heads-1000",
                settings,
                281,
                None,
                supporting,
                suppressing,
                seconds=0.031,
            ),
            "faithtrace:runner-up": Words(
                "faithtrace",
                "words/faithtrace/reverse-map/raw/contrast/heads-1000",
                settings,
                281,
                285,
                contrastive,
                against_contrast,
                seconds=0.029,
            ),
            "phrase_decomposition": Words(
                "phrase_decomposition",
                "words/phrase-decomposition/nonnegative/64",
                {"phrases": 64},
                281,
                None,
                additive,
                additive_against,
                total=5.12,
                remainder=1.66,
                seconds=0.008,
                notes=("The remainder is larger than any phrase but the first: read the list as a part of the story.",),
            ),
        },
        maps={
            "fei": HeatMap(
                "fei", "map/fei/fast/logit/20-points", {"preset": "fast"}, 281, None, heat, passes=120, seconds=3.9
            )
        },
        traces={
            "fact": Trace(
                "fact",
                "trace/fact/frozen-gate/fp64",
                {"dictionary": "topk-32"},
                281,
                None,
                contributions,
                {"reconstruction error": 0.42, "head bias": -0.11},
                6.40,
                passes=1,
                seconds=0.05,
            )
        },
        faithfulness={
            "faithtrace: words/deletion/k5/softmax": 0.412,
            "faithtrace: words/deletion/k5/softmax/random": 0.871,
            "faithtrace: words/insertion/k5/softmax": 0.664,
            "faithtrace: words/insertion/k5/softmax/random": 0.108,
        },
        provenance=provenance_of("chelsea.png", passes=122.0, seconds=4.02),
        picture=picture_of("chelsea") if picture is None else picture,
        notes=(
            "Words are limited to what the features carry and to the phrases of the bank: on 5000 held-out pictures "
            "the aligner explains 47% of the encoder's variance (mean cosine 0.71).",
        ),
    )


def make_cup():
    """Asked about a class that was not predicted, against the one that was; nothing passed; a class-level method."""
    words = (
        phrase("a round rim", "kitchenware", 0.0221, 1.2, 0.025, 0.210, supported=False),
        phrase("ceramic", "materials", 0.0187, 0.9, 0.019, 0.341, supported=False),
        phrase("dark brown liquid", "food", 0.0090, 2.9, 0.011, 0.802, supported=False),
    )
    general = (phrase("a handle", "kitchenware", 0.31, 0.8, 0.33, 0.004, supported=True),)
    prediction = prediction_of(CUP_LOGITS)
    return Explanation(
        prediction=prediction,
        target=prediction.top[1],
        contrast=prediction.top[0],
        results={
            "faithtrace": Words(
                "faithtrace", "words/faithtrace/contrast", {"level": 0.05}, 504, 967, words, seconds=0.02
            ),
            "text_to_concept": Words(
                "text_to_concept", "words/t2c/class", {}, 504, 967, general, class_level=True, seconds=0.004
            ),
        },
        maps={},
        traces={},
        faithfulness={},
        provenance=provenance_of("coffee.png"),
        picture=picture_of("coffee", 64),
    )


@pytest.fixture(scope="session")
def cat():
    return make_cat()


@pytest.fixture(scope="session")
def cup():
    return make_cup()
