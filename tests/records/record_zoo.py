"""One small explanation with words, a map and a trace, and ways to alter it."""

from __future__ import annotations

import dataclasses

import numpy as np

from whylens.canonical import content_hash
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

PICTURE_FILE = b"\x89PNG\r\n\x1a\n the bytes of a file"


def make_explanation(*, score=1.25, seed=0, seconds=0.5, name="cat.png", gain=1.0, **provenance):
    cat, dog = ClassScore(3, "tabby cat", 4.5, 0.9), ClassScore(5, "hün_d & co", 2.25, 0.1)
    phrases = (
        Phrase("striped fur", "coat", score, 0.5, 2.0, 0.75, None, 0.5, 1.5, 0.001, True),
        Phrase("whiskers", "parts", 0.3333333333, 1 / 7, 1e-9, -0.0, None, 0.25, None, None, None),
    )
    words = Words(
        "faithtrace", "words/faithtrace/v1", {"top": 5, "level": 0.05}, 3, None, phrases, seconds=seconds, passes=1
    )
    versus = dataclasses.replace(words, contrast=5, phrases=phrases[:1], notes=("a note",))
    heat = (np.arange(12, dtype=np.float32).reshape(3, 4) * gain).astype(np.float32)
    made_by = {
        "classifier": "builtin:tiny",
        "classifier_fingerprint": "c" * 64,
        "lens": "tiny",
        "lens_fingerprint": "1" * 64,
        "image_name": name,
        "image_hash": content_hash(PICTURE_FILE),
        "pixels_hash": "e" * 64,
        "seed": seed,
        "device": "cpu",
        "precision": "float32",
        "versions": {"whylens": "0.1.0", "torch": "2.4.0"},
        "seconds": seconds,
        "passes": 2.0,
        "peak_memory_mb": 100 * seconds,
    }
    return Explanation(
        prediction=Prediction((cat, dog), "softmax", 10),
        target=cat,
        contrast=None,
        results={"faithtrace": words, "faithtrace:runner-up": versus},
        maps={"fei": HeatMap("fei", "map/fei/v1", {"preset": "fast"}, 3, None, heat, seconds=seconds)},
        traces={
            "fact": Trace("fact", "trace/v1", {}, 3, None, (Contribution(7, 2.0, "fur", 1.0),), {"bias": 0.5}, 2.5)
        },
        faithfulness={"faithtrace: words/deletion/k5": 0.4123456},
        provenance=Provenance(**{**made_by, **provenance}),
        picture=np.full((3, 4, 3), 128, np.uint8),
        notes=("Read the words as hints.",),
    )
