"""A record made with the shipped lens is found again and repeated without naming the lens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whylens.errors import WhylensError
from whylens.lens import Lens
from whylens.records import Record, find_lens, repeat, verify


def test_the_shipped_lens_is_found_and_repeats_its_explanation(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 255, (5, 5, 3), dtype=np.uint8)
    picture = tmp_path / "blur.png"
    Image.fromarray(small).resize((90, 70), Image.Resampling.BICUBIC).save(picture)
    lens = Lens.load("tiny-imagenet")
    why = lens.explain(picture)
    first = verify(why.save(tmp_path / "why.json"))
    assert first.ok
    (record,) = first.records
    assert first.bundle is not None
    assert find_lens(record).fingerprint == lens.fingerprint
    repetition = repeat(record, first.bundle, lens, picture.read_bytes())
    assert repetition.same
    assert Record.from_explanation(repetition.explanation).id == record.id
    with pytest.raises(WhylensError, match="lens"):
        repeat(record, first.bundle, lens.with_bank(lens.bank.subset(range(100))), picture.read_bytes())
