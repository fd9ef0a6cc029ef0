from __future__ import annotations

from pathlib import Path

import pytest
import torch

from whylens.banks import ConceptBank
from whylens.classifiers import Classifier
from whylens.encoders import Encoder
from whylens.errors import FitError, InputError
from whylens.lens import Lens, fit


def make_bank(*phrases: str) -> ConceptBank:
    return ConceptBank(phrases=phrases, groups=("own",) * len(phrases), sources=("test",) * len(phrases), name="own")


def test_fit_says_how_many_pictures_it_used(lens: Lens, pictures: list[Path]) -> None:
    assert lens.report["pictures_found"] == lens.report["pictures_used"] == len(pictures)
    assert lens.report["pictures_failed"] == []
    assert lens.aligner.report.held_out == 20
    assert lens.aligner.report.images == len(pictures) - 20


def test_class_names_and_unknown_words_leave_the_bank(
    classifier: Classifier, encoder: Encoder, pictures: list[Path]
) -> None:
    bank = make_bank("red", "green plant", "grey cat", "zeppelin hangar", "blue sky")
    lens = fit(classifier, encoder, pictures, bank=bank, minimum_r2=-1.0)
    assert lens.bank.phrases == ("red", "green plant", "blue sky")
    assert lens.report["phrases_dropped"] == {"class name": 1, "unknown to the encoder": 1}


def test_limit_spreads_over_the_pictures(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], bank: ConceptBank
) -> None:
    lens = fit(classifier, encoder, pictures, bank=bank, minimum_r2=-1.0, limit=80)
    assert (lens.report["pictures_found"], lens.report["pictures_used"]) == (150, 80)


def test_a_plain_module_is_wrapped(
    module: torch.nn.Module, encoder: Encoder, pictures: list[Path], bank: ConceptBank
) -> None:
    lens = fit(module, encoder, pictures[:90], bank=bank, minimum_r2=-1.0)
    assert lens.classifier.size == (224, 224)
    assert lens.classifier.class_names[0] == "class 0"


def test_a_poor_aligner_is_refused_with_advice(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], bank: ConceptBank
) -> None:
    with pytest.raises(FitError, match="at least 100% is asked for"):
        fit(classifier, encoder, pictures, bank=bank, minimum_r2=1.0)


def test_too_few_pictures_are_refused(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], bank: ConceptBank
) -> None:
    with pytest.raises(FitError):
        fit(classifier, encoder, pictures[:8], bank=bank, minimum_r2=-1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"held_out": 0.0}, "held_out"),
        ({"limit": 0}, "limit"),
        ({"bank": "everydy"}, "everyday"),
        ({"bank": make_bank("red")}, "at least 2"),
        ({"bank": make_bank("zeppelin", "hangar", "red")}, "2 dropped: unknown to the encoder"),
    ],
)
def test_bad_settings_are_named(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(classifier, encoder, pictures, **({"bank": make_bank("red", "blue")} | changes))  # type: ignore[arg-type]


def test_an_empty_folder_is_refused(
    classifier: Classifier, encoder: Encoder, bank: ConceptBank, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="No pictures"):
        fit(classifier, encoder, tmp_path, bank=bank)
